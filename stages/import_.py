"""`hmr import`: detections made by other tools. In: COCO results or annotations, OpenPose folders, boxes. Out:
`*.detections.h5`, with the pictures read once for their size, orientation and focal length.

    hmr import coco results.json --images photos/ -o photos.detections.h5

Every picture that the source names becomes a frame, with or without people; a person in a picture that cannot be read,
or with an unusable box, is a failed row.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, K_USER, KINDS, OK
from stages.artefacts.table import Artefact
from stages.engine.runner import Job, Run, run_frames
from stages.errors import InputError, UsageError
from stages.keypoints.joint_sets import SETS
from stages.media.frames import FrameList, MediaFile, escape, frame_columns, list_frames, natural, read_frames
from stages.media.images import intrinsics
from stages.params import param

COLUMNS = KINDS["detections"].columns


@dataclasses.dataclass(frozen=True)
class Params:
    """What is taken over and how."""

    joint_set: str = param("", "joint set of the keypoints; by default what the file says, or what its length tells")
    min_score: float = param(0.0, "people below this score are left out")
    min_keypoints: int = param(1, "annotated people with fewer labelled joints are left out (COCO, OpenPose)")
    margin: float = param(0.1, "where a box must be made from keypoints: added on each side, share of its longer side")
    focal: float = param(0.0, "focal length of all pictures; 0: from EXIF, else the picture's diagonal", unit="px")
    size: str = param("", "WIDTHxHEIGHT of all pictures, where neither the file nor --images tells")


@dataclasses.dataclass(frozen=True)
class MeshParams:
    """What a file of bodies does not say (stages/formats/bodies.py; here, because that module needs torch)."""

    body: str = param("smpl", "Body model the parameters are for; it must have been added, or be embedded.")
    focal: float = param(5000.0, "Focal length of the predicting program (HMR 2.0, SPIN, PHALP: 5000).", unit="px")
    size: str = param("", "WIDTHxHEIGHT of all pictures, where neither the file nor --images tells.")


@dataclasses.dataclass
class Person:
    """box (4,) xyxy px · keypoints (J, 3) x, y, score."""

    box: np.ndarray
    keypoints: np.ndarray
    score: float = 1.0
    track: int = -1


@dataclasses.dataclass
class Source:
    """What a file of another tool says: people by picture name, the pictures' sizes as far as it knows them."""

    kind: str
    fingerprint: str
    people: dict[str, list[Person]]
    sizes: dict[str, tuple[int, int]]
    joints: tuple[str, ...]
    score_definition: str
    video_frames: bool = False  # names end in the number of a video frame
    path: Path | None = None

    @property
    def joint_set(self) -> str:
        """The name of the joint set, '' for one of the file's own."""
        return next((name for name, joints in SETS.items() if joints == self.joints), "" if self.joints else "none")


def run(source: Source, images: str | Path | None, out: Path | None, params: Params, run: Run) -> Path | Artefact:
    """Write the detections of `source`, whose pictures are below the folder (or are the video) `images`."""
    names, listing = _match(source, images)
    job = Job(
        stage=f"import {source.kind}",
        kind="detections",
        params=params,
        inputs={source.kind: source} | ({"pictures": listing} if listing else {}),
        columns=COLUMNS,
        group_attrs={
            "keypoints": {
                "joints": list(source.joints),
                "joint_set": source.joint_set,
                "score_definition": source.score_definition,
            }
        },
        batch_size=16,
    )

    def load() -> Any:
        return lambda frames: _table(source, names, listing, frames, params, run.workers)

    return run_frames(job, len(names), load, out, run)


def _match(source: Source, images: str | Path | None) -> tuple[list[str], FrameList | None]:
    """The names of the source in order and, frame for frame, the pictures behind them."""
    names = sorted(source.people, key=natural)
    if images is None:
        return names, None
    images = Path(images)
    if images.is_file():
        video = list_frames([images])
        if not source.video_frames or (video.source < 0).any():
            raise UsageError(f"--images {images} must be a folder here")
        numbers = [_last_number(name) for name in names]
        if wrong := [n for n, k in zip(names, numbers, strict=True) if not 0 <= k < len(video)]:
            raise InputError(f"{images} has {len(video)} frames, none for {wrong[0]} ({len(wrong)} such names)")
        video.file, video.index, video.source, video.view, video.time = (
            a[numbers] for a in (video.file, video.index, video.source, video.view, video.time)
        )
        return names, video
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


def _last_number(name: str) -> int:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else -1


