"""heatmaps, view and export as people call them: files in, files out, one line per mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.artefacts.schema import find_column
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from tests.helpers.cli import hmr
from tests.helpers.people import images_with_people


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos with two people each: photos, d.h5, m.h5."""
    folder = tmp_path_factory.mktemp("artefacts")
    meshes, detections = images_with_people(folder, 2, frames=2)
    meshes.attrs["root"] = detections.attrs["root"] = "."
    for name, table in (("d.h5", detections), ("m.h5", meshes)):
        groups = {g: table.group_attrs(g) for g in ("keypoints", "smpl", "joints") if table.group_attrs(g)}
        job = Job(
            stage="import", kind=table.kind, params={}, inputs={}, group_attrs=groups, attrs={"root": "."},
            columns=tuple(find_column(table.kind, c) for c in table.columns()),
        )  # fmt: skip
        run_whole(job, lambda table=table: table, folder / name, RunOptions())
    return folder


def test_heatmaps_view_and_export(folder: Path) -> None:
    made = hmr("heatmaps", "d.h5", "-o", "h.h5", cwd=folder)
    assert (made.returncode, made.stdout) == (0, "h.h5\n"), made.stderr

    made = hmr("view", "m.h5", "--detections", "d.h5", "-o", "pictures", "--device", "cpu", "--json", cwd=folder)
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["pictures"] == 2 and (folder / result["report"]).stat().st_size > 20_000

    made = hmr("export", "m.h5", "-o", "models", "--format", "glb,npz", "--device", "cpu", "--json", cwd=folder)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["files"] == 2 + 4


def test_mistakes_are_one_line(folder: Path) -> None:
    for args, code, says in (
        (["export", "m.h5", "-o", "one.glb"], 2, "2 files"),
        (["view", "m.h5", "-o", "x", "--root", "elsewhere", "--device", "cpu"], 3, "is not below elsewhere"),
    ):
        made = hmr(*args, cwd=folder)
        assert made.returncode == code and says in made.stderr, made.stderr
        assert len(made.stderr.strip().splitlines()) == 1 and not made.stdout
