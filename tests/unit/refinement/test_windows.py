"""Which rows are refined together."""

from __future__ import annotations

import numpy as np
import pytest

from stages.errors import InputError, UsageError
from stages.refinement.windows import track_windows, view_windows


def test_track_windows() -> None:
    frame = np.array([0, 0, 1, 3, 3, 4, 20, 5])
    track = np.array([7, -1, 7, 7, 8, 7, 7, 8])
    status = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    windows, interpolated = track_windows(frame, track, np.zeros(21, int), status, max_gap=4, length=3, margin=1)
    core = sorted(int(r) for u in windows for r in u.row[u.is_core])
    assert core == sorted([0, 1, 2, 3, 4, 5, 6, -1])  # every good row once, one interpolated frame, no failed row
    assert (
        interpolated.frame.tolist() == [2]
        and interpolated.before.tolist() == [2]
        and interpolated.fraction.tolist() == [0.5]
    )
    assert all(not u.consecutive[0] for u in windows) and max(len(u) for u in windows) <= 5
    with pytest.raises(InputError, match="two rows"):
        track_windows(
            np.array([0, 0]), np.array([1, 1]), np.zeros(1, int), np.zeros(2, int), max_gap=1, length=9, margin=1
        )


def test_view_windows() -> None:
    nan = np.full(4, np.nan)
    rows = {"frame": np.array([0, 1, 2, 3]), "track": np.full(4, -1), "status": np.zeros(4, int)}
    (photos,) = view_windows(**rows, view=np.zeros(4, int), time=nan)
    assert photos.row.tolist() == [0, 1, 2, 3]
    pairs = view_windows(**rows, view=np.array([0, 0, 1, 1]), time=np.array([0.0, 0.04, 0.04, 0.0]))
    assert sorted(u.row.tolist() for u in pairs) == [[0, 3], [1, 2]]
    in_order = view_windows(**rows, view=np.array([0, 0, 1, 1]), time=nan)
    assert sorted(u.row.tolist() for u in in_order) == [[0, 2], [1, 3]]
    with pytest.raises(UsageError):
        view_windows(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), nan[:1], np.zeros(1, int))
