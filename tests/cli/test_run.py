"""The main job: pictures in, bodies, overlays, GLB and a report out, in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.artefact import open_artefact
from stages.assets import find
from stages.pictures import write_image
from stages.synth import build
from tests.cli.runner import hmr


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
    report = Path(result["report"]).read_text()
    assert report.count("<img") >= 2 and "http://" not in report.replace("http://www.w3.org", "")
    assert list((tmp_path / "out" / "models").glob("*.glb"))
    again = hmr("run", "--detections", scenes, "-o", tmp_path / "out", "--json")
    assert again.returncode == 0 and "up to date" in again.stderr


def test_the_same_as_stage_by_stage(scenes: Path, tmp_path: Path) -> None:
    assert hmr("run", "--detections", scenes, "-o", tmp_path / "out", "--no-refine", "--export", "none").returncode == 0
    assert hmr("recover", scenes, "-o", tmp_path / "meshes.h5").returncode == 0
    with open_artefact(tmp_path / "out" / "people.meshes.h5") as a, open_artefact(tmp_path / "meshes.h5") as b:
        for name in a.columns():
            assert a.read(name).tobytes() == b.read(name).tobytes()


@pytest.mark.skipif(find("blazepose") is None, reason="the detector is not on this machine: hmr assets get blazepose")
def test_a_photo_with_nobody_goes_through(tmp_path: Path) -> None:
    import numpy as np

    write_image(tmp_path / "wall.jpg", np.full((240, 320, 3), 130, np.uint8))
    done = hmr("run", tmp_path / "wall.jpg", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    with open_artefact(json.loads(done.stdout)["meshes"]) as meshes:
        assert meshes.n_rows == 0


@pytest.mark.skipif(find("blazepose") is None, reason="the detector is not on this machine: hmr assets get blazepose")
def test_a_rendered_photo_from_pixels_to_a_body(tmp_path: Path) -> None:
    write_image(tmp_path / "scene.jpg", build.draw("synth", 0))
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
