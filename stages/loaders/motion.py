"""Rows of a meshes artefact -> people over time: what one exported file or skeleton holds."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stages.geometry.rotations import axis_angle_to_matrix, slerp
from stages.loaders.bodies import BodyLoader, stems


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One person: rows (T,) in order of time, time (T,) seconds from the first, scene = stem of the photo or video,
    name within it, number = track or row (for colours)."""

    rows: np.ndarray
    time: np.ndarray
    scene: str
    name: str
    number: int

    @property
    def tracked(self) -> bool:
        """Whether it is a track of a video, and not one row."""
        return self.name.startswith("track")


def sequences(people: BodyLoader) -> list[Sequence]:
    """Every person of the table whose rows are ok: a track over time is one, everybody else is one per row."""
    table = people.table
    frame = table.rows["frame"]
    source, time, track = table.frames["source"][frame], table.frames["time"][frame], table.rows["track"]
    titles = scenes(table.frames)
    unique = list(dict.fromkeys(titles))
    stem = dict(zip(unique, stems(unique), strict=True))
    found: list[Sequence] = []
    moving = people.ok & has_time(table.frames)[frame] & (track >= 0)
    for row in np.flatnonzero(people.ok & ~moving):
        found.append(Sequence(np.array([row]), np.zeros(1), stem[titles[frame[row]]], f"person{row}", int(row)))
    for s, t in sorted({(int(a), int(b)) for a, b in zip(source[moving], track[moving], strict=True)}):
        rows = np.flatnonzero(moving & (source == s) & (track == t))
        rows = rows[np.argsort(time[rows], kind="stable")]
        rows = rows[np.concatenate([[True], np.diff(time[rows]) > 0])]  # one body at a time
        found.append(Sequence(rows, time[rows] - time[rows[0]], stem[titles[frame[rows[0]]]], f"track{t}", t))
    return found


def has_time(frames: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which frames (F,) are of a video or of a sequence of numbered images."""
    return (frames["source"] >= 0) | np.isfinite(frames["time"])


def scenes(frames: Mapping[str, np.ndarray]) -> list[str]:
    """What each frame belongs to: itself, or the whole video or sequence, by its name without the frame's number."""
    timed = has_time(frames)

    def title(name: str, source: int, moving: bool) -> str:
        if source >= 0:
            return name.rpartition("#")[0]
        return (re.sub(r"[._ -]*[0-9]*(\.[A-Za-z]\w*)?$", "", name) or "frames") if moving else name

    return [title(str(n), s, m) for n, s, m in zip(frames["name"], frames["source"], timed, strict=True)]


@dataclasses.dataclass(frozen=True)
class Motion:
    """Rotations (T, 24, 3, 3) relative to the parent, betas (T, 10), transl (T, 3) metres, OpenCV camera frame, at
    time (T,) s; rows (T,) of the artefact, -1 where interpolated."""

    rotmat: Tensor
    betas: Tensor
    transl: Tensor
    time: np.ndarray
    rows: np.ndarray

    @property
    def observed(self) -> np.ndarray:
        return self.rows >= 0

    def mean_betas(self) -> Tensor:
        """(1, 10): one shape for the whole sequence."""
        return self.betas[torch.from_numpy(self.observed)].mean(0, keepdim=True)

    def part(self, where: slice) -> Motion:
        return Motion(self.rotmat[where], self.betas[where], self.transl[where], self.time[where], self.rows[where])


def motion(people: BodyLoader, sequence: Sequence) -> Motion:
    """The motion that the rows of a sequence hold. Needs SMPL parameters."""
    smpl = people.smpl(sequence.rows)
    pose = torch.cat([smpl["global_orient"][:, None], smpl["body_pose"]], 1).cpu()
    rotmat = axis_angle_to_matrix(pose)
    return Motion(rotmat, smpl["betas"].cpu(), smpl["transl"].cpu(), sequence.time, sequence.rows)


def even(motion: Motion, fps: float, longest_gap: float) -> list[Motion]:
    """The motion at a constant rate, as motion formats need it: short gaps are interpolated (rotations by slerp, the
    rest linearly), and it is cut where no row was observed for longer than `longest_gap` seconds."""
    cuts = np.flatnonzero(np.diff(motion.time) > longest_gap) + 1
    edges = [0, *cuts.tolist(), len(motion.time)]
    return [_interpolated(motion.part(slice(a, b)), fps) for a, b in itertools.pairwise(edges)]


def _interpolated(motion: Motion, fps: float) -> Motion:
    tick = np.round((motion.time - motion.time[0]) * fps).astype(int)
    if len(tick) == 1 or (np.diff(tick) == 1).all():
        return motion
    tick, first = np.unique(tick, return_index=True)
    ticks = np.arange(tick[-1] + 1)
    before = np.maximum(np.searchsorted(tick, ticks, side="right") - 1, 0)
    after = np.minimum(before + 1, len(tick) - 1)
    fraction = (ticks - tick[before]) / np.maximum(tick[after] - tick[before], 1)
    a, b = first[before], first[after]
    f = torch.from_numpy(fraction).float()
    rotmat = slerp(motion.rotmat[a], motion.rotmat[b], f[:, None])
    betas, transl = (torch.lerp(x[a], x[b], f[:, None]) for x in (motion.betas, motion.transl))
    rows = np.where(np.isin(ticks, tick), motion.rows[a], -1)
    return Motion(rotmat, betas, transl, motion.time[0] + ticks / fps, rows)
