"""A camera that looks at a person: turned so that the middle of the keypoints' box lies on its axis. Batch last."""

from __future__ import annotations

import torch
from torch import Tensor


def look_at(image: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """image (2, K, n) tangents, confidence (K, n) with 0 = not seen -> turn (3, 3, n) camera to virtual camera,
    half (n,) tangents, keypoints (2, K, n) in half sides, 0 where not seen."""
    seen = confidence > 0
    far = torch.where(seen, image, image.new_tensor(float("inf")))
    low = far.amin(1)
    high = torch.where(seen, image, image.new_tensor(float("-inf"))).amax(1)
    middle = torch.where(torch.isfinite(low + high), (low + high) / 2, torch.zeros_like(low))
    turn = ray_rotation(middle)
    x, y = torch.where(seen, image, torch.zeros_like(image))
    moved = turn[:, 0, None] * x + turn[:, 1, None] * y + turn[:, 2, None]
    moved = moved[:2] / moved[2].clamp(min=1e-3)
    moved = torch.where(seen, moved, torch.zeros_like(moved))
    half = moved.abs().amax((0, 1)).clamp(min=1e-6)
    return turn, half, moved / half


def ray_rotation(ray: Tensor) -> Tensor:
    """The smallest rotation (3, 3, n) that brings the ray (x, y, 1) of ray (2, n) onto the z axis."""
    x, y = ray
    length = (x * x + y * y + 1).sqrt()
    a, b, c = x / length, y / length, 1 / length
    f = 1 / (1 + c)
    rows = [1 - a * a * f, -a * b * f, -a, -a * b * f, 1 - b * b * f, -b, a, b, c]
    return torch.stack(rows).unflatten(0, (3, 3))
