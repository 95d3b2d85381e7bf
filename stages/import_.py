"""`hmr import`: detections made by other tools. In: COCO results or annotations, OpenPose folders, boxes. Out:
`*.detections.h5`, with the pictures read once for their size, orientation and focal length.

    hmr import coco results.json --images photos/ -o photos.detections.h5

Every picture that the source names becomes a frame, with or without people; a person in a picture that cannot be read,
or with an unusable box, is a failed row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, K_USER, OK, SMPL_COLUMNS, required_columns
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_frames, run_whole
from stages.errors import InputError, UsageError
from stages.formats.bodies import Bodies
from stages.formats.source import KeypointSource, parse_size, usable_boxes
from stages.loaders import tracks
from stages.media.frames import FrameList, MediaFile, frame_columns, list_frames, read_frames
from stages.media.images import intrinsics
from stages.media.inputs import escape, frame_number, frame_times, natural
from stages.params import ImportBodiesParams, ImportParams
from stages.params.rules import check


def run(
    source: KeypointSource, images: str | Path | None, out: Path | None, params: ImportParams, run: RunOptions
) -> Path | Artefact:
    """Write the detections of `source`, whose pictures are below the folder (or are the video) `images`."""
    params = check(params)
    names, listing = _match(source, images, params.fps)
    times = np.full(len(names), np.nan) if listing is None else listing.time
    if params.fps:
        if np.isfinite(times).any():
            raise UsageError("--fps is for images; a video has times of its own", "leave it out")
        times = frame_times(names, params.fps)
    job = Job(
        stage=f"import {source.kind}",
        kind="detections",
        params=params,
        inputs={source.kind: source} | ({"pictures": listing} if listing else {}),
        columns=required_columns("detections"),
        group_attrs={
            "keypoints": {
                "joints": list(source.joints),
                "joint_set": source.joint_set,
                "score_definition": source.score_definition,
            }
        },
        batch_size=16,
        finish=link_people,
    )

    def load() -> Any:
        def table(frames: np.ndarray) -> Any:
            result = _table(source, names, listing, frames, params, run.workers)
            result[0]["time"] = times[frames]
            return result

        return table

    result = run_frames(job, len(names), load, out, run)
    if not run.dry_run:
        _report_tracks(source, names, result, run.report)
    return result


def link_people(table: Artefact) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The column `track` of a whole table: the file's own numbers, if it has any, else the tracker's."""
    track = table.rows["track"]
    return {"track": track if (track >= 0).any() else tracks.link(table)}, {}


def _report_tracks(source: KeypointSource, names: list[str], result: Path | Artefact, report: Any) -> None:
    """Report where the track numbers come from, or how numbered images get some."""
    numbered = sum(p.track >= 0 for group in source.people.values() for p in group)
    if numbered:
        report.note(f"{numbered} rows keep the track numbers of the imported file")
    elif source.video_frames and len(names) > 1 and min(map(frame_number, names)) >= 0 and not _timed(result):
        report.warn(f"no tracks: {len(names)} numbered pictures without times; --fps says how many a second")
    tracks.tell(result, report)


def _timed(result: Path | Artefact) -> bool:
    if isinstance(result, Path) and not result.is_file():
        return True  # other shards have yet to finish it
    with open_artefact(result) if isinstance(result, Path) else contextlib.nullcontext(result) as table:
        return bool(np.isfinite(table.frames["time"]).any())


def _match(source: KeypointSource, images: str | Path | None, fps: float | None) -> tuple[list[str], FrameList | None]:
    """The names of the source in order and, frame for frame, the pictures behind them.

    Where a file lists people, not frames, the frames between in which nobody was found are frames all the same.
    """
    names = sorted(source.people, key=natural)
    if images is not None and Path(images).is_file():
        return _match_video(names, Path(images), between=not source.video_frames)
    if fps and not source.video_frames:
        names = _with_missing(names, Path(images) if images else None)
    if images is None:
        return names, None
    images = Path(images)
    if not images.is_dir():
        list_frames([images])  # says what is missing
    by_stem: dict[str, Path] = {}
    if source.video_frames:  # names without suffix
        by_stem = {p.stem: p for p in sorted(images.iterdir()) if p.is_file()}
    files = []
    for name in names:
        path = by_stem.get(name) or next(
            (p for p in (images / name, images / Path(name).name) if p.is_file()), images / name
        )
        files.append(MediaFile(path, escape(path.relative_to(images).as_posix())))
    return names, FrameList(images.absolute(), files)


def _match_video(names: list[str], path: Path, *, between: bool) -> tuple[list[str], FrameList]:
    """The named frames of the video, with all `between` them if asked for, and a name for each."""
    video = list_frames([path])
    if (video.source < 0).any():
        raise UsageError(f"--images {path} is a picture", "a folder of pictures or a video is needed")
    numbers = [frame_number(name) for name in names]
    if wrong := [n for n, k in zip(names, numbers, strict=True) if not 0 <= k < len(video)]:
        raise InputError(f"{path} has {len(video)} frames, none for {wrong[0]} ({len(wrong)} such names)")
    name_of = dict(zip(numbers, names, strict=True))
    if len(name_of) < len(names):
        raise InputError(f"{len(names)} names mean {len(name_of)} frames of {path}", "one video at a time")
    every = np.arange(min(numbers), max(numbers) + 1) if between and numbers else np.sort(np.array(numbers, int))
    for column in ("file", "index", "source", "view", "time"):
        setattr(video, column, getattr(video, column)[every])
    return [name_of.get(k, f"#{k}") for k in every.tolist()], video


