"""Photos and video -> detections: who is where. Boxes, 2D keypoints, scores, tracks and cameras.

A detector (stages/models/detectors) finds people in each frame; a person is a row from here on. People of a video are
linked to tracks in a last pass. Intrinsics come from the user, from EXIF, or from a stated default.

    hmr detect photos/ -o photos.detections.h5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, K_USER, OK, required_columns
from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_frames, run_rows
from stages.errors import HmrError, InputError, UsageError
from stages.keypoints import joint_sets
from stages.loaders import tracks
from stages.media.frames import FrameList, FrameSource, frame_columns, list_frames, read_frames
from stages.media.intrinsics import CameraFile
from stages.models import find
from stages.models.detectors.base import DetectedPeople, Detector, clip_boxes
from stages.models.detectors.choice import availability, best_ready, files_of, how_to_get
from stages.models.tables import DETECTORS
from stages.params import DetectParams
from stages.params.rules import check


def run(
    inputs: Sequence[str | Path],
    out: Path | None,
    params: DetectParams = DetectParams(),
    run: RunOptions = RunOptions(),
    *,
    files_from: Path | None = None,
    boxes: Path | Artefact | None = None,
    root: Path | None = None,
    cameras: Path | None = None,
    detector_path: Path | None = None,
) -> Path | Artefact:
    """Write the people of all frames to `out` (None: in memory). Nobody anywhere is a table of zero rows.

    boxes: detections whose rows are kept, in their order, and get keypoints; then `inputs` is empty and `root` says
    where the pictures are, if not where the artefact says. cameras: a file of intrinsics (stages/media/intrinsics.py).
    detector_path: the detector's files, where they are not in the cache. Raises UsageError, InputError, AssetError.
    """
    params = check(params)
    _check(params, inputs, files_from, boxes, cameras)
    detector, helper = choose(params, detector_path, run.device, alone=boxes is None)
    models = [detector, *([helper] if helper else [])]
    if params.min_score is None:
        params = dataclasses.replace(params, min_score=models[-1].min_score)
    asked, params = params.detector, dataclasses.replace(params, detector=detector.name)
    camera = CameraFile.read(cameras) if cameras else None
    noted = availability(detector.name, resolve_device(run.device))
    job = Job(
        stage="detect",
        kind="detections",
        params=params,
        inputs={},
        model={
            "name": "+".join(m.name for m in models),
            "sha256": "+".join(m.sha256 for m in models),
            "licence": " and ".join(dict.fromkeys(m.licence for m in models)),
        },
        columns=required_columns("detections"),
        group_attrs={
            "keypoints": {
                "joints": list(detector.joints),
                "joint_set": joint_sets.identify(detector.joints) or "",
                "score_definition": detector.score_definition,
            }
        },
        attrs=noted,
        batch_size=detector.batch_size,
    )
    if boxes is not None:
        table = boxes if isinstance(boxes, Artefact) else open_artefact(boxes, "detections")
        job = dataclasses.replace(job, inputs={"boxes": table})
        return run_rows(job, lambda: complete(table, FrameSource(table, root, params.max_pixels), detector), out, run)
    listing = list_frames(inputs, files_from, every=params.every, views=params.views, max_pixels=params.max_pixels)
    if asked == "auto" and not noted["detector_is_best_available"]:
        best = noted["best_detector"]
        run.report.note(f"detector {detector.name}; {best} finds more people in crowds: {how_to_get(best)}")
    job_inputs: dict[str, Any] = {"frames": listing, **({"cameras": camera} if camera else {})}
    job = dataclasses.replace(job, inputs=job_inputs, finish=link_people)
    if params.fps and params.tracks == "all":
        listing.time = np.where(listing.source < 0, np.arange(len(listing)) / params.fps, listing.time)
    result = run_frames(
        job, len(listing), lambda: detect(listing, detector, helper, camera, params, run.workers), out, run
    )
    if params.tracks != "none" and not run.dry_run:
        tracks.tell(result, run.report, untimed=params.tracks == "all")
    return result


def _check(params: DetectParams, inputs: Sequence[Any], files_from: Any, boxes: Any, cameras: Any) -> None:
    if boxes is not None and (inputs or files_from or cameras or params.focal or params.fov):
        raise UsageError("--boxes takes pictures and cameras from its own file", "give --root, if they have moved")
    if boxes is None and not inputs and files_from is None:
        raise UsageError("nothing to look at", "name photos, folders or videos")
    if sum(x is not None for x in (params.focal, params.fov, cameras)) > 1:
        raise UsageError("--focal, --fov and --cameras exclude each other", "give one")
    if params.fps is not None and params.tracks != "all":
        raise UsageError(f"--fps {params.fps}: images a second, of --tracks all")


def choose(params: DetectParams, path: Path | None, device: str, *, alone: bool) -> tuple[Detector, Detector | None]:
    """The detector, and the one that finds its people where it cannot (`alone`: no boxes are given).

    auto: the best one whose files are on this machine; nothing is downloaded. Raises AssetError naming the fix.
    """
    if params.detector == "auto":
        if path is not None:
            raise UsageError("--detector-path belongs to one detector", "name it: --detector NAME")
        return _best(device), None
    kind: Any = find(DETECTORS, params.detector)
    extra = {"config": params.detector_config} if params.detector_config else {}
    if params.detector_config and params.detector != "mmpose":
        raise UsageError("--detector-config belongs to --detector mmpose")
    detector = kind.load(path or files_of(params.detector), device=_device(device, kind), **extra)
    return detector, _best(device) if alone and getattr(detector, "needs_boxes", False) else None


def _best(device: str) -> Detector:
    name = best_ready(resolve_device(device))
    kind: Any = find(DETECTORS, name)
    return kind.load(files_of(name), device=_device(device, kind))


def _device(asked: str, kind: Any) -> str:
    """The device in torch's spelling; LiteRT's detector knows none but the CPU."""
    return "cpu" if asked == "auto" and getattr(kind, "cpu_only", False) else resolve_device(asked)


# ---- frames -> people


def detect(
    listing: FrameList,
    detector: Detector,
    helper: Detector | None,
    camera: CameraFile | None,
    params: DetectParams,
    workers: int,
) -> Callable[[np.ndarray], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The function frames -> (frame columns, row columns, columns)."""
    count = len(detector.joints)

    def batch(frames: np.ndarray) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        loaded = read_frames(listing, frames, workers)
        table = frame_columns(listing, frames, loaded)
        set_cameras(table, params, camera)
        good = [i for i, p in enumerate(loaded) if p.rgb is not None and table["status"][i] == OK]
        images: list[Any] = [loaded[i].rgb for i in good]
        people = (helper or detector)(images) if images else []
        people = [select(p, params, loaded[i].size) for p, i in zip(people, good, strict=True)]
        if helper and people:
            completed = detector(images, [p.box for p in people])
            people = [dataclasses.replace(p, keypoints=f.keypoints) for p, f in zip(people, completed, strict=True)]
        detections = [DetectedPeople.nobody(count), *people]
        keypoints = np.concatenate([p.keypoints for p in detections])
        keypoints[~np.isfinite(keypoints[..., 2]), 2] = 0
        rows = {
            "frame": np.repeat(frames[good], [len(p) for p in people]).astype(np.int32),
            "box": np.concatenate([p.box for p in detections]),
            "score": np.concatenate([p.score for p in detections]),
        }
        return table, rows, {"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]}

    return batch


def select(people: DetectedPeople, params: DetectParams, size: tuple[int, int]) -> DetectedPeople:
    """The people to keep, best first: finite, inside the picture by a pixel at least, sure enough, not too many."""
    people = dataclasses.replace(people, box=clip_boxes(people.box, size))
    fine = np.isfinite(people.box).all(1) & (people.box[:, 2:] - people.box[:, :2] >= 1).all(1)
    keep = np.flatnonzero(fine & (people.score >= params.min_score))
    keep = keep[np.argsort(-people.score[keep], kind="stable")]
    return people.take(keep[: params.max_people])


def set_cameras(table: dict[str, Any], params: DetectParams, camera: CameraFile | None) -> None:
    """Put the user's intrinsics, if any, into the frame columns. A frame whose camera cannot be right fails."""
    if params.focal is None and params.fov is None and camera is None:
        return
    for i in np.flatnonzero(np.asarray(table["status"]) == OK):
        width, height = (int(n) for n in table["size"][i])
        try:
            if camera:
                table["K"][i] = camera.find(table["name"][i], (width, height))
            else:
                focal = params.focal or width / 2 / np.tan(np.radians(params.fov or 0) / 2)
                table["K"][i] = [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
            table["K_source"][i] = K_USER
        except InputError as error:
            table["status"][i], table["error"][i], table["K"][i] = FAILED, error.message, np.nan


# ---- boxes -> keypoints


def complete(table: Artefact, source: FrameSource, detector: Detector) -> Callable[[np.ndarray], dict[str, Any]]:
    """The function rows -> keypoints of the rows' boxes."""

    def batch(rows: np.ndarray) -> dict[str, Any]:
        frame, box = table.rows["frame"][rows], table.rows["box"][rows].astype(float)
        size = table.frames["size"][frame]
        errors = np.array([box_fault(b, s) for b, s in zip(box, size, strict=True)], object)
        keypoints = np.full((len(rows), len(detector.joints), 3), np.nan)
        images, members = [], []
        for f in np.unique(frame):
            indices = np.flatnonzero((frame == f) & (errors == ""))
            if not len(indices):
                continue
            try:
                images.append(source(int(f)))
                members.append(indices)
            except HmrError as error:
                errors[indices] = error.message
        if images:
            for indices, result in zip(members, detector(images, [box[m] for m in members]), strict=True):
                keypoints[indices] = result.keypoints
        lost = (errors == "") & ~np.isfinite(keypoints[..., :2]).all((1, 2))
        errors[lost] = f"{detector.name} found no body in the box"
        return {"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2], "error": list(errors)}

    return batch


def box_fault(box: np.ndarray, size: np.ndarray) -> str:
    """What is wrong with a box (4,) in a picture of `size` (width, height), or ''."""
    if not np.isfinite(box).all():
        return "the box is not finite"
    if (box[2:] <= box[:2]).any():
        return f"the box has no size: {box.round(1).tolist()}"
    if (box[2:] <= 0).any() or (box[:2] >= size - 1).any():
        return f"the box lies outside the picture: {box.round(1).tolist()} in {size[0]} x {size[1]}"
    return ""


# ---- the last pass


def link_people(table: Artefact) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The column `track` of a whole table, by its own settings."""
    params = table.attrs["params"]
    if params["tracks"] == "none":
        return {"track": np.full(table.n_rows, -1, np.int32)}, {}
    untimed, fps = params["tracks"] == "all", params.get("fps") or tracks.SEQUENCE_FPS
    return {"track": tracks.link(table, untimed=untimed, fps=fps)}, {}
