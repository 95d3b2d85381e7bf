"""The contract of a detector: images in, people out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass
class DetectedPeople:
    """The n people of one picture: box (n, 4) xyxy px · score (n,) 0..1 · keypoints (n, J, 3) x, y px, score 0..1."""

    box: np.ndarray
    score: np.ndarray
    keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.box)

    def take(self, index: np.ndarray) -> DetectedPeople:
        return DetectedPeople(self.box[index], self.score[index], self.keypoints[index])

    @classmethod
    def nobody(cls, joints: int) -> DetectedPeople:
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros((0, joints, 3)))


@runtime_checkable
class Detector(Protocol):
    """What `hmr detect` needs. `score_definition` says in one line what a keypoint's score means, `min_score` is the
    person score that it is calibrated for, `batch_size` how many pictures it likes at a time, `sha256` of its files."""

    name: str
    licence: str
    sha256: str
    joints: tuple[str, ...]
    score_definition: str
    min_score: float
    batch_size: int

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> Detector: ...

    @classmethod
    def missing(cls, path: Path | None) -> str:
        """What stands in the way of `load(path)` without a download, as the fix; empty when it is ready."""

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        """People in each RGB uint8 picture. With boxes (n, 4) per picture: exactly those n, keypoints filled in."""


def clip_boxes(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) cut to a picture of `size` (width, height); what lies wholly outside becomes an empty box."""
    limit = np.array([*size, *size]) - 1.0
    return np.clip(box, 0, limit)


def batch_for(device: str, megabytes: float, *, cpu: int, most: int = 64) -> int:
    """How many images or crops of `megabytes` each a network takes at a time: `cpu` on a CPU, else up to `most`.

    On a CUDA device they fill at most half of the memory that is free now.
    """
    if not device.startswith("cuda"):
        return cpu if device == "cpu" else most
    import torch  # imported by then: the device was resolved with it

    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(min(max(free / 2 / (megabytes * 1e6), 1), most))
