"""Which rows must be computed together: single people, windows of a track, views of one person.

A unit is a list of elements; an element is a row, or a frame between two rows of a track that has no usable row and is
filled in (slerp) so that smoothness sees even steps. Only indices live here, so memory hardly depends on the length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stages.artefacts.kinds import OK
from stages.errors import InputError, UsageError


@dataclasses.dataclass(frozen=True)
class Window:
    """Elements i: `row[i]`, or -1 - k for the k-th filled frame. Its values lie between rows `before[i]` and `after[i]`
    (both the row itself, if it is one) at `fraction[i]`. `linked[i]`: one frame after element i - 1 of the same track.
    `own[i]`: this unit's result counts (other elements are margin)."""

    row: np.ndarray
    before: np.ndarray
    after: np.ndarray
    fraction: np.ndarray
    linked: np.ndarray
    own: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def plain(cls, rows: np.ndarray) -> Window:
        """Rows without gaps and links."""
        return cls(rows, rows, rows, np.zeros(len(rows)), np.zeros(len(rows), bool), np.ones(len(rows), bool))

    @classmethod
    def join(cls, units: Sequence[Window]) -> Window:
        return cls(**{f.name: np.concatenate([getattr(u, f.name) for u in units]) for f in dataclasses.fields(cls)})

    def cut(self, low: int, high: int, margin: int) -> Window:
        """Elements low to high with up to `margin` more on both sides."""
        a, b = max(low - margin, 0), min(high + margin, len(self))
        parts = {f.name: getattr(self, f.name)[a:b].copy() for f in dataclasses.fields(self)}
        parts["linked"][0] = False
        parts["own"] = (np.arange(a, b) >= low) & (np.arange(a, b) < high)
        return Window(**parts)


@dataclasses.dataclass(frozen=True)
class Interpolated:
    """Frames inside tracks without a usable row: frame (k,), rows before and after (k,), fraction (k,)."""

    frame: np.ndarray
    before: np.ndarray
    after: np.ndarray
    fraction: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)


def track_windows(
    frame: np.ndarray,
    track: np.ndarray,
    source: np.ndarray,
    status: np.ndarray,
    *,
    max_gap: int,
    window: int,
    margin: int,
) -> tuple[list[Window], Interpolated]:
    """Windows of all tracks, and the frames that had to be filled. frame, track, status (R,) of the rows, source (F,).

    Gaps of up to `max_gap` frames are filled; longer ones separate. Windows begin at fixed places of the track, so the
    result does not depend on how rows are batched. A row without track is a unit of its own. Raises InputError when a
    track has two rows in one frame.
    """
    good = np.flatnonzero(status == OK)
    units = [Window.plain(row[None]) for row in good[track[good] < 0]]
    good = good[track[good] >= 0]
    order = good[np.lexsort((frame[good], track[good], source[frame[good]]))]
    pieces: list[Window] = []
    if len(order):
        key = np.stack([source[frame[order]], track[order]], 1)
        same = np.r_[False, (key[1:] == key[:-1]).all(1)]
        step = np.r_[0, np.diff(frame[order])]
        if (same & (step == 0)).any():
            row = int(order[np.flatnonzero(same & (step == 0))[0]])
            text = f"track {track[row]} has two rows in frame {frame[row]} (row {row})"
            raise InputError(text, "a track is one person: at most one row a frame")
        cuts = np.flatnonzero(~same | (step > max_gap + 1))[1:]
        pieces = [_every_frame(part, frame[part]) for part in np.split(order, cuts)]
    count = 0
    for piece in pieces:
        empty = np.flatnonzero(piece.row < 0)
        piece.row[empty] = -1 - count - np.arange(len(empty))
        count += len(empty)
        units += [piece.cut(low, low + window, margin) for low in range(0, len(piece), window)]
    if not pieces:
        none = np.zeros(0, int)
        return units, Interpolated(none, none, none, np.zeros(0))
    whole = Window.join(pieces)
    gaps = whole.row < 0
    before, after, fraction = whole.before[gaps], whole.after[gaps], whole.fraction[gaps]
    at = frame[before] + np.round(fraction * (frame[after] - frame[before])).astype(int)
    return units, Interpolated(at, before, after, fraction)


def _every_frame(rows: np.ndarray, frames: np.ndarray) -> Window:
    """One element a frame from the first to the last of `frames` (ascending) of `rows`; -1 where there is no row."""
    every = np.arange(frames[0], frames[-1] + 1)
    at = np.searchsorted(frames, every, side="right") - 1
    here = frames[at] == every
    after = np.where(here, at, np.minimum(at + 1, len(rows) - 1))
    return Window(
        row=np.where(here, rows[at], -1),
        before=rows[at],
        after=rows[after],
        fraction=(every - frames[at]) / np.maximum(frames[after] - frames[at], 1),
        linked=np.arange(len(every)) > 0,
        own=np.ones(len(every), bool),
    )


def view_windows(
    frame: np.ndarray, track: np.ndarray, view: np.ndarray, time: np.ndarray, status: np.ndarray
) -> list[Window]:
    """The rows of one person at one moment in several views. frame, track, status (R,); view, time (F,).

    Persons are told apart by track; without tracks each frame may show one person. Raises InputError otherwise,
    UsageError when there is one view only.
    """
    if len(frame) and len(view) < 2:
        raise UsageError("--mode views needs several frames, this artefact has one", "give all views to one hmr detect")
    moment = moments(view, time)
    good = np.flatnonzero(status == OK)
    person = np.where(track[good] >= 0, track[good], -1)
    key = np.stack([moment[frame[good]], person, frame[good]], 1)
    twice = _first_repeated(key)
    if twice is not None:
        row = int(good[twice])
        raise InputError(
            f"frame {frame[row]} shows several people who cannot be told apart between views (row {row})",
            "give each person one track number in all views",
        )
    order = np.lexsort((good, key[:, 1], key[:, 0]))
    new = np.r_[True, (key[order][1:, :2] != key[order][:-1, :2]).any(1)][: len(order)]
    return [Window.plain(np.sort(good[part])) for part in np.split(order, np.flatnonzero(new)[1:]) if len(part)]


def moments(view: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The moment (F,) of each frame: frames of equal time, or, without times, of equal place in their view; photos of a
    single view number are one moment seen from as many places."""
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
