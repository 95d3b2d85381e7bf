"""Rotations: the few forms this project uses, thin names over `roma`. All functions take any leading batch axes.

A rotation matrix acts on column vectors. Axis-angle is the axis times the angle in radians. "6D" is two columns of a
matrix (Zhou et al., "On the continuity of rotation representations", 2019, eq. 15) and comes in two memory orders,
which are not interchangeable:

* interleaved (DPMesh, HMR, SPIN, PARE): the numbers as a 3 x 2 matrix, (r00, r01, r10, r11, r20, r21);
* columns (ScoreHMR, ProHMR): first column, then second, (r00, r10, r20, r01, r11, r21).
"""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

_EPS = 1e-8


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) rad -> (..., 3, 3). The gradient is finite everywhere, also at zero."""
    return roma.rotvec_to_rotmat(axis_angle)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) rad, angle at most pi. For storing; not meant to be differentiated at zero."""
    return roma.rotmat_to_rotvec(matrix)


def rot6d_interleaved_to_matrix(x: Tensor) -> Tensor:
    """(..., 6) in DPMesh's order -> (..., 3, 3) by Gram-Schmidt; never NaN for finite input."""
    return roma.special_gramschmidt(x.reshape(*x.shape[:-1], 3, 2), epsilon=_EPS)


def rot6d_columns_to_matrix(x: Tensor) -> Tensor:
    """(..., 6) in ScoreHMR's order -> (..., 3, 3) by Gram-Schmidt; never NaN for finite input."""
    return roma.special_gramschmidt(x.reshape(*x.shape[:-1], 2, 3).transpose(-1, -2), epsilon=_EPS)


def matrix_to_rot6d_interleaved(matrix: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6) in DPMesh's order."""
    return matrix[..., :2].reshape(*matrix.shape[:-2], 6)


def matrix_to_rot6d_columns(matrix: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6) in ScoreHMR's order."""
    return matrix[..., :2].transpose(-1, -2).reshape(*matrix.shape[:-2], 6)


def geodesic(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rotations (..., 3, 3) and (..., 3, 3) -> (...) rad in [0, pi]."""
    return roma.rotmat_geodesic_distance(a, b)


def slerp(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Between a (..., 3, 3) at fraction 0 and b at fraction 1, along the shorter arc; fraction (...) may be
    broadcast."""
    difference = matrix_to_axis_angle(a.transpose(-1, -2) @ b)
    return a @ axis_angle_to_matrix(difference * fraction[..., None])


def about(axis: str, angle: Tensor | float, *, degrees: bool = False) -> Tensor:
    """Rotation about "x", "y" or "z" by angle (...) -> (..., 3, 3)."""
    angle = torch.as_tensor(angle, dtype=torch.get_default_dtype()) * (math.pi / 180 if degrees else 1.0)
    vector = torch.zeros(*angle.shape, 3, dtype=angle.dtype, device=angle.device)
    vector[..., "xyz".index(axis)] = angle
    return axis_angle_to_matrix(vector)
