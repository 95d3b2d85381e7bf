"""Gaussian heatmaps of joints: the condition of DPMesh's ControlNet, and the training targets of 2D networks."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_heatmaps(xy: Tensor, visible: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Heatmaps (n, J, H, W): exp(-|p - xy|^2 / (2 sigma^2)) at pixel centre p, peak 1; 0 where not visible.

    xy (n, J, 2) x, y in heatmap pixels (may lie between pixels or outside) · visible (n, J) bool · size (H, W) ·
    sigma in heatmap pixels. DPMesh: size (32, 32), sigma 2.5. A Gaussian is a product of two, so the cost is one
    exponential per row and column, not per pixel.
    """
    height, width = size
    # A hidden joint may be NaN; 0 * NaN is NaN, so it is moved, not only masked.
    xy = torch.where(visible[..., None], xy, torch.zeros_like(xy))
    x = torch.arange(width, device=xy.device, dtype=xy.dtype) - xy[..., 0, None]
    y = torch.arange(height, device=xy.device, dtype=xy.dtype) - xy[..., 1, None]
    scale = -0.5 / sigma**2
    column = torch.exp(y * y * scale) * visible[..., None]
    return column[..., :, None] * torch.exp(x * x * scale)[..., None, :]
