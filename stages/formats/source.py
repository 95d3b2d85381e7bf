"""What a keypoint file of another tool says, before it becomes detections: `Source`, people by image name."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.errors import InputError, UsageError
from stages.keypoints.joint_sets import SETS
from stages.media.frames import list_frames


@dataclasses.dataclass
class Person:
    """box (4,) xyxy px · keypoints (J, 3) x, y, score."""

    box: np.ndarray
    keypoints: np.ndarray
    score: float = 1.0
    track: int = -1


@dataclasses.dataclass
class KeypointSource:
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


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of "640x480"; None for None. Raises UsageError."""
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text}: not WIDTHxHEIGHT", "for example --size 1920x1080")
    return int(width), int(height)


def usable_boxes(box: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Boxes (n, 4) clipped to images of `size` (n, 2), and for each '' or why it cannot be used."""
    error = np.full(len(box), "", object)
    finite = np.isfinite(box).all(1)
    width, height = np.asarray(size, np.float32).reshape(-1, 2).T
    with np.errstate(invalid="ignore"):
        inverted = (box[:, 2] < box[:, 0]) | (box[:, 3] < box[:, 1])
        clipped = np.clip(box, 0, np.stack([width, height, width, height], 1))
        outside = (box[:, 2] <= 0) | (box[:, 3] <= 0) | (box[:, 0] >= width) | (box[:, 1] >= height)
        empty = (clipped[:, 2] - clipped[:, 0] < 1) | (clipped[:, 3] - clipped[:, 1] < 1)
    for mask, reason in (
        (empty, "the box is smaller than a pixel"),
        (outside, "the box is outside the picture"),
        (inverted, "the box has x2 < x1 or y2 < y1"),
        (~finite, "the box is not finite"),
    ):
        error[mask] = reason
    return np.where((error == "")[:, None], clipped, box).astype(np.float32), list(error)


def box_of(keypoints: np.ndarray, margin: float) -> np.ndarray:
    """xyxy around the joints of a person (J, 3) that have a score, with a margin; NaN without any."""
    visible = keypoints[(keypoints[:, 2] > 0) & np.isfinite(keypoints).all(1), :2]
    if not len(visible):
        return np.full(4, np.nan, np.float32)
    low, high = visible.min(0), visible.max(0)
    pad = max(margin * float((high - low).max()), 1.0)
    return np.concatenate([low - pad, high + pad]).astype(np.float32)


def joint_names(
    requested: str | None, count: int, stated: tuple[str, ...], guesses: Mapping[int, str], where: str
) -> tuple[str, ...]:
    """Names of `count` joints: the requested set, what the file states, or the set that this count suggests.

    Raises InputError naming the set for a count that does not fit, UsageError for an unknown set.
    """
    if requested:
        if requested not in SETS:
            raise UsageError(f"no joint set {requested!r}", f"choose one of {', '.join(SETS)}")
        if len(SETS[requested]) != count:
            raise InputError(
                f"{where} has {count} joints, {requested} has {len(SETS[requested])}", "give another --joint-set"
            )
        return SETS[requested]
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
