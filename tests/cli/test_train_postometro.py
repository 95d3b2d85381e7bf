"""`hmr train postometro` as people run it: stopped and resumed, in the order of its parts, from published files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.files.checkpoints import read_checkpoint
from tests.helpers.cli import hmr, hmr_ok
from tests.helpers.motion_files import motion_file
from tests.helpers.postometro_standin import standin

QUICK = ("--rate", "1e-3", "--batch", "2")


@pytest.mark.slow
def test_a_stopped_tokenizer_is_resumed(tmp_path: Path) -> None:
    poses, out = motion_file(tmp_path / "motion.npz", 50), tmp_path / "tokens.safetensors"
    command = ["train", "postometro", "--part", "tokenizer", "--data", poses, *QUICK, "-o", out, "--steps"]
    stopped = subprocess.Popen(
        [sys.executable, "-m", "hmr_cli.app", *map(str, command), "1000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert stopped.stderr is not None
    assert "parameters learn from" in stopped.stderr.readline()
    time.sleep(3)
    stopped.send_signal(signal.SIGINT)
    told = stopped.stderr.read()
    assert stopped.wait(60) == 130 and "the same command resumes" in told and not out.exists()
    state = torch.load(tmp_path / "tokens.safetensors.state", weights_only=True)
    assert len(state["losses"]) > 0
    changed = hmr(*command, "7")
    assert changed.returncode == 3 and "other settings or data" in changed.stderr
    (tmp_path / "tokens.safetensors.state").unlink()
    assert hmr(*command, "7").returncode == 0
    assert not (tmp_path / "tokens.safetensors.state").exists()
    assert "tokenizer" in read_checkpoint(out).metadata["recipe"]


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "recipe"), [("pct", "code"), ("keypoints", "paper"), ("none", "code")])
def test_published_files_begin_a_mesh_network(tokens: str, recipe: str, tmp_path: Path) -> None:
    """A step at the published sizes from stand-ins of FastMETRO-S and PCT; the result recovers people."""
    scenes, out, meshes = tmp_path / "oc.detections.h5", tmp_path / "mesh.safetensors", tmp_path / "a.meshes.h5"
    hmr_ok("synth", "synth-oc", "--pictures", 3, "-o", scenes)
    fast, pose = standin("fastmetro_s_r50", tmp_path / "f.bin"), standin("pct_base_classifier", tmp_path / "p.pth")
    init = ["--init", fast] if tokens == "none" else ["--init", fast, "--init", pose]
    settings = ["--size", "S", "--steps", 1, "--batch", 2, "--tokens", tokens, "--recipe", recipe]
    hmr_ok("train", "postometro", "--data", scenes, *init, *settings, "-o", out)
    before, after = read_checkpoint(fast).tensors, read_checkpoint(out).tensors
    name = "transformer_1.encoder.layers.0.linear1.weight"
    moved = (after[name] - before[f"state_dict.{name}"]).abs().max()
    assert 0 < moved < 1e-3  # it began at the published weights
    assert "wrote" not in hmr_ok("recover", scenes, "--ckpt", out, "-o", meshes)
    with open_artefact(meshes) as found:
        assert (found.rows["status"] == 0).all()
        assert ("keypoints" in found.attrs["model"]["name"]) == (tokens == "keypoints")
    for file in (fast, pose, out):
        file.unlink()


@pytest.mark.slow
def test_a_classifier_learns_from_a_published_file_and_detects(tmp_path: Path) -> None:
    scenes, out = tmp_path / "oc.detections.h5", tmp_path / "pct.safetensors"
    hmr_ok("synth", "synth-oc", "--pictures", 3, "-o", scenes)
    pose = standin("pct_base_woimgguide_classifier", tmp_path / "p.pth")
    hmr_ok("train", "postometro", "--part", "classifier", "--data", scenes, "--init", pose, "--steps", 2, "-o", out)
    old, new = read_checkpoint(pose).tensors, read_checkpoint(out).tensors
    for name, tensor in new.items():
        same = torch.equal(tensor, old.get(f"state_dict.{name}", tensor))
        assert same or (name.startswith("keypoint_head.") and ".tokenizer." not in name), name
    assert not torch.equal(
        new["keypoint_head.cls_pred_layer.weight"], old["state_dict.keypoint_head.cls_pred_layer.weight"]
    )
    found = tmp_path / "found.detections.h5"
    hmr_ok("detect", "--boxes", scenes, "--detector", "pct", "--detector-path", out, "-o", found, "--root", tmp_path)
    for file in (pose, out):
        file.unlink()
