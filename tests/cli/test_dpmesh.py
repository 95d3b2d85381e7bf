"""DPMesh through the command line: a stand-in checkpoint, hostile and foreign files, conversion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import dpmesh_standin as standin
from tests.helpers.cli import hmr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpmesh_cli")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """What `weights.py manifest_small.json x.pth` writes, with a body whose results are finite."""
    beside = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}  # as a training leaves it
    torch.save({"state_dict": standin.tensors()} | beside, folder / "standin.pth")
    return folder / "standin.pth"


def test_recover_with_a_checkpoint_is_the_library(checkpoint: Path, folder: Path) -> None:
    """hmr recover --ckpt: the rows of the library call, bit for bit."""
    from stages import recover
    from stages.artefacts.hdf5 import open_artefact

    detections = standin.photos(folder)
    out = folder / "people.meshes.h5"
    done = hmr("recover", detections, "--ckpt", checkpoint, "--root", standin.PHOTOS, "-o", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    torch.set_num_threads(1)
    library = recover.run(detections, None, ckpt=checkpoint, root=standin.PHOTOS)
    with open_artefact(out, "meshes") as file:
        assert list(file.rows["status"]) == [0, 0] and file.attrs["model"]["name"] == "dpmesh"
        for name in ("smpl/global_orient", "smpl/body_pose", "smpl/betas", "smpl/transl", "joints/xyz"):
            np.testing.assert_array_equal(file.read(name), library.read(name), err_msg=name)


@pytest.mark.slow
def test_every_step_in_a_file_is_the_same_bits(checkpoint: Path, folder: Path) -> None:
    """heatmaps, features and recover as commands give what recover alone gives; other files are refused."""
    from stages.artefacts.hdf5 import open_artefact

    detections, maps, seen = standin.photos(folder), folder / "p.heatmaps.h5", folder / "p.features.h5"
    common = ("--root", standin.PHOTOS, "--device", "cpu")
    steps: list[tuple[object, ...]] = [
        ("heatmaps", detections, "-o", maps),
        ("features", detections, maps, "--ckpt", checkpoint, "--precision", "float32", *common, "-o", seen),
        ("recover", detections, "--features", seen, "--ckpt", checkpoint, *common, "-o", folder / "by_files.meshes.h5"),
        ("recover", detections, "--heatmaps", maps, "--ckpt", checkpoint, *common, "-o", folder / "by_maps.meshes.h5"),
        ("recover", detections, "--ckpt", checkpoint, *common, "-o", folder / "alone.meshes.h5"),
    ]
    for step in steps:
        done = hmr(*step)
        assert done.returncode == 0, done.stderr
    with open_artefact(folder / "alone.meshes.h5") as alone:
        for name in ("by_files", "by_maps"):
            with open_artefact(folder / f"{name}.meshes.h5") as file:
                for column in alone.columns():
                    np.testing.assert_array_equal(file.read(column), alone.read(column), err_msg=f"{name} {column}")
    other = standin.tensors()
    other["module.kp_lifting.weight"] = other["module.kp_lifting.weight"] + 1
    torch.save(other, folder / "other.pth")
    done = hmr("recover", detections, "--features", seen, "--ckpt", folder / "other.pth", "-o", folder / "x.meshes.h5")
    assert done.returncode == 3 and "made with another checkpoint" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (folder / "x.meshes.h5").exists()


@pytest.mark.slow
def test_attention_is_drawn(checkpoint: Path, folder: Path) -> None:
    out = folder / "attention"
    done = hmr("view", standin.photos(folder), "--attention", checkpoint, "--root", standin.PHOTOS, "-o", out)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("row_*.jpg"))) == 2


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch RAN",)


def endless() -> dict[str, object]:
    made: dict[str, object] = {"a": torch.zeros(1)}
    made["state_dict"] = made
    return made


def cut(path: Path, whole: Path) -> None:
    path.write_bytes(whole.read_bytes()[:-100_000])


def lacking(path: Path) -> None:
    made = standin.tensors()
    del made["module.conv2d_to_3d.weight"]
    torch.save(made, path)


# What one line on stderr must say -> how the file comes to be (path, a whole checkpoint).
BAD: dict[str, Callable[[Path, Path], object]] = {
    "nothing of it was run": lambda p, _: torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Payload()}, p),
    "is cut": cut,
    "missing (regressor.conv2d_to_3d.weight": lambda p, _: lacking(p),
    "checkpoint of none of": lambda p, _: torch.save({"net.weight": torch.zeros(3)}, p),
    "is a web page": lambda p, _: p.write_text("<!DOCTYPE html><html>Sign in</html>"),
    "is a Git LFS pointer": lambda p, _: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "nested without end": lambda p, _: torch.save(endless(), p),
    "is empty": lambda p, _: p.write_bytes(b""),
}
# One process that imports torch once, and a fork of it for each command.
FORKS = """
import os, sys
import torch
from hmr_cli.app import main
for path in sys.argv[2:]:
    if not (child := os.fork()):
        sys.stderr = open(path + ".said", "w")
        os.dup2(sys.stderr.fileno(), 2)
        main(["recover", sys.argv[1], "--ckpt", path, "-o", path + ".h5"])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_bad_checkpoints_are_one_line_and_exit_4(checkpoint: Path, folder: Path) -> None:
    paths = [folder / f"bad{i}.pth" for i in range(len(BAD))]
    for path, make in zip(paths, BAD.values(), strict=True):
        make(path, checkpoint)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(standin.photos(folder)), *map(str, paths)],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.split() == ["4"] * len(BAD), (done.stdout, done.stderr)
    for path, words in zip(paths, BAD, strict=True):
        said = Path(f"{path}.said").read_text().strip().splitlines()
        assert words in said[0] and len(said) <= 2, said  # the second line is the hint
        assert not Path(f"{path}.h5").exists()
    assert not (folder / "RAN").exists()


@pytest.mark.slow
def test_convert_and_describe(checkpoint: Path, folder: Path) -> None:
    out = folder / "small.safetensors"
    done = hmr("convert", checkpoint, "-o", out, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    told = hmr("checkpoint", out, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["systems"][0] == "dpmesh" and found["problem"] == "" and found["dpmesh"]["smpl_arrays"] == []
    assert found["metadata"]["lora"] == "folded" and "OpenRAIL" in found["licence"]
    bad = hmr("checkpoint", folder / "missing.pth")
    assert bad.returncode == 4 and "no checkpoint at" in bad.stderr
