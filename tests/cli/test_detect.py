"""hmr detect and hmr assets as people call them: exit codes, one line of error, stdout for results only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.media.images import write_image
from tests.helpers import fixtures
from tests.helpers.cli import hmr

WHITE = ("--detector", "tests.helpers.rectangle_detector:Rectangles")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    image = np.zeros((120, 160, 3), np.uint8)
    image[20:100, 30:70] = 255
    write_image(folder / "one.png", image)
    write_image(folder / "zwei leer é.png", image * 0)
    return folder


def test_a_path_on_stdout_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.detections.h5"
    done = hmr("detect", photos, "-o", out, *WHITE)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    with open_artefact(out) as table:
        assert (table.n_frames, table.n_rows) == (2, 1)
    again = hmr("detect", photos, "-o", out, *WHITE, "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["out"] == str(out)
    assert "up to date" in again.stderr


def test_imported_boxes_get_keypoints(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("name,x1,y1,x2,y2\none.png,30,20,70,100\none.png,90,20,90,100\n")
    boxes, out = tmp_path / "boxes.h5", tmp_path / "x.detections.h5"
    done = hmr("import", "boxes", tmp_path / "boxes.csv", "--images", photos, "-o", boxes)
    assert done.returncode == 0, done.stderr
    done = hmr("detect", "--boxes", boxes, "-o", out, *WHITE)
    assert done.returncode == 0, done.stderr
    with open_artefact(out) as table:
        assert table.rows["status"].tolist() == [0, 1] and table.read("keypoints/xy").shape == (2, 17, 2)


def test_a_detector_that_is_not_here_is_exit_4_with_the_hint(photos: Path, tmp_path: Path) -> None:
    offline = {"HMR_CACHE": str(tmp_path / "none"), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    for detector in ("vitpose", "blazepose", "mmpose"):
        done = hmr("detect", photos, "-o", tmp_path / "x.h5", "--detector", detector, **offline)
        assert done.returncode == 4 and done.stdout == "", (detector, done.stderr)
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2
        assert not (tmp_path / "x.h5").exists()
    no_index = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    done = hmr("assets", "get", "blazepose", **offline, **no_index)
    assert done.returncode == 4 and "hmr assets get blazepose" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["gone.jpg"], 3), (["."], 3), ([], 2), (["photos", "--fov", "300"], 2), (["--boxes", "gone.h5"], 3)],
)
def test_exit_codes(photos: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "empty" if arguments[:1] == ["."] else tmp_path
    done = hmr("detect", *arguments, "-o", tmp_path / "x.h5", *WHITE, cwd=folder)
    assert done.returncode == code and done.stdout == "", done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x.h5").exists()


def test_a_photo_without_any_download(tmp_path: Path) -> None:
    """On a fresh clone without network people are found, and one line says which detector is better."""
    photo = fixtures.find("photos/free/000000000785.jpg")
    fresh = {"HMR_CACHE": str(tmp_path / "none"), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = hmr("detect", photo, "-o", tmp_path / "x.h5", "--device", "cpu", **fresh)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "rtmpose" in line]
    assert len(said) == 1 and "detector movenet" in said[0] and "hmr assets get rtmpose" in said[0], done.stderr
    with open_artefact(tmp_path / "x.h5") as table:
        assert table.n_rows == 1 and table.attrs["params"]["detector"] == "movenet"
        assert table.attrs["model"]["name"] == "movenet" and table.attrs["model"]["licence"] == "Apache-2.0"
        assert table.attrs["best_detector"] == "rtmpose" and not table.attrs["detector_is_best_available"]
    assert not (tmp_path / "none").exists()
    named = hmr("detect", photo, "-o", tmp_path / "y.h5", "--device", "cpu", "--detector", "movenet", **fresh)
    assert named.returncode == 0 and "rtmpose" not in named.stderr  # who chose need not be told


def test_a_detector_of_ones_own_is_not_compared(photos: Path, tmp_path: Path) -> None:
    assert hmr("detect", photos, "-o", tmp_path / "x.h5", *WHITE).returncode == 0
    with open_artefact(tmp_path / "x.h5") as table:
        assert "best_detector" not in table.attrs and "detector_is_best_available" not in table.attrs


def test_doctor_says_which_detector_would_be_better(tmp_path: Path) -> None:
    done = hmr("doctor", "--json", HMR_CACHE=str(tmp_path), HF_HUB_CACHE=str(tmp_path / "hub"))
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "detector")
    assert "movenet" in check["found"] and "hmr assets get" in check["hint"] and not check["ready"]
    assert json.loads(done.stdout)["ready"]  # the embedded one is enough for hmr run


def test_assets_list(tmp_path: Path) -> None:
    done = hmr("assets", "list", "--json", HMR_CACHE=str(tmp_path))
    table = {row["name"]: row for row in json.loads(done.stdout)["assets"]}
    assert {"blazepose", "rtmpose", "vitpose"} == set(table) and "mmpose/v1/projects" in table["rtmpose"]["source"]
    assert table["blazepose"]["ready"] is False and table["blazepose"]["licence"] == "Apache-2.0"
    assert hmr("assets", "get", "nonsense").returncode == 2


@pytest.mark.parametrize("command", [["detect"], ["assets", "get"], ["assets", "list"]])
def test_help_shows_examples(command: list[str]) -> None:
    done = hmr(*command, "--help")
    assert done.returncode == 0 and f"hmr {' '.join(command)}" in done.stdout and "Examples" in done.stdout
