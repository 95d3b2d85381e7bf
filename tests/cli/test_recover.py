"""`hmr recover` from the command line: the path on stdout, known faults with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from tests.helpers.cli import hmr
from tests.helpers.people import standing_people


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of a picture that is nowhere, imported from COCO results."""
    folder = tmp_path_factory.mktemp("recover")
    keypoints, _ = standing_people(3)
    book = {
        "images": [{"id": 1, "file_name": "nowhere.jpg", "width": 640, "height": 480}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [0, 0, 640, 480], "num_keypoints": 17,
             "keypoints": np.concatenate([person[:, :2], np.full((17, 1), 2)], 1).ravel().tolist()}
            for k, person in enumerate(keypoints)
        ],
        "categories": [],
    }  # fmt: skip
    (folder / "people.json").write_text(json.dumps(book))
    out = folder / "people.detections.h5"
    done = hmr("import", "coco", folder / "people.json", "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def test_recover(detections: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.meshes.h5"
    done = hmr("recover", detections, "-o", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    with open_artefact(out, "meshes") as made:
        assert made.n_rows == 3 and (made.rows["status"] == 0).all()
        assert made.attrs["model"]["name"] == "embedded" and made.has("joints/confidence")
    again = hmr("recover", detections, "-o", out, "--json")
    assert again.returncode == 0 and "up to date" in again.stderr
    told = json.loads(again.stdout)
    assert told["out"] == str(out) and told["rows"] == 3 and told["failed"] == 0


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--model", "nobody"], 2, "no model 'nobody'"),
        (["--ckpt", "absent.safetensors"], 4, "absent.safetensors"),
    ],
)
def test_faults(detections: Path, tmp_path: Path, flags: list[str], code: int, text: str) -> None:
    done = hmr("recover", detections, "-o", tmp_path / "x.h5", *flags)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout and not (tmp_path / "x.h5").exists()


def test_a_gender_needs_a_body_to_be_of(tmp_path: Path) -> None:
    people = tmp_path / "x.detections.h5"
    assert hmr("synth", "synth", "--pictures", 1, "-o", people).returncode == 0
    for gender, says in (("robot", "no such choice"), ("female", "--body")):
        done = hmr("recover", people, "--gender", gender, "-o", tmp_path / "x.meshes.h5")
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
