"""Files of every released schema, written by that version, are opened and used by today's code.

tests/archives/<version>/README.md says how they were written. A new schema adds a folder; no folder is ever written
again. The scenes have exact ground truth, so that results are compared with numbers, not with other results.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_cli.app import main
from stages import open_artefact
from stages.artefacts.kinds import KINDS, OK

VERSIONS = sorted(p for p in (Path(__file__).parent / "archives").iterdir() if p.is_dir())


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder of one version."""
    return Path(shutil.copytree(request.param, tmp_path_factory.mktemp(request.param.name) / "archive"))


def hmr(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    """What `hmr ARGS --json` prints; it must exit with 0."""
    with pytest.raises(SystemExit) as exit:
        main([*map(str, args), "--json"])
    out, err = capsys.readouterr()
    assert exit.value.code in (0, None), err
    return json.loads(out)


def test_every_kind_is_whole_and_named(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(archive.glob("*.h5"))
    infos = {file.name: hmr(capsys, "info", file) for file in files if file.is_file()}
    assert {info["kind"] for info in infos.values()} == set(KINDS)
    checked = hmr(capsys, "check", "--same-rows", *(archive / name for name in infos))
    assert all(file["ok"] for file in checked["files"]) and len(checked["files"]) == len(infos)
    assert {info["rows"]["ok"] for info in infos.values()} == {3}
    assert infos["scene.refined.meshes.h5"]["params"]["mode"] == "frame"
    assert infos["small.meshes.h5"]["model"]["name"] == "embedded"


def test_columns_hold_what_the_kind_says(archive: Path) -> None:
    with open_artefact(archive / "scene.detections.h5") as detections:
        assert detections.read("keypoints/xy").shape == (3, 17, 2)
        xy, score = detections.read("keypoints/xy"), detections.read("keypoints/score")
        names = detections.group_attrs("keypoints")["joints"]
    with open_artefact(archive / "scene.heatmaps.h5") as heatmaps:
        value, crop = heatmaps.read("heatmaps/value"), heatmaps.read("heatmaps/crop")
        stored = list(heatmaps.group_attrs("heatmaps")["joints"])
    for row in range(3):  # every Gaussian's maximum lies on its keypoint
        for joint, name in enumerate(names):
            x, y = crop[row] @ [*xy[row, joint], 1]
            heatmap = value[row, stored.index(name)].astype(float)
            if score[row, joint] > 0.5 and min(x, y) > 1 and max(x, y) < len(heatmap) - 2:
                at = np.unravel_index(heatmap.argmax(), heatmap.shape)
                assert np.abs(np.array(at) - [y, x]).max() <= 1, (row, name)
    with open_artefact(archive / "scene.features.h5") as features:
        vectors = features.read("features/prohmr")
        assert vectors.shape == (3, 2048) and np.isfinite(vectors).all() and vectors.std() > 0


def test_its_checkpoint_recovers_the_same_bodies(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the archived detections with the archived weights: what that version wrote."""
    made = archive / "again.meshes.h5"
    checkpoint = archive / "recoverer.safetensors"
    hmr(capsys, "recover", archive / "scene.detections.h5", "--ckpt", checkpoint, "-o", made)
    with open_artefact(made) as now, open_artefact(archive / "small.meshes.h5") as then:
        assert now.columns() == then.columns()
        for name in now.columns():
            np.testing.assert_allclose(now.read(name), then.read(name), atol=2e-5, err_msg=name)
        assert now.fingerprint == then.fingerprint


def test_finished_files_are_up_to_date(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever runs their old Makefile again computes nothing."""
    before = (archive / "small.meshes.h5").read_bytes()
    detections, checkpoint = archive / "scene.detections.h5", archive / "recoverer.safetensors"
    hmr(capsys, "recover", detections, "--ckpt", checkpoint, "-o", archive / "small.meshes.h5")
    hmr(capsys, "heatmaps", detections, "-o", archive / "scene.heatmaps.h5")
    assert (archive / "small.meshes.h5").read_bytes() == before


def test_scores_are_the_archived_ones(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_artefact(archive / "scene.scores.h5") as scores:
        then = scores.attrs["summary"]
    now = hmr(capsys, "eval", archive / "scene.detections.h5", "--meshes", archive / "scene.meshes.h5")
    assert then["mpjpe"] > 50 and then["failed"] == 0
    for name in ("mpjpe", "pa_mpjpe", "mpve", "occ_mpjpe", "pck", "error_2d"):
        assert now[name] == pytest.approx(then[name], rel=1e-5), name


def test_the_chain_goes_on_from_any_file(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recover, refine, view and export with today's default weights."""
    detections, meshes = archive / "scene.detections.h5", archive / "new.meshes.h5"
    hmr(capsys, "recover", detections, "--params-from", archive / "scene.meshes.h5", "-o", meshes)
    for source in (meshes, archive / "scene.meshes.h5"):
        refined = archive / f"refined-{source.name}"
        options = ("--detections", detections, "--params-from", archive / "scene.refined.meshes.h5")
        hmr(capsys, "refine", source, *options, "-o", refined)
        with open_artefact(refined) as table:
            assert table.rows["status"].tolist() == [OK] * 3 and table.read("extra/refined").all()
        assert hmr(capsys, "eval", detections, "--meshes", refined)["mpjpe"] < 250
    look = archive / "look"
    hmr(capsys, "view", archive / "scene.refined.meshes.h5", "--detections", detections, "-o", look)
    assert (look / "report.html").stat().st_size > 10_000
    hmr(capsys, "export", archive / "scene.refined.meshes.h5", "-o", archive / "models", "--format", "glb")
    assert list((archive / "models").glob("**/*.glb"))


def test_parts_of_shards_are_joined(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two shards were computed by that version; nobody joined them yet. The whole is what one process wrote."""
    for name, whole in (("shards.meshes.h5", "small.meshes.h5"), ("shards.scores.h5", "scene.scores.h5")):
        assert len(list((archive / f"{name}.parts").glob("part-*.npz"))) == 2
        hmr(capsys, "merge", archive / name)
        hmr(capsys, "check", archive / name)
        with open_artefact(archive / name) as merged, open_artefact(archive / whole) as expected:
            assert merged.columns() == expected.columns() and merged.fingerprint == expected.fingerprint
            assert merged.attrs.get("summary") == expected.attrs.get("summary")  # made when parts are joined
            for column in merged.columns():
                np.testing.assert_allclose(merged.read(column), expected.read(column), atol=1e-4, err_msg=column)
