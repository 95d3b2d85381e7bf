"""PCT as a detector of joints: 17 COCO keypoints of a given box, robust where joints hide each other.

Geng et al., "Human Pose as Compositional Tokens", CVPR 2023. The file is a pose model of the authors' zoo (base, large
or huge: the size is read off the file); no mmpose is needed. People come from elsewhere: `needs_boxes`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stages.errors import AssetError
from stages.files.checkpoints import read_checkpoint
from stages.files.hashing import sha256_of_files
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS
from stages.models.detectors.base import DetectedPeople
from stages.models.pct import network, weights

SIDE = 256
PADDING = 1.12  # of the box, by mmpose's top-down rule, in PCT's published evaluation
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


class PctPose:
    """See the module. `flip` averages with the mirrored crop, as the published accuracies do, at twice the time."""

    name = "pct"
    licence = "PCT weights: see their authors"
    joints = SETS["coco17"]
    score_definition = "mean probability of PCT's 34 pose tokens, the same for all joints of a person"
    min_score = 0.5
    batch_size = 8
    needs_boxes = True
    flip = True

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.sha256 = sha256_of_files(path)
        self._network: network.PCT | None = None

    @classmethod
    def missing(cls, path: Path | None) -> str:
        if path is None or not path.is_file():
            return "--detector-path with a pose model of PCT's zoo (pct_swin_base.pth, large or huge)"
        return ""

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> PctPose:
        """Raises AssetError when there is no such file."""
        if hint := cls.missing(path):
            raise AssetError("detector pct is not ready on this machine", hint)
        assert path
        return cls(path, device)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        if boxes is None:
            raise AssetError("detector pct finds no people, only their joints", "give it boxes: --boxes FILE")
        result = [
            DetectedPeople(b, np.full(len(b), np.nan), np.full((len(b), 17, 3), np.nan)) for b in map(np.asarray, boxes)
        ]
        frame = np.repeat(np.arange(len(result)), [len(each) for each in result])
        box = np.concatenate([each.box for each in result]).astype(float) if len(frame) else np.zeros((0, 4))
        fine = np.flatnonzero(np.isfinite(box).all(1) & (box[:, 2:] > box[:, :2]).all(1))
        keypoints = np.full((len(box), 17, 3), np.nan)
        for start in range(0, len(fine), self.batch_size):
            some = fine[start : start + self.batch_size]
            keypoints[some] = self.keypoints(images, box[some], frame[some])
        for k, each in enumerate(result):
            each.keypoints = keypoints[frame == k]
        return result

    @torch.no_grad()
    def keypoints(self, images: list[np.ndarray], box: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Keypoints (n, 17, 3) of boxes (n, 4) in the images `frame` (n,), in image pixels."""
        affine = crops.mmpose_affine(box, (SIDE, SIDE), PADDING)
        patches = crops.warp(images, frame, affine, SIDE)
        tensor = torch.from_numpy((patches - MEAN) / STD).permute(0, 3, 1, 2).float().contiguous()
        xy, confidence = self.network().pose(tensor.to(self.device), self.flip)
        position = crops.apply(crops.invert(affine), xy.double().cpu().numpy())
        return np.concatenate(
            [position, np.broadcast_to(confidence.double().cpu().numpy()[:, None, None], (len(box), 17, 1))], 2
        )

    def network(self) -> network.PCT:
        if self._network is None:
            checkpoint = read_checkpoint(self.path)
            tensors = checkpoint.without(*weights.PREFIXES)
            if not weights.is_pct(tensors):
                raise AssetError(
                    f"{checkpoint.where} is no pose model of PCT", "tokenizers and backbones alone find no joints"
                )
            self._network = weights.load_pct(tensors, checkpoint.where).to(self.device).prepare()
        return self._network
