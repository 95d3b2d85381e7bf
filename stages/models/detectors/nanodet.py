"""Person boxes by NanoDet, many images at once: the letterbox, the network, and what cells say as boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
# The longer side of the image as the network sees it, in px, and the lowest score of a box from there. A person who is
# missed at one size, for no reason that one could see, is often clear at another.
SIZES = ((640, 0.3), (512, 0.45))
OVERLAP = 0.6  # above which the better one of two boxes stays
MEGABYTES = 80  # of GPU memory for one image


class PersonBoxes:
    """Person boxes of images. The network is loaded at the first call."""

    def __init__(self, device: str, weights: Path = WEIGHTS) -> None:
        self.device, self.weights = device, weights
        self._network: Any = None

    def __call__(self, levels: Sequence[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes (n, 4) xyxy px and scores (n,) 0..1, best first, of each image, given by its `crops.halvings`."""
        proposed: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in levels]
        for side, lowest in SIZES:
            for k, box, score in self._propose(levels, side):
                likely = score >= lowest
                proposed[k].append((box[likely], score[likely]))
        return [distinct(*map(np.concatenate, zip(*each, strict=True))) for each in proposed]

    def _propose(self, levels: Sequence[list[np.ndarray]], side: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number, all boxes (c, 4) px and scores (c,) of each image; images of one size in common batches."""
        shapes = [letterbox(level[0].shape[1], level[0].shape[0], side) for level in levels]
        count = batch_for(self.device, MEGABYTES, cpu=1)
        for size in dict.fromkeys(size for _, size in shapes):
            members = [k for k, (_, each) in enumerate(shapes) if each == size]
            for start in range(0, len(members), count):
                chunk = members[start : start + count]
                inputs = np.stack([crops.warp_from(levels[k], shapes[k][0], size) for k in chunk])
                for k, box, score in zip(chunk, *self._run(inputs), strict=True):
                    height, width = levels[k][0].shape[:2]
                    yield k, to_image(box, shapes[k][0], (width, height)), score

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


def letterbox(width: int, height: int, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The affine (2, 3) of an image to the network's, and its size (width, height), multiples of the largest stride.

    The longer side becomes `side`; the image stays in the upper left corner, edges on edges, black beyond.
    """
    scale, step = side / max(width, height), STRIDES[-1]
    affine = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])
    across, down = (step * max(int(np.ceil(round(n * scale, 6) / step)), 1) for n in (width, height))
    return affine, (across, down)


def to_image(box: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (c, 4) from the letterbox's corner in pixels of an image of `size`, cut to it."""
    points = crops.apply(crops.invert(affine[None]), box.reshape(1, -1, 2) - 0.5)  # pixel centres are whole numbers
    return clip_boxes(points.reshape(-1, 4), size)


def distinct(box: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes (n, 4) that overlap the best one, best first."""
    keep = suppress(iou(box, box), score, OVERLAP)
    return box[keep], score[keep]
