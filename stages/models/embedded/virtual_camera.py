"""The inputs of the embedded network, and the translation of a posed body in closed form. Batch last.

The keypoints are those of a virtual camera that looks at the person (geometry/cameras.py), divided by half the longer
side of their box. The position in the image therefore cancels exactly (not only for long lenses, as with a shifted
crop). That half side, as a tangent, is an input too: together with the body's size it determines the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

INPUTS = 17 * 3 + 1


def features(normal: Tensor, confidence: Tensor, half: Tensor) -> Tensor:
    """Inputs of the network from keypoints (2, 17, n), confidence (17, n), half (n,) -> (n, 52)."""
    size = ((half.log() + 1.8) / 0.5).clamp(-3, 3)
    return torch.cat([normal.flatten(0, 1), confidence, size[None]]).T.contiguous()


def solve_pelvis(points: Tensor, image: Tensor, weight: Tensor, guess: Tensor, guess_weight: float = 0.02) -> Tensor:
    """The pelvis (3, n) m of a posed body that fits its keypoints best, in closed form.

    x (Z + z) = X + t is linear in the position (t, z), so this is a weighted least squares with three unknowns.
    points (3, 17, n) m from the pelvis · image (2, 17, n) tangents · weight (17, n) · guess (3, n) m, the network's
    estimate, whose depth has the weight `guess_weight` of all keypoints together.
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
    # Only the size shows the depth, and few points show it poorly: regularise it towards the guess, scaled by its
    # effect on the residuals.
    prior = torch.stack([1e-6 * s + 1e-9, 1e-6 * s + 1e-9, guess_weight * suu + 1e-9], -1)
    matrix = matrix + torch.diag_embed(prior)
    return torch.linalg.solve(matrix, right + prior * guess.T).T
