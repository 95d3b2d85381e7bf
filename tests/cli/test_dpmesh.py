"""DPMesh through the command line: a stand-in checkpoint, hostile and foreign files, conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import dpmesh_standin as standin
from tests.cli.runner import hmr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpmesh_cli")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """What `weights.py manifest_small.json x.pth` writes, with a body whose results are finite."""
    torch.save({"state_dict": standin.tensors()}, folder / "standin.pth")
    return folder / "standin.pth"


def test_recover_with_a_checkpoint_is_the_library(checkpoint: Path, folder: Path) -> None:
    """hmr recover --ckpt: the rows of the library call, bit for bit."""
    from stages import recover
    from stages.artefact import open_artefact

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


def hostile(path: Path) -> None:
    import os

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch RAN",)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Payload()}, path)


BAD = {
    "nothing of it was run": hostile,
    "checkpoint of none of": lambda p: torch.save({"net.weight": torch.zeros(3)}, p),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_checkpoint_is_one_line_and_exit_4(words: str, folder: Path) -> None:
    path = folder / "bad.pth"
    BAD[words](path)
    done = hmr("features", standin.photos(folder), "--ckpt", path, "-o", folder / "x.h5", cwd=folder)
    assert done.returncode == 4 and words in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "RAN").exists() and not (folder / "x.h5").exists()


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
