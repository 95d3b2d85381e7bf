"""Which rows an acceleration is taken from: three consecutive frames of one track, in one clip and one view."""

from __future__ import annotations

import numpy as np
import pytest

from stages.artefacts.table import Artefact
from stages.evaluation.scorer import neighbours
from tests.helpers.small_artefacts import detections


def clips(frames: list[int], track: list[int], source: list[int], view: list[int]) -> Artefact:
    """One row per entry: its frame and track. source, view: one per frame."""
    table = detections(len(frames), per_frame=1)
    table.rows["frame"], table.rows["track"] = np.array(frames), np.array(track)
    table.frames["source"], table.frames["view"] = np.array(source), np.array(view)
    return table


@pytest.mark.parametrize("of", ["source", "view"])
def test_no_acceleration_across_two_clips_or_two_views(of: str) -> None:
    """Two clips (or cameras) one after the other, whose tracks have the same number."""
    same, changes = [0] * 6, [0, 0, 0, 1, 1, 1]
    numbers = {"source": same, "view": same} | {of: changes}
    before, after = neighbours(clips([0, 1, 2, 3, 4, 5], [7] * 6, **numbers))
    assert before.tolist() == [-1, 0, 1, -1, 3, 4]
    assert after.tolist() == [1, 2, -1, 4, 5, -1]


def test_no_acceleration_across_a_gap_or_another_track() -> None:
    table = clips([0, 1, 3, 4, 5, 5], [2, 2, 2, 2, 2, 9], [0] * 6, [0] * 6)
    before, after = neighbours(table)
    assert before.tolist() == [-1, 0, -1, 2, 3, -1]
    assert after.tolist() == [1, -1, 3, 4, -1, -1]
    table.rows["track"][:] = -1  # nobody is tracked
    assert (np.concatenate(neighbours(table)) == -1).all()