def _with_missing(names: list[str], images: Path | None) -> list[str]:
    """The names of numbered frames and, between them, of those in which nobody was found (if there are pictures)."""
    every = []
    for before, name in itertools.pairwise(["", *names]):
        first, last = frame_number(before), frame_number(name)
        digits = re.search(r"([0-9]+)(\.[A-Za-z]\w{0,4})?$", name)
        start = digits.start(1) if digits else 0
        if digits and before[:start].rstrip("0123456789") == name[:start] and 0 <= first < last:
            between = [name[:start] + str(k).zfill(len(digits[1])) + (digits[2] or "") for k in range(first + 1, last)]
            every += [other for other in between if images is None or (images / other).is_file()]
        every.append(name)
    return every


def _table(
    source: KeypointSource,
    names: list[str],
    listing: FrameList | None,
    frames: np.ndarray,
    params: ImportParams,
    workers: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Frames, rows and columns of a batch of frames."""
    if listing is not None:
        table = frame_columns(listing, frames, read_frames(listing, frames, workers))
        _compare_sizes(table, [source.sizes.get(names[i]) for i in frames])
    else:
        table = _unseen(source, [names[i] for i in frames], params)
    if params.focal:
        for k, size in enumerate(table["size"]):
            table["K"][k], table["K_source"][k] = intrinsics(tuple(size), params.focal)[0], K_USER
    people = [(i, k, person) for k, i in enumerate(frames) for person in source.people.get(names[i], ())]
    indices = np.array([k for _, k, _ in people], int)
    box, error = usable_boxes(
        np.array([p.box for _, _, p in people], np.float32).reshape(-1, 4), table["size"][indices]
    )
    error = [table["error"][k] if table["status"][k] != OK else e for k, e in zip(indices, error, strict=True)]
    keypoints = np.array([p.keypoints for _, _, p in people], np.float32).reshape(len(people), len(source.joints), 3)
    rows = {
        "frame": np.array([i for i, _, _ in people], np.int32),
        "box": box,
        "score": [p.score for _, _, p in people],
        "track": [p.track for _, _, p in people],
        "status": [FAILED if e else OK for e in error],
        "error": error,
    }
    return table, rows, {"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]}


def _compare_sizes(table: dict[str, Any], sizes: list[tuple[int, int] | None]) -> None:
    """Fail frames whose image has another size than the file states: another image, or one its tool did not rotate."""
    for k, stated in enumerate(sizes):
        size = tuple(int(v) for v in table["size"][k])
        if stated is not None and table["status"][k] == OK and size != tuple(stated):
            table["status"][k] = FAILED
            table["error"][k] = (
                f"the picture is {size[0]} x {size[1]}, the imported file says {stated[0]} x {stated[1]}"
            )


def _unseen(source: KeypointSource, names: list[str], params: ImportParams) -> dict[str, Any]:
    """Frames whose images were not given. Raises InputError where a size is not known."""
    common = parse_size(params.size)
    sizes = [source.sizes.get(name, common) for name in names]
    if None in sizes:
        raise InputError(f"the size of {names[sizes.index(None)]} is not known", "give --images DIR or --size WxH")
    return {
        "name": [escape(name) for name in names],
        "size": np.array(sizes, np.int32).reshape(-1, 2),
        "K": np.array([intrinsics(s)[0] for s in sizes if s], np.float32).reshape(-1, 3, 3),
        "K_source": np.zeros(len(names), np.uint8),
        "status": np.zeros(len(names), np.uint8),
        "error": [""] * len(names),
    }


def run_bodies(
    bodies: Bodies,
    out: Path | None,
    params: ImportBodiesParams = ImportBodiesParams(),
    run: RunOptions = RunOptions(),
    *,
    boxes: Path | None = None,
) -> Path | Artefact:
    """Write the meshes (None: in memory) and, if `boxes` is given, detections with the same rows there."""
    params = check(params)
    attrs = {"body_model": params.body, "gender": "neutral"}

    def meshes() -> Artefact:
        lost = ~bodies.finite()
        columns = {f"smpl/{name}": np.array(value) for name, value in bodies.smpl.items()}
        for value in columns.values():
            value[lost] = np.nan
        return in_memory(
            "meshes", frames=bodies.frames(), rows=bodies.rows(), columns=columns, group_attrs={"smpl": attrs}
        )

    def empty() -> Artefact:
        none = np.zeros((len(bodies.frame), 0))
        return in_memory(
            "detections", frames=bodies.frames(), rows=bodies.rows(), group_attrs={"keypoints": BOXES},
            columns={"keypoints/xy": none[..., None].repeat(2, 2), "keypoints/score": none},
        )  # fmt: skip

    job = Job(
        stage=f"import {bodies.kind}",
        kind="meshes",
        params=params,
        inputs={bodies.kind: bodies},
        columns=SMPL_COLUMNS,
        group_attrs={"smpl": attrs},
    )
    if boxes is not None:
        other = dataclasses.replace(
            job, kind="detections", columns=required_columns("detections"), group_attrs={"keypoints": BOXES}
        )
        run_whole(other, empty, boxes, run)
    return run_whole(job, meshes, out, run)


BOXES = {"joints": [], "joint_set": "none", "score_definition": "no keypoints"}
