"""`hmr train prior`: stopped, resumed, and used by `hmr refine`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.errors import ArtefactError, UsageError
from stages.files.checkpoints import read_checkpoint
from stages.models.scorehmr.refiner import ScoreHmrRefiner
from stages.smpl.body import load_body
from stages.synthetic.mocap import load_poses
from stages.training import loop
from stages.training.prior import Params, PriorTrainer, run
from tests.helpers.cli import hmr
from tests.helpers.motion_files import motion_file

SMALL = ("--hidden", "32", "--blocks", "1", "--batch", "64", "--people", "600")


def test_a_stopped_training_goes_on_and_its_file_refines(tmp_path: Path) -> None:
    poses, out = motion_file(tmp_path / "motion.npz", 200), tmp_path / "mine.safetensors"
    command = [
        sys.executable,
        "-m",
        "hmr_cli.app",
        "train",
        "prior",
        "--embedded",
        "--poses",
        str(poses),
        "-o",
        str(out),
    ]
    child = subprocess.Popen(
        [*command, *SMALL, "--max-minutes", "5"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert child.stderr is not None
    assert "learning from" in child.stderr.readline()
    time.sleep(2)
    child.send_signal(signal.SIGINT)
    told = child.stderr.read()
    assert child.wait(60) == 130 and "the same command resumes" in told and not out.exists()
    state = torch.load(tmp_path / "mine.safetensors.state", weights_only=True)
    done = hmr("train", "prior", "--poses", poses, "-o", out, *SMALL, "--steps", state["steps"] + 5)
    assert done.returncode == 0 and f"resumed: step {state['steps']}" in done.stderr, done.stderr
    file = read_checkpoint(out)
    assert file.metadata["steps"] == str(state["steps"] + 5)
    covariance = file.tensors["error_covariance"]
    assert covariance.shape == (82, 82) and (torch.linalg.eigvalsh(covariance.double()) > 0).all()
    assert ScoreHmrRefiner.load(file, body=load_body("embedded")).kalman_update is not None
    with pytest.raises(ArtefactError, match="other settings"):
        run(poses, out, Params(hidden=16, blocks=1, batch=64, steps=5))
    with pytest.raises(UsageError, match="nothing to train"):
        run(poses, out, Params(max_minutes=0))


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    bank = load_poses(motion_file(tmp_path / "motion.npz", 30))
    params = Params(steps=6, batch=64, hidden=16, blocks=1)
    whole, first = (PriorTrainer(bank, params) for _ in range(2))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    loop.save(first, tmp_path / "state")
    second = PriorTrainer(bank, params)
    loop.load(second, tmp_path / "state")
    for _ in range(3):
        second.step()
    assert second.steps == 6 and second.losses == whole.losses
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, second.average.state_dict()[name]), name
    (tmp_path / "state").write_bytes(b"junk")
    with pytest.raises(ArtefactError, match="not the state of a training"):
        loop.load(second, tmp_path / "state")
