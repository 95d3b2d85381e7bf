"""A detector from outside: one person in each image, who fills it, with the joints of a stick figure.

PYTHONPATH=docs/examples hmr detect photos/ --detector detector:WholeImage -o people.detections.h5
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.keypoints.joint_sets import SETS
from stages.models.detectors.base import DetectedPeople

# x, y of COCO's 17 joints in a box of side 1: nose, eyes, ears, then shoulders to ankles, left and right in turn.
FIGURE = np.array(
    [[0.5, 0.1], [0.53, 0.08], [0.47, 0.08], [0.56, 0.09], [0.44, 0.09], [0.62, 0.22], [0.38, 0.22], [0.7, 0.38],
     [0.3, 0.38], [0.74, 0.52], [0.26, 0.52], [0.57, 0.52], [0.43, 0.52], [0.57, 0.74], [0.43, 0.74], [0.57, 0.96],
     [0.43, 0.96]]
)  # fmt: skip


class WholeImage:
    name, licence, sha256 = "whole-image", "CC0", ""
    joints = SETS["coco17"]
    score_definition = "always 1"
    min_score = 0.5
    batch_size = 16

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> WholeImage:
        return cls()

    @classmethod
    def missing(cls, path: Path | None) -> str:
        return ""  # nothing to download

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        """Images (H, W, 3) RGB uint8; boxes (n, 4) xyxy px where the user gave some: then exactly those people."""
        if boxes is None:
            boxes = [np.array([[0.0, 0.0, image.shape[1] - 1, image.shape[0] - 1]]) for image in images]
        return [self.figures(box) for box in boxes]

    def figures(self, box: np.ndarray) -> DetectedPeople:
        xy = box[:, None, :2] + FIGURE * (box[:, None, 2:] - box[:, None, :2])
        score = np.ones(len(box))
        return DetectedPeople(box, score, np.concatenate([xy, np.ones((len(box), 17, 1))], -1))
