"""The packaged recoverer keeps what its model card promises (the full table: make accuracy)."""

from __future__ import annotations

import pytest

from benchmarks import accuracy
from stages.models.embedded import EmbeddedRecoverer
from stages.models.embedded.recoverer import WEIGHTS
from tests.helpers import fixtures


@pytest.fixture(scope="module")
def model() -> EmbeddedRecoverer:
    return EmbeddedRecoverer.load()


def test_motion_capture_that_it_never_saw(model: EmbeddedRecoverer) -> None:
    rows = accuracy.mocap(model, fixtures.find("mocap"))
    for row in rows:
        if row["target"]:
            assert row["mpjpe"] <= row["target"][0] and row["pa_mpjpe"] <= row["target"][1], row
        if row["case"] == "3 px, 32 % scattered missing":
            assert 0.30 < row["missing"] < 0.34
        # Confidence means what it says: the share of joints within 10 cm is foretold.
        assert abs(row["within_10cm"] - row["said_within_10cm"]) < 0.12, row
    clean, missing = rows[0], rows[2]
    assert clean["said_within_10cm"] > missing["said_within_10cm"]


def test_annotated_photos(model: EmbeddedRecoverer) -> None:
    found = accuracy.photos(model, fixtures.PHOTOS / "free")
    assert found["PCK@0.2 of the half box"] >= 0.95
    assert found["reprojection / box's longer side"] <= 0.06 >= found["reprojection / keypoints' longer side"]
    assert found["recovered of these"] == found["people with 5 or more keypoints"] > 20


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 15e6
