"""Person boxes by NanoDet, many images at once: the letterbox, the network, and what cells say as boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.files.checkpoints import read_checkpoint
from stages.files.folders import packaged
from stages.geometry import crops
from stages.keypoints.oks import iou, suppress
from stages.models.detectors.base import batch_for, clip_boxes
from stages.models.detectors.convolution import for_inference
from stages.models.detectors.nanodet_network import MEAN, STD, STRIDES, NanoDet, cells

WEIGHTS = packaged("data/nanodet.safetensors")
SIDE = 640  # px, longer side of the image as the network sees it
LOWEST, OVERLAP = 0.3, 0.6  # score of a box, and the overlap above which the better one of two stays
MEGABYTES = 80  # of GPU memory for one image


class PersonBoxes:
    """Person boxes of images. The network is loaded at the first call."""

    def __init__(self, device: str, weights: Path = WEIGHTS) -> None:
        self.device, self.weights = device, weights
        self._network: Any = None

    def __call__(self, levels: Sequence[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes (n, 4) xyxy px and scores (n,) 0..1, best first, of each image, given by its `crops.halvings`."""
        shapes = [letterbox(level[0].shape[1], level[0].shape[0]) for level in levels]
        found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros((0, 4)), np.zeros(0))] * len(levels)
        count = batch_for(self.device, MEGABYTES, cpu=1)
        for size in dict.fromkeys(size for _, size in shapes):
            members = [k for k, (_, each) in enumerate(shapes) if each == size]
            for start in range(0, len(members), count):
                chunk = members[start : start + count]
                inputs = np.stack([crops.warp_from(levels[k], shapes[k][0], size) for k in chunk])
                for k, box, score in zip(chunk, *self._run(inputs), strict=True):
                    height, width = levels[k][0].shape[:2]
                    found[k] = select(box, score, shapes[k][0], (width, height))
        return found

    @torch.inference_mode()
    def _run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, c, 4) xyxy in px from the corner of the letterboxed images (n, H, W, 3) RGB, scores (n, c)."""
        network = self._load()
        x = torch.from_numpy(images).to(self.device).flip(-1)
        x = (x - x.new_tensor(MEAN)) / x.new_tensor(STD)
        score, sides = network(x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
        centers = cells(*images.shape[1:3]).to(x)
        box = torch.cat([centers - sides[..., :2], centers + sides[..., 2:]], -1)
        return box.cpu().double().numpy(), score.cpu().double().numpy()

    def _load(self) -> Any:
        if self._network is None:
            network = NanoDet()
            network.load_state_dict({k: v.float() for k, v in read_checkpoint(self.weights).tensors.items()})
            self._network = for_inference(network, self.device)
        return self._network


def letterbox(width: int, height: int, side: int = SIDE) -> tuple[np.ndarray, tuple[int, int]]:
    """The affine (2, 3) of an image to the network's, and its size (width, height), multiples of the largest stride.

    The longer side becomes `side`; the image stays in the upper left corner, edges on edges, black beyond.
    """
    scale = side / max(width, height)
    affine = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])
    padded = (int(np.ceil(round(n * scale, 6) / STRIDES[-1])) * STRIDES[-1] for n in (width, height))
    across, down = padded
    return affine, (max(across, STRIDES[-1]), max(down, STRIDES[-1]))


def select(
    box: np.ndarray, score: np.ndarray, affine: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes (c, 4) from the letterbox's corner the good and distinct ones, in pixels of an image of `size`."""
    likely = np.flatnonzero(score >= LOWEST)
    points = crops.apply(crops.invert(affine[None]), box[likely].reshape(1, -1, 2) - 0.5)  # pixel centres are whole
    box, score = clip_boxes(points.reshape(-1, 4), size), score[likely]
    keep = suppress(iou(box, box), score, OVERLAP)
    return box[keep], score[keep]