def _table(
    source: Source, names: list[str], listing: FrameList | None, frames: np.ndarray, params: Params, workers: int
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
    found = [(i, k, person) for k, i in enumerate(frames) for person in source.people[names[i]]]
    place = np.array([k for _, k, _ in found], int)
    box, error = usable_boxes(np.array([p.box for _, _, p in found], np.float32).reshape(-1, 4), table["size"][place])
    error = [table["error"][k] if table["status"][k] != OK else e for k, e in zip(place, error, strict=True)]
    keypoints = np.array([p.keypoints for _, _, p in found], np.float32).reshape(len(found), len(source.joints), 3)
    rows = {
        "frame": np.array([i for i, _, _ in found], np.int32),
        "box": box,
        "score": [p.score for _, _, p in found],
        "track": [p.track for _, _, p in found],
        "status": [FAILED if e else OK for e in error],
        "error": error,
    }
    return table, rows, {"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]}


def _compare_sizes(table: dict[str, Any], sizes: list[tuple[int, int] | None]) -> None:
    """A picture of another size than the file says is another picture, or one that its tool did not turn upright."""
    for k, said in enumerate(sizes):
        seen = tuple(int(v) for v in table["size"][k])
        if said is not None and table["status"][k] == OK and seen != tuple(said):
            table["status"][k] = FAILED
            table["error"][k] = f"the picture is {seen[0]} x {seen[1]}, the imported file says {said[0]} x {said[1]}"


def _unseen(source: Source, names: list[str], params: Params) -> dict[str, Any]:
    """Frames whose pictures were not given. Raises InputError where a size is not known."""
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


def parse_size(text: str) -> tuple[int, int] | None:
    """(width, height) of "640x480"; None for ''. Raises UsageError."""
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text}: not WIDTHxHEIGHT", "for example --size 1920x1080")
    return int(width), int(height)


def usable_boxes(box: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Boxes (n, 4) clipped to pictures of `size` (n, 2), and for each '' or why it cannot be used."""
    error = np.full(len(box), "", object)
    finite = np.isfinite(box).all(1)
    width, height = np.asarray(size, np.float32).reshape(-1, 2).T
    with np.errstate(invalid="ignore"):
        turned = (box[:, 2] < box[:, 0]) | (box[:, 3] < box[:, 1])
        clipped = np.clip(box, 0, np.stack([width, height, width, height], 1))
        outside = (box[:, 2] <= 0) | (box[:, 3] <= 0) | (box[:, 0] >= width) | (box[:, 1] >= height)
        empty = (clipped[:, 2] - clipped[:, 0] < 1) | (clipped[:, 3] - clipped[:, 1] < 1)
    for mask, reason in (
        (empty, "the box is smaller than a pixel"),
        (outside, "the box is outside the picture"),
        (turned, "the box has x2 < x1 or y2 < y1"),
        (~finite, "the box is not finite"),
    ):
        error[mask] = reason
    return np.where((error == "")[:, None], clipped, box).astype(np.float32), list(error)


def box_of(keypoints: np.ndarray, margin: float) -> np.ndarray:
    """xyxy around the joints of a person (J, 3) that have a score, with a margin; NaN without any."""
    seen = keypoints[(keypoints[:, 2] > 0) & np.isfinite(keypoints).all(1), :2]
    if not len(seen):
        return np.full(4, np.nan, np.float32)
    low, high = seen.min(0), seen.max(0)
    pad = max(margin * float((high - low).max()), 1.0)
    return np.concatenate([low - pad, high + pad]).astype(np.float32)


def joint_names(
    given: str, count: int, stated: tuple[str, ...], guesses: Mapping[int, str], where: str
) -> tuple[str, ...]:
    """Names of `count` joints: the set that the user names, what the file states, or what the number tells.

    Raises InputError naming the set for a count that does not fit, UsageError for an unknown set.
    """
    if given:
        if given not in SETS:
            raise UsageError(f"no joint set {given!r}", f"choose one of {', '.join(SETS)}")
        if len(SETS[given]) != count:
            raise InputError(f"{where} has {count} joints, {given} has {len(SETS[given])}", "give another --joint-set")
        return SETS[given]
    if len(stated) == count:
        return tuple({"top_head": "head_top", "head": "head_top"}.get(name, name) for name in stated)
    if count in guesses:
        return SETS[guesses[count]]
    raise InputError(f"{where} has {count} joints, which is no known set", f"--joint-set {'|'.join(SETS)}")


def file_source(path: Path) -> tuple[bytes, str]:
    """Contents and fingerprint of an input file. Raises InputError."""
    if not path.exists():
        list_frames([path])  # says what is missing
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return content, hashlib.sha256(content).hexdigest()
