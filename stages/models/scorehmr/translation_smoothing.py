"""Translations along a track: what the keypoints say of each frame, and that people do not jump.

A keypoint is a poor judge of depth: 3 px of noise move a person at 4 m by 10 cm. So the translations of a track are
solved together: each frame's own least squares (whose normal equations know that depth is uncertain) plus the squared
second difference. One banded system, exact, also across frames without evidence.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

NOISE = 0.03  # of a keypoint, as a share of half the person's box: 3 px of a 256 crop
ACCELERATION = 0.01  # m per frame^2, about 9 m/s^2 at 30 frames a second


def smooth_translations(information: Tensor, transl: Tensor, linked: Tensor) -> Tensor:
    """transl (n, 3) of least-squares fits with normal matrices `information` (n, 3, 3) -> smoothed (n, 3), metres.

    linked (n,): row i is one frame after row i - 1. Rows that are not linked to two others keep their own solution.
    """
    n = len(transl)
    A = information.double().cpu().numpy() / NOISE**2 + 1e-6 * np.eye(3)
    right = np.einsum("nij,nj->ni", A, transl.double().cpu().numpy())
    # Upper band of the block matrix: row r of `band` is the diagonal r places above.
    band = np.zeros((7, 3 * n))
    for i in range(3):
        for j in range(i, 3):
            band[6 - (j - i), j::3] = A[:, i, j]
    link = linked.cpu().numpy()
    middle = np.flatnonzero(link[1:-1] & link[2:]) + 1 if n > 2 else np.zeros(0, int)
    for shift_a, weight_a in ((-1, 1.0), (0, -2.0), (1, 1.0)):
        for shift_b, weight_b in ((-1, 1.0), (0, -2.0), (1, 1.0)):
            if shift_b >= shift_a:
                for axis in range(3):
                    np.add.at(
                        band[6 - 3 * (shift_b - shift_a)],
                        3 * (middle + shift_b) + axis,
                        weight_a * weight_b / ACCELERATION**2,
                    )
    solved = solveh_banded(band[::1], right.reshape(-1)).reshape(n, 3)
    return torch.from_numpy(solved).to(transl)
