"""Pinhole cameras and the weak cameras that networks predict. Every function takes numpy arrays or torch tensors.

Frames: OpenCV camera (x right, y down, z forward), metres. Pixel (0, 0) is the centre of the first pixel, so the middle
of a w x h image is ((w - 1) / 2, (h - 1) / 2).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

A = TypeVar("A", np.ndarray, torch.Tensor)


def default_K(size: A) -> A:
    """Intrinsics for images of an unknown camera: focal length = the image's diagonal, principal point = its middle.

    size (n, 2) width, height -> (n, 3, 3). The diagonal (a lens of 53 degrees across it) is the guess of CLIFF (Li et
    al., ECCV 2022, section 3.2), which DPMesh shares.
    """
    width, height = size[:, 0] * 1.0, size[:, 1] * 1.0
    focal = (width**2 + height**2) ** 0.5
    return make_K(focal, focal, (width - 1) / 2, (height - 1) / 2)


def make_K(fx: A, fy: A, cx: A, cy: A) -> A:
    """Intrinsics (n, 3, 3) from four vectors (n,) in pixels."""
    if isinstance(fx, torch.Tensor):
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).reshape(-1, 3, 3)
    zero, one = np.zeros_like(fx), np.ones_like(fx)
    return np.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).reshape(-1, 3, 3)


def project(xyz: A, K: A) -> A:
    """Pixels (..., V, 2) of points (..., V, 3) in the camera frame, metres; K (..., 3, 3). Depth 0 gives infinities."""
    uvw = xyz @ K.swapaxes(-1, -2)
    return uvw[..., :2] / uvw[..., 2:]


def weak_to_transl(camera: A, center: A, side: A, K: A) -> A:
    """Translation (n, 3) in the full camera from a weak camera of a square box.

    camera (n, 3) s, tx, ty: a point X falls on s (X + t) in the box's [-1, 1] · center (n, 2), side (n,) of the box in
    image pixels · K (n, 3, 3). Depth is where the focal length gives the same scale: z = 2 f / (s side) (HMR 2.0,
    4D-Humans `cam_crop_to_full`; ScoreHMR starts from it with f = 5000 px).
    """
    z = 2 * K[:, 0, 0] / (side * camera[:, 0] + 1e-9)
    return _at(camera[:, 1], camera[:, 2], z, center, K)


def crop_to_full(transl: A, focal: float | A, crop_side: float, center: A, side: A, K: A) -> A:
    """Translation (n, 3) in the full camera of a person from that in a crop's camera.

    transl (n, 3) metres in a camera whose focal length is `focal` pixels of a crop with `crop_side` pixels and whose
    principal point is the crop's middle · center (n, 2), side (n,) the crop's square in image pixels · K (n, 3, 3).
    A crop pixel covers side / crop_side image pixels; depth is rescaled so that the person keeps the size.
    """
    z = transl[:, 2] * (K[:, 0, 0] / focal) * (crop_side / side)
    return _at(transl[:, 0], transl[:, 1], z, center, K)


def _at(x: A, y: A, z: A, center: A, K: A) -> A:
    """x, y, z shifted sideways so that the axis of the crop's camera passes through the box's centre."""
    x = x + (center[:, 0] - K[:, 0, 2]) * z / K[:, 0, 0]
    y = y + (center[:, 1] - K[:, 1, 2]) * z / K[:, 1, 1]
    return torch.stack([x, y, z], -1) if isinstance(x, torch.Tensor) else np.stack([x, y, z], -1)


def scaled_K(K: A, factor: float) -> A:
    """Intrinsics (..., 3, 3) of images resized by `factor`; points move as (xy + 0.5) * factor - 0.5."""
    K = K * 1.0
    K[..., :2, :2] = K[..., :2, :2] * factor
    K[..., :2, 2] = (K[..., :2, 2] + 0.5) * factor - 0.5
    return K


def look_at(image: torch.Tensor, confidence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A virtual camera whose axis passes through the middle of the keypoints' box; batch last.

    image (2, K, n) tangents, confidence (K, n) with 0 = not visible -> R_camera_to_virtual (3, 3, n), half (n,) half
    side of the box there as a tangent, keypoints (2, K, n) in half sides, 0 where not visible."""
    visible = confidence > 0
    masked = torch.where(visible, image, image.new_tensor(float("inf")))
    low = masked.amin(1)
    high = torch.where(visible, image, image.new_tensor(float("-inf"))).amax(1)
    middle = torch.where(torch.isfinite(low + high), (low + high) / 2, torch.zeros_like(low))
    rotation = ray_rotation(middle)
    x, y = torch.where(visible, image, torch.zeros_like(image))
    rays = rotation[:, 0, None] * x + rotation[:, 1, None] * y + rotation[:, 2, None]
    tangents = rays[:2] / rays[2].clamp(min=1e-3)
    tangents = torch.where(visible, tangents, torch.zeros_like(tangents))
    half = tangents.abs().amax((0, 1)).clamp(min=1e-6)
    return rotation, half, tangents / half


def ray_rotation(ray: torch.Tensor) -> torch.Tensor:
    """The smallest rotation (3, 3, n) that brings the ray (x, y, 1) of ray (2, n) onto the z axis."""
    x, y = ray
    length = (x * x + y * y + 1).sqrt()
    a, b, c = x / length, y / length, 1 / length
    f = 1 / (1 + c)
    rows = [1 - a * a * f, -a * b * f, -a, -a * b * f, 1 - b * b * f, -b, a, b, c]
    return torch.stack(rows).unflatten(0, (3, 3))
