"""Smoothing of the translations along a track.

Keypoints determine depth poorly: 3 px of noise move a person at 4 m by 10 cm. So the translations of a track are solved
together: the least squares of each frame, whose normal matrix says how uncertain depth is, plus the squared second
difference (acceleration). This is one banded system, solved exactly, also across frames without keypoints.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

NOISE = 0.03  # of a keypoint, as a fraction of half the person's box: 3 px of a 256 crop
ACCELERATION = 0.01  # m per frame^2, about 9 m/s^2 at 30 frames a second


def smooth_translations(information: Tensor, transl: Tensor, consecutive: Tensor) -> Tensor:
    """transl (n, 3) of least-squares fits with normal matrices `information` (n, 3, 3) -> smoothed (n, 3), metres.

    consecutive (n,) bool: row i is one frame after row i - 1. Rows without neighbours on both sides keep their own
    solution.
    """
    n = len(transl)
    A = information.double().cpu().numpy() / NOISE**2 + 1e-6 * np.eye(3)
    b = np.einsum("nij,nj->ni", A, transl.double().cpu().numpy())
    # Upper band of the block matrix, in scipy's layout.
    band = np.zeros((7, 3 * n))
    for i in range(3):
        for j in range(i, 3):
            band[6 - (j - i), j::3] = A[:, i, j]
    has_previous = consecutive.cpu().numpy()
    middle = np.flatnonzero(has_previous[1:-1] & has_previous[2:]) + 1 if n > 2 else np.zeros(0, int)
    for shift_a, weight_a in ((-1, 1.0), (0, -2.0), (1, 1.0)):
        for shift_b, weight_b in ((-1, 1.0), (0, -2.0), (1, 1.0)):
            if shift_b >= shift_a:
                for axis in range(3):
                    np.add.at(
                        band[6 - 3 * (shift_b - shift_a)],
                        3 * (middle + shift_b) + axis,
                        weight_a * weight_b / ACCELERATION**2,
                    )
    solved = solveh_banded(band[::1], b.reshape(-1)).reshape(n, 3)
    return torch.from_numpy(solved).to(transl)
