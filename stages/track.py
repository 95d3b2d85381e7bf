"""Detections -> detections with tracks: who is the same person over time.

In: detections of a video or of numbered images, by any tool, with or without keypoints. Out: the same rows in the same
order, with track numbers. Method: people are predicted by a constant velocity and matched with those found, all at once
(stages/keypoints/tracking.py). No row is added and none is moved.

    hmr track walk.detections.h5 -o tracked.detections.h5
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import Column
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from stages.errors import InputError
from stages.loaders import tracks
from stages.media.frames import frame_times
from stages.params import TrackParams, check


def run(
    detections: Path | Artefact, out: Path | None, params: TrackParams = TrackParams(), run: RunOptions = RunOptions()
) -> Path | Artefact:
    """Write the detections with tracks to `out` (None: in memory).

    Raises InputError for detections that have tracks already or whose frames are single images, UsageError for
    impossible settings.
    """
    params = check(params)
    table = detections if isinstance(detections, Artefact) else open_artefact(detections, "detections")
    where = table.path or "the table"
    if not params.replace and (have := tracks.counted(table)).tracks:
        raise InputError(f"{where} has tracks already ({have.text()})", "--replace numbers people anew")
    frames = _timed(table, params.fps)
    if not (tracks.takes(frames) >= 0).any():
        text = f"{where} holds single images: none of its {table.n_frames} frames has a time"
        raise InputError(text, "if they are frames of a video, --fps says how many a second")
    groups = {name: table.group_attrs(name) for name in {c.split("/")[0] for c in table.columns()}}

    def build() -> Artefact:
        columns = {name: table.read(name) for name in table.columns()}
        made = in_memory("detections", frames=frames, rows=dict(table.rows), columns=columns, group_attrs=groups)
        made.rows["track"] = tracks.link(made, max_gap=params.max_gap)
        return made

    columns = [Column(n, table.dtype(n).str[1:], ("R", *table.shape(n)[1:]), "", "") for n in table.columns()]
    keep = {name: table.attrs[name] for name in ("benchmark",) if name in table.attrs}
    job = Job("track", "detections", params, {"detections": table}, tuple(columns), group_attrs=groups, attrs=keep)
    made = run_whole(job, build, out, run)
    if not run.dry_run:
        tracks.tell(made, run.report)
    return made


def _timed(table: Artefact, fps: float | None) -> dict[str, np.ndarray]:
    """The frames, with times for images that have none, by the numbers in their names."""
    frames = dict(table.frames)
    missing = (frames["source"] < 0) & ~np.isfinite(frames["time"])
    if fps is None or not missing.any():
        return frames
    time = frames["time"].copy()
    time[missing] = frame_times([str(name) for name in frames["name"][missing]], fps)
    return frames | {"time": time}
