"""How alike two sets of keypoints are: COCO's object keypoint similarity (OKS), and suppression and matching by it.

OKS = mean over joints of exp(-d^2 / (2 (2 sigma)^2 area)), Lin et al., COCO keypoint challenge 2016. The sigmas are
the spread of human annotators for each joint, as a share of the square root of the person's area; all functions are
plain numpy over all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# COCO's published sigmas, by name without its side. The joints of other sets take their nearest kin.
_SIGMAS = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062}
_SIGMAS |= {"hip": 0.107, "knee": 0.087, "ankle": 0.089, "neck": 0.079, "head_top": 0.079, "head": 0.079, "hand": 0.062}
_SIGMAS |= {"foot": 0.089, "heel": 0.089, "big_toe": 0.089, "small_toe": 0.089}
_OTHER = 0.107  # trunk: pelvis, spine, collars


def sigmas(joints: Sequence[str]) -> np.ndarray:
    """The spread (J,) of each named joint."""
    plain = [name.removeprefix("left_").removeprefix("right_") for name in joints]
    return np.array([_SIGMAS.get(name, _OTHER) for name in plain])


def extent(xy: np.ndarray) -> np.ndarray:
    """Area (n,) in px^2 of the tight box of keypoints (n, J, 2), at least 1; NaN points are left out."""
    low = np.where(np.isfinite(xy), xy, np.inf).min(1, initial=np.inf)
    high = np.where(np.isfinite(xy), xy, -np.inf).max(1, initial=-np.inf)
    return np.maximum(np.where(np.isfinite(high - low), high - low, 0).prod(-1), 1)


def oks(a: np.ndarray, b: np.ndarray, area: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Similarity (n, m) in 0..1 of keypoints (n, J, 2) and (m, J, 2); 0 without a common joint.

    area (n, m) or broadcastable, px^2 · sigma (J,). A joint that is NaN on either side is left out of the mean.
    """
    d2 = ((a[:, None] - b[None]) ** 2).sum(-1)
    both = np.isfinite(d2)
    area = np.broadcast_to(area, d2.shape[:2])[..., None]
    like = np.exp(-np.where(both, d2, 0) / (2 * (2 * sigma) ** 2 * area + 1e-9)) * both
    return like.sum(-1) / np.maximum(both.sum(-1), 1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4) xyxy; 0 for empty or NaN boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.maximum(high - low, 0).prod(-1)
    size_a, size_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = size_a[:, None] + size_b[None] - inner
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.where(union > 0, inner / union, 0.0), nan=0.0)


def suppress(similar: np.ndarray, score: np.ndarray, limit: float) -> np.ndarray:
    """Greedy suppression: indices to keep, best score first, none more than `limit` similar to a better kept one.

    similar (n, n), score (n,) -> int64 (k,).
    """
    order = np.argsort(-score, kind="stable")
    alive = np.ones(len(score), bool)
    keep = []
    for i in order:
        if alive[i]:
            keep.append(i)
            alive &= ~(similar[i] > limit)
    return np.array(keep, np.int64)
