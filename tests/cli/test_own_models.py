"""`--model package.module:Class`: networks from outside, as docs/examples shows them, and classes that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.artefacts.hdf5 import open_artefact
from stages.geometry import cameras
from stages.loaders.bodies import BodyLoader
from tests.helpers import dpmesh_standin as standin
from tests.helpers.cli import hmr

ROOT = Path(__file__).parents[2]
OUTSIDE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'docs' / 'examples'}"}


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of a photo."""
    return standin.photos(tmp_path_factory.mktemp("own"))


def test_a_recoverer_from_outside(detections: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.meshes.h5"
    done = hmr("recover", detections, "--model", "recoverer:StandingRecoverer", "-o", out, **OUTSIDE)
    assert done.returncode == 0, done.stderr
    with open_artefact(out, "meshes") as meshes:
        assert meshes.attrs["model"] == {"name": "standing", "sha256": "", "licence": "CC0"}
        bodies, box = BodyLoader(meshes), meshes.rows["box"]
        K = meshes.frames["K"][meshes.rows["frame"]]
        xy = cameras.project(bodies.vertices(np.arange(meshes.n_rows)).numpy(), K)
    low, high = xy.min(1), xy.max(1)
    height = box[:, 3] - box[:, 1]
    np.testing.assert_allclose((high - low)[:, 1] / height, 1, atol=0.05)
    assert (np.abs((low + high) / 2 - (box[:, :2] + box[:, 2:]) / 2) / height[:, None] < 0.05).all()
    again = hmr("info", out, "--json")
    assert again.returncode == 0 and "standing" in again.stdout


def test_an_extractor_from_outside(detections: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.features.h5"
    done = hmr(
        "features", detections, "--model", "extractor:ColourGrid", "--root", standin.PHOTOS, "-o", out, **OUTSIDE
    )
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(standin.PHOTOS / standin.USED[0]).convert("RGB")) / 255
    with open_artefact(out, "features") as features:
        colour, box = features.read("features/colour"), features.rows["box"].round().astype(int)
        assert features.group_attrs("features")["extractor"] == "colour-grid"
    for cells, (x0, y0, x1, y1) in zip(colour, box, strict=True):
        np.testing.assert_allclose(cells.mean((0, 1)), image[y0:y1, x0:x1].mean((0, 1)), atol=0.02)


@pytest.mark.parametrize(
    ("command", "model", "text"),
    [
        ("recover", "collections:OrderedDict", "no subclass of stages.models.base.PersonModel"),
        ("recover", "stages.models.base:PersonModel", "does not define __call__, load"),
        ("features", "os.path:join", "no subclass of stages.models.base.PersonModel"),
        ("features", "nobody", "no model 'nobody'"),
    ],
)
def test_classes_that_are_refused(detections: Path, tmp_path: Path, command: str, model: str, text: str) -> None:
    done = hmr(command, detections, "--model", model, "-o", tmp_path / "x.h5")
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "flag"), [("recover", "--focal"), ("features", "--precision")])
def test_options_that_a_network_does_not_have(detections: Path, tmp_path: Path, command: str, flag: str) -> None:
    model = {"recover": "recoverer:StandingRecoverer", "features": "extractor:ColourGrid"}[command]
    value = {"--focal": "first", "--precision": "float32"}[flag]
    done = hmr(command, detections, "--model", model, flag, value, "-o", tmp_path / "x.h5", **OUTSIDE)
    assert done.returncode == 2 and f"has no choice of {flag[2:]}" in done.stderr
