"""Gaussian heatmaps of joints, and the joints that DPMesh draws of a person's 2D keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.geometry import crops
from stages.keypoints import joint_sets


def gaussian_heatmaps(xy: Tensor, visible: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Heatmaps (n, J, H, W): exp(-|p - xy|^2 / (2 sigma^2)) at pixel centre p, peak 1; 0 where not visible.

    xy (n, J, 2) x, y in heatmap pixels (may lie between pixels or outside) · visible (n, J) bool · size (H, W) ·
    sigma in heatmap pixels. DPMesh: size (32, 32), sigma 2.5. A Gaussian is a product of two, so the cost is one
    exponential per row and column, not per pixel.
    """
    height, width = size
    # A hidden joint may be NaN; 0 * NaN is NaN, so it is replaced, not only masked.
    xy = torch.where(visible[..., None], xy, torch.zeros_like(xy))
    x = torch.arange(width, device=xy.device, dtype=xy.dtype) - xy[..., 0, None]
    y = torch.arange(height, device=xy.device, dtype=xy.dtype) - xy[..., 1, None]
    scale = -0.5 / sigma**2
    column = torch.exp(y * y * scale) * visible[..., None]
    return column[..., :, None] * torch.exp(x * x * scale)[..., None, :]


def dpmesh_keypoints(keypoints: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Keypoints (n, J, 3) of any joint set as DPMesh's 30 (n, 30, 3): x, y px, score; absent joints are 0, 0, 0.

    Joints go by name. Pelvis and neck, where the set lacks them, are the mean of hips and shoulders with the *product*
    of their scores (the reference's rule; a missing hip counts as the point 0, 0). Raises InputError for a set that
    does not fit.
    """
    keypoints = np.nan_to_num(np.asarray(keypoints, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    out = np.nan_to_num(joint_sets.convert(keypoints, names, "dpmesh30"))
    targets = joint_sets.SETS["dpmesh30"]
    for middle, pair in (("pelvis", ("left_hip", "right_hip")), ("neck", ("left_shoulder", "right_shoulder"))):
        direct = joint_sets.index(names, [middle, "mid_hip" if middle == "pelvis" else middle])
        ends = joint_sets.index(names, pair)
        if (direct < 0).all() and (ends >= 0).all():
            k = targets.index(middle)
            a, b = keypoints[:, ends[0]], keypoints[:, ends[1]]
            out[:, k, :2] = (a[:, :2] + b[:, :2]) / 2
            out[:, k, 2] = a[:, 2] * b[:, 2]
    return out


@dataclasses.dataclass(frozen=True)
class JointsInCrop:
    """The joints of n crops: affine (n, 2, 3) float64, image to heatmap pixels, NaN without a visible joint · xy (n, J,
    2) float32 heatmap pixels (a missing joint is at the image's origin) · visible (n, J) bool."""

    affine: np.ndarray
    xy: np.ndarray
    visible: np.ndarray


def joints_in_crop(keypoints: np.ndarray, size: np.ndarray, side: int = 32, threshold: float = 0.05) -> JointsInCrop:
    """The crop and crop joints of keypoints (n, J, 3) by DPMesh's rule; size (n, 2) of the images, side of the map.

    A joint is visible when its score is above the threshold and it lies inside the map. The affine of the network's
    256-pixel crop is `crops.scaled(affine, 256 / side)`.
    """
    center, extent = crops.square_boxes(crops.dpmesh_boxes(keypoints, size, threshold))
    affine = crops.square_affine(center, extent, side)
    xy = crops.apply(affine, np.nan_to_num(keypoints[..., :2].astype(np.float64))).astype(np.float32)
    visible = (keypoints[..., 2] > threshold) & (xy >= 0).all(-1) & (xy < side).all(-1)
    return JointsInCrop(affine, xy, visible)
