"""Detections -> detections with tracks: who is the same person over time.

In: detections of a video or of numbered images, by any tool, with or without keypoints. Out: the same rows in the same
order, with track numbers. Method: people are predicted by a constant velocity and matched with those found, all at once
(stages/keypoints/tracking.py). With `views`, tracks of different cameras that are one person get one number
(stages/refinement/association.py). No row is added and none is moved.

    hmr track walk.detections.h5 -o tracked.detections.h5
    hmr track take.detections.h5 --views --cameras rig.json -o people.detections.h5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import OK, Column
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from stages.errors import InputError, UsageError
from stages.loaders import tracks
from stages.media.inputs import frame_times
from stages.params import TrackParams
from stages.params.rules import check
from stages.refinement.people import find_people, report_people
from stages.refinement.rig import CameraRig, read_rig


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
    rig, have = _rig(table, params), tracks.counted(table)
    if have.tracks and not (params.replace or params.views):
        raise InputError(f"{where} has tracks already ({have.text()})", "--replace numbers people anew")
    frames = _timed(table, params.fps)
    if not (params.views or (tracks.takes(frames) >= 0).any()):
        text = f"{where} holds single images: none of its {table.n_frames} frames has a time"
        raise InputError(text, "if they are frames of a video, --fps says how many a second")
    groups = {name: table.group_attrs(name) for name in {c.split("/")[0] for c in table.columns()}}

    def build() -> Artefact:
        columns = {name: table.read(name) for name in table.columns()}
        result = in_memory("detections", frames=frames, rows=dict(table.rows), columns=columns, group_attrs=groups)
        if params.replace or not have.tracks:
            result.rows["track"] = tracks.link(result, max_gap=params.max_gap)
        return _over_views(result, rig, run.report) if params.views else result

    columns = [Column(n, table.dtype(n).str[1:], ("R", *table.shape(n)[1:]), "", "") for n in table.columns()]
    keep = {name: table.attrs[name] for name in ("benchmark",) if name in table.attrs}
    inputs = {"detections": table} | ({"cameras": rig} if rig else {})
    job = Job("track", "detections", params, inputs, tuple(columns), group_attrs=groups, attrs=keep)
    result = run_whole(job, build, out, run)
    if not run.dry_run:
        tracks.tell(result, run.report)
    return result


def _rig(table: Artefact, params: TrackParams) -> CameraRig | None:
    if params.cameras and not params.views:
        raise UsageError("--cameras is for --views")
    if params.views and len(np.unique(table.frames["view"])) < 2:
        raise UsageError("--views needs frames of several views", "hmr detect --views takes one input for each camera")
    return read_rig(params.cameras)


def _over_views(table: Artefact, rig: CameraRig | None, report: Any) -> Artefact:
    """One number for each person in all views, and say who was seen where."""
    usable = np.isfinite(table.rows["box"]).all(1)
    people = find_people(table, rig, usable)
    report_people(people, table, usable, report)
    table.rows["track"] = np.where(usable & (table.rows["status"] == OK), people.person, -1).astype(np.int32)
    return table


def _timed(table: Artefact, fps: float | None) -> dict[str, np.ndarray]:
    """The frames, with times for images that have none, by the numbers in their names."""
    frames = dict(table.frames)
    missing = (frames["source"] < 0) & ~np.isfinite(frames["time"])
    if fps is None or not missing.any():
        return frames
    time = frames["time"].copy()
    time[missing] = frame_times([str(name) for name in frames["name"][missing]], fps)
    return frames | {"time": time}
