"""Stand-ins of every published file through the command line: which model it is, meshes, scores, refinement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from tests.helpers.cli import hmr_ok
from tests.helpers.fixtures import PHOTOS
from tests.helpers.postometro_standin import standin

FREE = PHOTOS / "free"
MESH = {
    "fastmetro_s_r50": "FastMETRO-S, ResNet-50",
    "fastmetro_l_h64": "FastMETRO-L, HRNet-W64",
    "fastmetro_l_h64_smpl": "FastMETRO-L, HRNet-W64, SMPL regressor",
    "postometro_l_r50": "PostoMETRO-L, ResNet-50, PCT Swin-V2 large",
    "postometro_l_w48": "PostoMETRO-L, HRNet-W48, PCT Swin-V2 large",
}


@pytest.fixture
def checkpoint(name: str, tmp_path: Path) -> Iterator[Path]:
    yield standin(name, tmp_path / "file.pth")
    (tmp_path / "file.pth").unlink()  # gigabytes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "oc.detections.h5"
    hmr_ok("synth", "synth-oc", "--pictures", 3, "-o", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", MESH)
def test_every_mesh_network_goes_the_whole_way(name: str, checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    meshes, refined = tmp_path / "a.meshes.h5", tmp_path / "b.meshes.h5"
    told = hmr_ok("recover", scenes, "--ckpt", checkpoint, "-o", meshes)
    assert f"file.pth: {MESH[name]}" in told and "mesh_downsampling.npz" in told
    hmr_ok("eval", scenes, "--meshes", meshes, "-o", tmp_path / "a.scores.h5")
    hmr_ok("refine", meshes, "--detections", scenes, "-o", refined)
    with open_artefact(meshes) as first, open_artefact(refined) as second:
        assert first.attrs["model"]["name"] == MESH[name]
        assert (first.rows["status"] == 0).all() and (second.rows["status"] == 0).all()
        assert np.isfinite(first.read("vertices/xyz")).all() and np.isfinite(first.read("extra/fit_residual")).all()
        assert first.rows_fingerprint == second.rows_fingerprint
    with open_artefact(tmp_path / "a.scores.h5") as scores:
        assert np.isfinite(scores.read("errors/pa_mpjpe")).all()
    if name.startswith("postometro"):  # pose tokens computed once are the same pose tokens
        tokens, again = tmp_path / "a.features.h5", tmp_path / "c.meshes.h5"
        hmr_ok("features", scenes, "--model", "pct", "--ckpt", checkpoint, "-o", tokens)
        hmr_ok("recover", scenes, "--features", tokens, "--ckpt", checkpoint, "-o", again)
        with open_artefact(meshes) as first, open_artefact(again) as second:
            np.testing.assert_allclose(second.read("vertices/xyz"), first.read("vertices/xyz"), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pct_base_classifier", "pct_base_woimgguide_classifier", "pct_large_classifier", "pct_huge_classifier"]
)
def test_every_pct_file_finds_joints_in_a_photo(name: str, checkpoint: Path, tmp_path: Path) -> None:
    boxes, out = tmp_path / "boxes.h5", tmp_path / "photo.detections.h5"
    (tmp_path / "boxes.csv").write_text("name,x1,y1,x2,y2\n000000000785.jpg,280,44,499,387\n")
    hmr_ok("import", "boxes", tmp_path / "boxes.csv", "--images", FREE, "-o", boxes)
    hmr_ok("detect", "--boxes", boxes, "--detector", "pct", "--detector-path", checkpoint, "-o", out, "--root", FREE)
    with open_artefact(out) as found:
        assert found.n_rows == 1 and np.isfinite(found.read("keypoints/xy")).all()
        assert (found.read("keypoints/score") > 0).all() and found.attrs["model"]["name"] == "pct"
