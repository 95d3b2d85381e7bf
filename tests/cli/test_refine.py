"""`hmr refine` through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.models.scorehmr.denoiser import Denoiser
from stages.models.scorehmr.weights import EMBEDDED
from tests.helpers.cli import hmr
from tests.helpers.people_world import crowd, save, with_keypoints

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not EMBEDDED.exists(), reason="stages/data/prior.safetensors is not there yet")


def test_refine_and_its_errors(tmp_path: Path) -> None:
    world = crowd(6)
    meshes, detections = (
        save(world.meshes, tmp_path / "a.meshes.h5"),
        save(world.detections, tmp_path / "a.detections.h5"),
    )
    out = tmp_path / "b.meshes.h5"
    command = ("refine", meshes, "--detections", detections, "-o", out, "--loops", "2", "--quiet")
    done = hmr(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out) and done.stderr == ""
    with open_artefact(out, "meshes") as table:
        assert table.n_rows == 6 and table.read("extra/error_after").mean() < table.read("extra/error_before").mean()
        assert table.attrs["model"]["sha256"] and table.attrs["params"]["loops"] == 2
    for flags, code, word in (
        (("--mode", "sideways"), 2, "mode"),
        (("--ckpt", tmp_path / "none.pt"), 4, "none.pt"),
        (("--loops", "3"), 3, "force"),  # another target is there
    ):
        wrong = hmr(*command, *flags)
        assert wrong.returncode == code, wrong.stderr
        assert word in wrong.stderr and len(wrong.stderr.strip().splitlines()) <= 3


def test_published_weights_want_their_features(tmp_path: Path) -> None:
    """A checkpoint as published (stand-in weights) is recognised; without features, one line says what is missing."""
    torch.manual_seed(0)
    weights = {f"ema_model.model.{k}": v for k, v in Denoiser().state_dict().items()}
    torch.save({"step": 1, "ema": weights}, tmp_path / "model-100.pt")
    width = (128 + 64) * 24
    stats = {"pose_feats": 3072, "cam_shape_feats": 1536}
    np.savez(
        tmp_path / "pare_feat_stats.npz",
        **{f"{k}_mean": np.zeros(n) for k, n in stats.items()},
        **{f"{k}_std": np.ones(n) for k, n in stats.items()},
    )
    world = crowd(4)
    meshes, detections = (
        save(world.meshes, tmp_path / "a.meshes.h5"),
        save(world.detections, tmp_path / "a.detections.h5"),
    )
    command = (
        "refine",
        meshes,
        "--detections",
        detections,
        "--ckpt",
        tmp_path / "model-100.pt",
        "--preset",
        "fast",
        "--loops",
        "1",
    )
    bare = hmr(*command, "-o", tmp_path / "b.meshes.h5")
    assert bare.returncode == 4 and "pare features" in bare.stderr

    from stages.artefacts.kinds import Column
    from stages.artefacts.table import in_memory
    from stages.engine.job import Job, RunOptions
    from stages.engine.runner import run_whole

    d = world.detections
    column = Column("features/pare", "f4", ("R", width))
    table = in_memory(
        "features", frames=d.frames, rows=d.rows, columns={"features/pare": np.zeros((4, width), np.float32)}
    )
    job = Job(stage="test", kind="features", params=None, inputs={}, columns=(column,), group_attrs={"features": {}})
    run_whole(job, lambda: table, tmp_path / "a.features.h5", RunOptions())
    done = hmr(*command, "--features", tmp_path / "a.features.h5", "-o", tmp_path / "b.meshes.h5")
    assert done.returncode == 0, done.stderr
    (tmp_path / "pare_feat_stats.npz").unlink()
    lost = hmr(*command, "--features", tmp_path / "a.features.h5", "-o", tmp_path / "c.meshes.h5")
    assert lost.returncode == 4 and "pare_feat_stats.npz" in lost.stderr


def test_a_refiner_from_outside(tmp_path: Path) -> None:
    """docs/examples/refiner.py moves bodies sideways; what it does not have is refused, before anything is written."""
    examples = {"PYTHONPATH": f"{ROOT}:{ROOT / 'docs' / 'examples'}"}
    world = crowd(6)
    xy, score = (world.detections.read(f"keypoints/{name}").copy() for name in ("xy", "score"))
    xy += np.array([12.0, -5.0], np.float32)
    score[2] = 0  # nobody is visible
    shifted = with_keypoints(world, xy, score)
    meshes, detections = (
        save(shifted.meshes, tmp_path / "a.meshes.h5"),
        save(shifted.detections, tmp_path / "a.detections.h5"),
    )
    out = tmp_path / "b.meshes.h5"
    command = ("refine", meshes, "--detections", detections, "--model", "refiner:Recentred", "-o", out, "--quiet")
    for flags, text in (
        (("--loops", "3"), "recentred has no choice of --loops"),
        (("--mode", "video"), "recentred has no --mode video"),
        (("--no-hips",), "--hips"),
    ):
        refused = hmr(*command, *flags, **examples)
        assert refused.returncode == 2 and text in refused.stderr and not out.exists(), refused.stderr
    done = hmr(*command, **examples)
    assert done.returncode == 0, done.stderr
    with open_artefact(out, "meshes") as table:
        assert table.attrs["model"] == {"name": "recentred", "sha256": "", "licence": "CC0"}
        assert table.attrs["params"]["model"] == "refiner:Recentred"
        assert table.read("extra/refined").tolist() == [1, 1, 0, 1, 1, 1]
        before, after = table.read("extra/error_before"), table.read("extra/error_after")
        refined = [0, 1, 3, 4, 5]
        assert (after[refined] < 0.1 * before[refined]).all() and before[2] == after[2] == 0
        moved = table.read("smpl/transl") - world.meshes.read("smpl/transl")
        np.testing.assert_array_equal(moved[2], 0)
        assert (moved[refined, :2] != 0).all() and (moved[refined, 2] == 0).all()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("collections:OrderedDict", "no subclass of stages.models.base.Refiner"),
        ("stages.models.base:Refiner", "does not define __call__, load"),
        ("nobody", "no model 'nobody'"),
    ],
)
def test_classes_that_are_no_refiners(tmp_path: Path, model: str, text: str) -> None:
    world = crowd(2)
    meshes, detections = (
        save(world.meshes, tmp_path / "a.meshes.h5"),
        save(world.detections, tmp_path / "a.detections.h5"),
    )
    done = hmr("refine", meshes, "--detections", detections, "--model", model, "-o", tmp_path / "b.meshes.h5")
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr
