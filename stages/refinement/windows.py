"""Which rows are refined together: single people, windows of a track, the views of one person at one moment.

A window is a list of elements. An element is a row, or a frame between two rows of a track that has no usable row and
is interpolated (slerp), so that the smoothness term sees steps of one frame. Windows hold indices alone, so their
memory hardly depends on the length of a video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stages.artefacts.kinds import OK
from stages.errors import InputError, UsageError


@dataclasses.dataclass(frozen=True)
class Window:
    """n elements. All arrays are (n,).

    row: the row, or -1 - k for the k-th interpolated frame · before, after: the rows between which its values lie, both
    the row itself where it is one · fraction: how far from `before` to `after` · consecutive: one frame after the
    previous element, of the same track · is_core: the result of this window counts; the other elements are margin.
    """

    row: np.ndarray
    before: np.ndarray
    after: np.ndarray
    fraction: np.ndarray
    consecutive: np.ndarray
    is_core: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> Window:
        """Rows (n,), none of them consecutive or interpolated."""
        n = len(rows)
        return cls(rows, rows, rows, np.zeros(n), np.zeros(n, bool), np.ones(n, bool))

    @classmethod
    def concatenate(cls, windows: Sequence[Window]) -> Window:
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(window, name) for window in windows]) for name in names})

    def cut(self, low: int, high: int, margin: int) -> Window:
        """Elements low to high as the core, with up to `margin` more on both sides."""
        start, stop = max(low - margin, 0), min(high + margin, len(self))
        parts = {f.name: getattr(self, f.name)[start:stop].copy() for f in dataclasses.fields(self)}
        parts["consecutive"][0] = False
        parts["is_core"] = (np.arange(start, stop) >= low) & (np.arange(start, stop) < high)
        return Window(**parts)


@dataclasses.dataclass(frozen=True)
class Interpolated:
    """The k frames inside tracks without a usable row: frame (k,), rows before and after (k,), fraction (k,)."""

    frame: np.ndarray
    before: np.ndarray
    after: np.ndarray
    fraction: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def none(cls) -> Interpolated:
        empty = np.zeros(0, int)
        return cls(empty, empty, empty, np.zeros(0))


def track_windows(
    frame: np.ndarray,
    track: np.ndarray,
    source: np.ndarray,
    status: np.ndarray,
    *,
    max_gap: int,
    length: int,
    margin: int,
) -> tuple[list[Window], Interpolated]:
    """Windows of all tracks, and the frames that are interpolated. frame, track, status (R,) of the rows, source (F,).

    Gaps of up to `max_gap` frames are interpolated; longer ones separate. Windows of `length` frames begin at fixed
    frames of the track, so the result does not depend on how rows are batched. A row without track is a window of its
    own. Raises InputError when a track has two rows in one frame.
    """
    good = np.flatnonzero(status == OK)
    windows = [Window.of_rows(row[None]) for row in good[track[good] < 0]]
    good = good[track[good] >= 0]
    pieces = _pieces(good[np.lexsort((frame[good], track[good], source[frame[good]]))], frame, track, source, max_gap)
    count = 0
    for piece in pieces:
        empty = np.flatnonzero(piece.row < 0)
        piece.row[empty] = -1 - count - np.arange(len(empty))
        count += len(empty)
        windows += [piece.cut(low, low + length, margin) for low in range(0, len(piece), length)]
    if not pieces:
        return windows, Interpolated.none()
    whole = Window.concatenate(pieces)
    gaps = whole.row < 0
    before, after, fraction = whole.before[gaps], whole.after[gaps], whole.fraction[gaps]
    frames = frame[before] + np.round(fraction * (frame[after] - frame[before])).astype(int)
    return windows, Interpolated(frames, before, after, fraction)


def _pieces(rows: np.ndarray, frame: np.ndarray, track: np.ndarray, source: np.ndarray, max_gap: int) -> list[Window]:
    """Rows, sorted by source, track and frame, as one window for each track, or part of it between long gaps."""
    if not len(rows):
        return []
    key = np.stack([source[frame[rows]], track[rows]], 1)
    same_track = np.r_[False, (key[1:] == key[:-1]).all(1)]
    step = np.r_[0, np.diff(frame[rows])]
    repeated = np.flatnonzero(same_track & (step == 0))
    if len(repeated):
        row = int(rows[repeated[0]])
        text = f"track {track[row]} has two rows in frame {frame[row]} (row {row})"
        raise InputError(text, "a track is one person: at most one row a frame")
    cuts = np.flatnonzero(~same_track | (step > max_gap + 1))[1:]
    return [_every_frame(piece, frame[piece]) for piece in np.split(rows, cuts)]


def _every_frame(rows: np.ndarray, frames: np.ndarray) -> Window:
    """One element a frame from the first to the last of `frames` (ascending) of `rows`; row -1 where there is none."""
    every = np.arange(frames[0], frames[-1] + 1)
    index = np.searchsorted(frames, every, side="right") - 1
    has_row = frames[index] == every
    after = np.where(has_row, index, np.minimum(index + 1, len(rows) - 1))
    return Window(
        row=np.where(has_row, rows[index], -1),
        before=rows[index],
        after=rows[after],
        fraction=(every - frames[index]) / np.maximum(frames[after] - frames[index], 1),
        consecutive=np.arange(len(every)) > 0,
        is_core=np.ones(len(every), bool),
    )


def view_windows(
    frame: np.ndarray, track: np.ndarray, view: np.ndarray, time: np.ndarray, status: np.ndarray
) -> list[Window]:
    """The rows of one person at one moment in several views. frame, track, status (R,); view, time (F,).

    People are told apart by track; without tracks each frame may show one person. Raises InputError where it shows
    several, UsageError when there is one frame only.
    """
    if len(frame) and len(view) < 2:
        raise UsageError("--mode views needs several frames, this artefact has one", "give all views to one hmr detect")
    moment = moments(view, time)
    good = np.flatnonzero(status == OK)
    person = np.where(track[good] >= 0, track[good], -1)
    key = np.stack([moment[frame[good]], person, frame[good]], 1)
    repeated = _first_repeated(key)
    if repeated is not None:
        row = int(good[repeated])
        raise InputError(
            f"frame {frame[row]} shows several people who cannot be told apart between views (row {row})",
            "give each person one track number in all views",
        )
    order = np.lexsort((good, key[:, 1], key[:, 0]))
    is_first = np.r_[True, (key[order][1:, :2] != key[order][:-1, :2]).any(1)][: len(order)]
    groups = np.split(order, np.flatnonzero(is_first)[1:])
    return [Window.of_rows(np.sort(good[group])) for group in groups if len(group)]


def moments(view: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The moment (F,) of each frame: frames of equal time or, without times, of equal number within their view. Photos
    of a single view number are one moment, seen from as many positions."""
    if len(np.unique(view)) < 2:
        return np.zeros(len(view), int)
    if np.isfinite(time).all():
        return np.unique(np.round(time, 3), return_inverse=True)[1]
    moment = np.zeros(len(view), int)
    for each in np.unique(view):
        moment[view == each] = np.arange((view == each).sum())
    return moment


def _first_repeated(key: np.ndarray) -> int | None:
    _, first, count = np.unique(key, axis=0, return_index=True, return_counts=True)
    return None if (count < 2).all() else int(first[count > 1][0])
