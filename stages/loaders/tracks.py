"""The rows of a table as tracks: who is the same person over time, one take after the other.

A take is what one camera saw without a break: the frames of a video, numbered images that have times, or, if asked for,
all images of a view in their order. Tracks are numbered through the whole table, so a number is one person of one take.
Nobody is added and nothing is filled in; a row that nobody follows is a track of its own.

    track = link(table)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.errors import ArtefactError
from stages.keypoints.oks import sigmas
from stages.keypoints.tracking import Tracker
from stages.params import MAX_GAP

SEQUENCE_FPS = 25.0  # assumed where images without times are tracked
BLOCK = 4096  # rows whose keypoints are in memory at once


@dataclasses.dataclass(frozen=True)
class TrackCount:
    """rows: all of the table; joined: those that share their track with another; tracks: how many these are."""

    rows: int
    joined: int
    tracks: int

    def text(self) -> str:
        """For people: "57 of 60 rows joined into 2 tracks, 3 rows alone"."""
        rest = self.rows - self.joined
        alone = f", {rest} {'row' if rest == 1 else 'rows'} alone" if rest else ""
        return f"{self.joined} of {self.rows} rows joined into {self.tracks} tracks{alone}"


def takes(frames: Mapping[str, np.ndarray], *, untimed: bool = False) -> np.ndarray:
    """The take (F,) of each frame, -1 for those of none: an image without a time, unless `untimed`.

    A video seen by a view is a take. Images of a view are one as long as their times rise; images without times are
    taken in their order.
    """
    source, view, time = frames["source"], frames["view"], frames["time"]
    take = np.full(len(source), -1)
    member = (source >= 0) | np.isfinite(time) | untimed
    count = 0
    for key in sorted({(int(s), int(v)) for s, v in zip(source[member], view[member], strict=True)}):
        indices = np.flatnonzero(member & (source == key[0]) & (view == key[1]))
        again = np.r_[False, np.diff(time[indices]) <= 0] if key[0] < 0 else np.zeros(len(indices), bool)
        take[indices] = count + np.cumsum(again)
        count = int(take[indices[-1]]) + 1
    return take


def link(table: Artefact, *, untimed: bool = False, fps: float = SEQUENCE_FPS, max_gap: float = MAX_GAP) -> np.ndarray:
    """Track numbers (R,) of all rows; -1 in frames of no take, for failed rows and boxes that are not finite.

    untimed: images without times count too, `fps` a second. max_gap: s after which a person is not found again (at
    least three frames). Rows without keypoints are followed by their boxes. Raises ArtefactError for detections whose
    joints have no names.
    """
    track = np.full(table.n_rows, -1, np.int32)
    names = list(table.group_attrs("keypoints").get("joints") or ()) if table.has("keypoints/xy") else []
    if table.has("keypoints/xy") and table.shape("keypoints/xy")[1] != len(names):
        raise ArtefactError("detections without joint names cannot be tracked")
    take = takes(table.frames, untimed=untimed)
    count = 0
    for number in range(take.max(initial=-1) + 1):
        indices = np.flatnonzero(take == number)
        time = np.asarray(table.frames["time"], float)[indices]
        if not np.isfinite(time).all():
            time = np.arange(len(indices)) / fps
        gap = max(max_gap, 3 * float(np.median(np.diff(time)))) if len(indices) > 1 else max_gap
        tracker = Tracker(sigmas(names), first=count, max_gap=gap)
        for i, rows, keypoints in _frames(table, indices, len(names)):
            size = tuple(table.frames["size"][indices[i]].tolist())
            track[rows] = tracker.step(time[i], table.rows["box"][rows], keypoints, size if min(size) else None)
        count = tracker.count
    return track


def _frames(table: Artefact, frames: np.ndarray, joints: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of each frame with people: its index in `frames`, its rows (n,) and their keypoints (n, J, 3). Keypoints are read
    in blocks, so that memory does not grow with the video."""
    good = np.flatnonzero(table.rows["status"] == OK)
    order = good[np.argsort(table.rows["frame"][good], kind="stable")]
    frame = table.rows["frame"][order]
    low, high = np.searchsorted(frame, frames), np.searchsorted(frame, frames, side="right")
    block, start = np.zeros((0, joints, 3)), 0
    for i in np.flatnonzero(high > low):
        a, b = int(low[i]), int(high[i])
        if not start <= a <= b <= start + len(block):
            start = a
            block = _keypoints(table, order[a : max(b, a + BLOCK)], joints)
        yield int(i), order[a:b], block[a - start : b - start]


def _keypoints(table: Artefact, rows: np.ndarray, joints: int) -> np.ndarray:
    """x, y, score (n, J, 3); no joints (J = 0) where the table has no keypoints."""
    if not joints:
        return np.zeros((len(rows), 0, 3))
    return np.concatenate([table.read("keypoints/xy", rows), table.read("keypoints/score", rows)[..., None]], -1)


def counted(table: Artefact) -> TrackCount:
    """How many rows are joined into how many tracks."""
    track = table.rows["track"]
    _, length = np.unique(track[track >= 0], return_counts=True)
    return TrackCount(table.n_rows, int(length[length > 1].sum()), int((length > 1).sum()))


def tell(result: Path | Artefact, report: Any, *, untimed: bool = False) -> None:
    """Say how many rows of a finished table were joined, and warn if it was nobody in several frames of a take.

    Nothing is said of single images, or of a table that other shards have yet to finish.
    """
    if isinstance(result, Path) and not result.is_file():
        return
    with open_artefact(result) if isinstance(result, Path) else contextlib.nullcontext(result) as table:
        count = counted(table)
        occupied = np.bincount(takes(table.frames, untimed=untimed)[np.unique(table.rows["frame"])] + 1)[1:]
    if not count.joined and (occupied > 1).any():
        report.warn(f"no row was joined: {int(occupied.sum())} frames show somebody, nobody in two of them")
    elif len(occupied):
        report.note(f"tracks: {count.text()}")
