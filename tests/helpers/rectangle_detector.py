"""A detector for tests: every white rectangle is a person. `--detector tests.helpers.rectangle_detector:Rectangles`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from stages.keypoints.joint_sets import SETS
from stages.models.detectors.base import DetectedPeople

SPREAD = np.random.default_rng(0).uniform(0, 1, (17, 2))
calls: list[int] = []  # pictures per call


class Rectangles:
    """Boxes around connected white pixels; the score is the share of the box that is white."""

    name = "rectangles"
    licence = "CC0-1.0"
    sha256 = "0" * 64
    joints = SETS["coco17"]
    score_definition = "1"
    min_score = 0.5
    batch_size = 4
    cpu_only = True

    @classmethod
    def missing(cls, path: Path | None) -> str:
        return ""

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> Rectangles:
        return cls()

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        calls.append(len(images))
        return [self._one(image, None if boxes is None else boxes[i]) for i, image in enumerate(images)]

    def _one(self, image: np.ndarray, box: np.ndarray | None) -> DetectedPeople:
        white = image[..., 1] > 128
        score = np.ones(0 if box is None else len(box))
        if box is None:
            spots = ndimage.find_objects(ndimage.label(white)[0])
            box = np.array([[x.start, y.start, x.stop - 1, y.stop - 1] for y, x in spots], float).reshape(-1, 4)
            score = np.array([white[spot].mean() for spot in spots])
        xy = box[:, None, :2] + SPREAD * (box[:, None, 2:] - box[:, None, :2])
        return DetectedPeople(box, score, np.concatenate([xy, np.ones((len(box), 17, 1))], -1))


class OnlyJoints(Rectangles):
    """Cannot find people by itself."""

    name = "onlyjoints"
    needs_boxes = True

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        assert boxes is not None
        return super().__call__(images, boxes)
