"""What the embedded recoverer reads, and the closed-form camera from a body and its keypoints.

The keypoints are those of a virtual camera that looks at the person (geometry/cameras.py), so the place in the picture
drops out exactly (not only for long lenses, as with a shifted crop), divided by half the box's longer side. That half
side in tangents is an input too: together with the body's size it tells the distance. Batch last.
"""

from __future__ import annotations

import torch
from torch import Tensor

INPUTS = 17 * 3 + 1


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
