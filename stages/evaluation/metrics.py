"""Errors of poses and meshes, batched over rows; inputs in metres, results in millimetres unless said.

Every function takes prediction and truth with the row axis first and returns one float64 value per row (or per row and
joint): means are for the caller, over rows, never over batch means. A row that cannot be scored (NaN, fewer than three
distinct points, no joint in the mask) is NaN, never zero. The definitions are the field's; what differs between the
papers (root, joints, regressor) is data in stages/datasets/protocols.py, not code here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MM = 1000.0
Float = NDArray[np.float64]


def per_joint_error(pred: ArrayLike, truth: ArrayLike) -> Float:
    """Euclidean distance of each joint, (n, J) mm, for pred and truth (n, J, 3) m in the same frame."""
    return MM * np.linalg.norm(np.asarray(pred, np.float64) - np.asarray(truth, np.float64), axis=-1)


def centred(points: ArrayLike, root: ArrayLike) -> Float:
    """points (n, J, 3) minus root (n, 3): what MPJPE and MPVE compare."""
    return np.asarray(points, np.float64) - np.asarray(root, np.float64)[:, None]


def mpjpe(pred: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> Float:
    """Mean per-joint position error, (n,) mm, of `centred` joints (n, J, 3) m; mask (n, J) selects joints.

    MPVE is the same function over vertices.
    """
    return masked_mean(per_joint_error(pred, truth), mask)


def pa_mpjpe(pred: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> Float:
    """MPJPE after `align`, (n,) mm. All joints take part in the alignment; mask selects those that are averaged."""
    return masked_mean(per_joint_error(align(pred, truth), truth), mask)


def masked_mean(errors: ArrayLike, mask: ArrayLike | None = None) -> Float:
    """Mean of errors (n, J) over the joints of mask (n, J); NaN where the mask is empty."""
    errors = np.asarray(errors, np.float64)
    if mask is None:
        return errors.mean(axis=1) if errors.shape[1] else np.full(len(errors), np.nan)
    weight = np.asarray(mask, bool)
    count = weight.sum(axis=1)
    total = np.where(weight, errors, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(errors), np.nan), where=count > 0)


def align(pred: ArrayLike, truth: ArrayLike) -> Float:
    """The similarity (rotation without reflection, scale, translation) of pred (n, J, 3) closest to truth, (n, J, 3).

    Least squares, Umeyama 1991 (eq. 40 to 42). Rows with NaN, or with all points at one position or on one line, are
    NaN.
    """
    pred, truth = np.asarray(pred, np.float64), np.asarray(truth, np.float64)
    usable = np.isfinite(pred).all((1, 2)) & np.isfinite(truth).all((1, 2))
    a, b = np.where(usable[:, None, None], pred, 0.0), np.where(usable[:, None, None], truth, 0.0)
    a_mean, b_mean = (x.mean(axis=1, keepdims=True) if x.shape[1] else np.zeros((len(x), 1, 3)) for x in (a, b))
    a, b = a - a_mean, b - b_mean
    u, s, vt = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    sign = np.ones((len(a), 3))
    sign[:, 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    rotation = (u * sign[:, None]) @ vt
    spread = (a**2).sum((1, 2))
    # rank below two on either side: all points on one line or at one position, so the rotation is undefined
    usable &= _rank_two(a) & _rank_two(b)
    scale = np.divide((s * sign).sum(1), spread, out=np.full(len(a), np.nan), where=usable & (spread > 0))
    return scale[:, None, None] * (a @ np.swapaxes(rotation, 1, 2)) + b_mean


def _rank_two(centred_points: Float) -> NDArray[np.bool_]:
    values = np.linalg.eigvalsh(np.swapaxes(centred_points, 1, 2) @ centred_points)
    return values[:, 1] > 1e-12 * np.maximum(values[:, 2], 1e-30)


def acceleration_error(pred: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> Float:
    """Norm of the difference of second differences, mean over joints, (n - 2,) mm per frame^2 (ProHMR, ScoreHMR).

    pred, truth (n, J, 3): consecutive frames of one track. valid (n,): only windows of three valid frames are
    returned, so the result may be shorter.
    """
    second = [np.diff(np.asarray(x, np.float64), n=2, axis=0) for x in (pred, truth)]
    errors = MM * np.linalg.norm(second[0] - second[1], axis=-1).mean(axis=-1)
    if valid is None:
        return errors
    valid = np.asarray(valid, bool)
    return errors[valid[:-2] & valid[1:-1] & valid[2:]]


def pck(pred: ArrayLike, truth: ArrayLike, radius: ArrayLike, visible: ArrayLike | None = None) -> Float:
    """Share of joints (n, J, D) within `radius` (n,), (n,) between 0 and 1; visible (n, J) selects joints."""
    distance = np.linalg.norm(np.asarray(pred, np.float64) - np.asarray(truth, np.float64), axis=-1)
    hit = np.where(np.isnan(distance), np.nan, distance <= np.asarray(radius, np.float64)[:, None])
    return masked_mean(hit, visible)
