"""The virtual camera of the embedded recoverer, and the closed-form camera from a body and its keypoints.

Keypoints are turned by the rotation that brings the middle of their box onto the optical axis, so the place in the
picture drops out exactly (not only for long lenses, as with a shifted crop), then divided by half the box's longer
side. That half side in tangents is an input too: together with the body's size it tells the distance. Batch last.
"""

from __future__ import annotations

import torch
from torch import Tensor

INPUTS = 17 * 3 + 1


def look_at(image: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """image (2, 17, n) tangents, confidence (17, n) with 0 = not seen -> turn (3, 3, n) camera to virtual camera,
    half (n,) tangents, keypoints (2, 17, n) in half sides, 0 where not seen."""
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


def features(normal: Tensor, confidence: Tensor, half: Tensor) -> Tensor:
    """What the network reads: keypoints (2, 17, n), confidence (17, n), half (n,) -> (n, 52)."""
    size = ((half.log() + 1.8) / 0.5).clamp(-3, 3)
    return torch.cat([normal.flatten(0, 1), confidence, size[None]]).T.contiguous()


def solve_pelvis(points: Tensor, image: Tensor, weight: Tensor, guess: Tensor, trust: float = 0.02) -> Tensor:
    """The place (3, n) of a posed body that fits its keypoints best, in closed form.

    From x (Z + z) = X + t the place (t, z) is linear: a weighted least squares with three unknowns. points (3, 17, n)
    from the pelvis, image (2, 17, n) tangents, weight (17, n), guess (3, n) the network's own place, whose depth weighs
    `trust` of all keypoints.
    """
    u, v = image
    x, y, z = points
    # Rows (1, 0, -u) and (0, 1, -v); right-hand sides u Z - X and v Z - Y; both divided by the depth to be pixels.
    w = weight / guess[2].clamp(min=0.1).square()
    s, su, sv = w.sum(0), (w * u).sum(0), (w * v).sum(0)
    suu = (w * (u * u + v * v)).sum(0)
    p, q = u * z - x, v * z - y
    rx, ry, rz = (w * p).sum(0), (w * q).sum(0), -(w * (u * p + v * q)).sum(0)
    zero = torch.zeros_like(s)
    matrix = torch.stack([s, zero, -su, zero, s, -sv, -su, -sv, suu]).unflatten(0, (3, 3)).permute(2, 0, 1)
    right = torch.stack([rx, ry, rz], -1)
    # The depth is known from size alone, poorly with few points: hold it by the guess in units of its own effect.
    prior = torch.stack([1e-6 * s + 1e-9, 1e-6 * s + 1e-9, trust * suu + 1e-9], -1)
    matrix = matrix + torch.diag_embed(prior)
    return torch.linalg.solve(matrix, right + prior * guess.T).T
