"""The main job: pictures in, bodies, overlays, GLB and a report out, in one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.geometry.cameras import project
from stages.media.images import write_image
from stages.smpl.body import load_body
from stages.synthetic import examples
from tests.helpers.cli import hmr
from tests.helpers.fixtures import PHOTOS


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "pc.detections.h5"
    done = hmr("synth", "synth-pc", "--pictures", 2, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def test_the_chain_from_given_people(scenes: Path, tmp_path: Path) -> None:
    done = hmr("run", "--detections", scenes, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    with open_artefact(result["meshes"], "meshes") as meshes, open_artefact(scenes) as detections:
        assert meshes.n_rows == detections.n_rows >= 4
        assert meshes.rows_fingerprint == detections.rows_fingerprint
    with open_artefact(result["refined"], "meshes") as refined:
        assert refined.read("extra/refined").any() and (refined.rows["status"] == 0).all()
    report = Path(result["report"]).read_text()
    assert report.count("<img") >= 2 and "http://" not in report.replace("http://www.w3.org", "")
    assert list((tmp_path / "out" / "models").glob("*.glb"))
    again = hmr("run", "--detections", scenes, "-o", tmp_path / "out", "--json")
    assert again.returncode == 0 and "up to date" in again.stderr


def test_the_same_as_stage_by_stage(scenes: Path, tmp_path: Path) -> None:
    assert hmr("run", "--detections", scenes, "-o", tmp_path / "out", "--no-refine", "--export", "none").returncode == 0
    assert not (tmp_path / "out" / "people.refined.meshes.h5").exists()
    assert hmr("recover", scenes, "-o", tmp_path / "meshes.h5").returncode == 0
    with open_artefact(tmp_path / "out" / "people.meshes.h5") as a, open_artefact(tmp_path / "meshes.h5") as b:
        for name in a.columns():
            assert a.read(name).tobytes() == b.read(name).tobytes()


def test_a_photo_with_nobody_goes_through(tmp_path: Path) -> None:
    write_image(tmp_path / "wall.jpg", np.full((240, 320, 3), 130, np.uint8))
    done = hmr("run", tmp_path / "wall.jpg", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    with open_artefact(json.loads(done.stdout)["meshes"]) as meshes:
        assert meshes.n_rows == 0


def test_a_rendered_photo_from_pixels_to_a_body(tmp_path: Path) -> None:
    write_image(tmp_path / "scene.jpg", examples.draw_example("synth", 0))
    done = hmr("run", tmp_path / "scene.jpg", "-o", tmp_path / "out", "--json", "--focal", 700)
    assert done.returncode == 0, done.stderr
    with open_artefact(json.loads(done.stdout)["meshes"]) as meshes:
        assert meshes.n_rows == 1 and meshes.rows["status"][0] == 0


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "--detections"),
        (["nothing.jpg"], 3, "nothing.jpg"),
        (["x.jpg", "--shard", "0/2"], 2, "one process"),
    ],
)
def test_what_cannot_be_run_is_one_line(args: list[str], code: int, says: str, tmp_path: Path) -> None:
    done = hmr("run", *args, "-o", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == code and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_every_free_photo_goes_through(tmp_path: Path) -> None:
    """With the detector, and with the annotated keypoints, whose joints the bodies meet within 6 % of the box."""
    found = hmr("run", PHOTOS / "free", PHOTOS / "free_unannotated", "-o", tmp_path / "found")
    assert found.returncode == 0, found.stderr
    given = tmp_path / "given.detections.h5"
    notes = PHOTOS / "free" / "person_keypoints.json"
    assert hmr("import", "coco", notes, "--images", PHOTOS / "free", "-o", given).returncode == 0
    done = hmr("run", "--detections", given, "-o", tmp_path / "given", "--json")
    assert done.returncode == 0, done.stderr
    errors = []
    with open_artefact(json.loads(done.stdout)["meshes"]) as meshes, open_artefact(given) as people:
        body, K = load_body("embedded"), people.frames["K"][people.rows["frame"]]
        names = ("global_orient", "body_pose", "betas", "transl")
        with torch.no_grad():
            vertices = body(*(torch.from_numpy(meshes.read(f"smpl/{name}")).nan_to_num() for name in names)).vertices
            seen = project(body.regress(vertices, "coco17"), torch.from_numpy(K)).numpy()
        score, box = people.read("keypoints/score"), people.rows["box"]
        for row in np.flatnonzero((meshes.rows["status"] == 0) & ((score > 0).sum(1) >= 8)):
            visible = score[row] > 0
            gap = np.linalg.norm(seen[row] - people.read("keypoints/xy")[row], axis=-1)[visible].mean()
            errors.append(gap / (box[row, 2:] - box[row, :2]).max())
    assert len(errors) >= 15 and np.mean(errors) <= 0.06
