"""How likely two rows of one moment, in different views, are one person: by lines of sight, or by body poses.

A weight is 1 for a perfect match, 0 where it could be either, negative for two people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stages.geometry.rays import nearest_points, rays

MIN_VISIBLE = 4  # joints that must be visible in both rows
RAY_GATE = 0.09  # half boxes, about 10 px of a 256 crop: rays of one person are nearer to each other
MIN_WEIGHT = -0.5  # weight of one moment, at least: wrong moments do not outvote right ones
POSE_GATE = 0.16  # m between joints of two pelvis-aligned bodies: recovered bodies of one person differ by less
RAY_MARGIN = 0.1  # weight a moment by which the best partition must beat an exchange of two people
POSE_MARGIN = (0.03, 0.05)  # m, the same for poses: a constant, and a part divided by the root of the number of moments
INDEPENDENT_AFTER = 0.3  # s between moments whose poses are independent
# m, of an adult: lines of sight to two different people also cross, but at points of a wrong size.
BONES = {
    ("shoulder", "elbow"): 0.27, ("elbow", "wrist"): 0.25, ("hip", "knee"): 0.40, ("knee", "ankle"): 0.41,
    ("shoulder", "hip"): 0.50,
}  # fmt: skip


@dataclass(frozen=True)
class Sightings:
    """R rows: track (R,), -1 for none; camera, moment (R,) numbers; keypoints (R, J, 3) px of `names`, with score 0 or
    NaN where not visible; K (R, 3, 3) px; time (R,) s or NaN; ok (R,) bool: may be joined. With a rig: R (R, 3, 3), t
    (R, 3) m world to camera. With bodies: joints, a function of rows (n,) -> (n, J', 3) m about the pelvis and in its
    axes."""

    track: np.ndarray
    camera: np.ndarray
    moment: np.ndarray
    ok: np.ndarray
    keypoints: np.ndarray
    names: tuple[str, ...]
    K: np.ndarray
    time: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None
    joints: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass
class Association:
    """person (R,) numbers; how: by what people were told apart; notes and warnings for the user; reason: why no two
    views could be joined, if none were."""

    person: np.ndarray
    how: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reason: str = ""


Measure = Callable[[Sightings, np.ndarray], tuple[np.ndarray, np.ndarray]]


def certain_weights(sightings: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person in each view: rows of one moment are one person."""
    return np.ones(len(pairs)), np.zeros(len(pairs))


def ray_weights(sightings: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (P,) and metres (P,) between lines of sight to the same joints, median over joints."""
    assert sightings.R is not None and sightings.t is not None
    xy, score = sightings.keypoints[..., :2], sightings.keypoints[..., 2]
    visible = (score > 0) & np.isfinite(xy).all(-1)
    both_visible = visible[pairs[:, 0]] & visible[pairs[:, 1]]
    sides = []
    for rows in pairs.T:
        visible_xy = np.where(visible[rows, :, None], xy[rows], 0)
        center, direction = rays(visible_xy, sightings.K[rows], sightings.R[rows], sightings.t[rows])
        sides.append((center, direction, _half_boxes(xy[rows], visible[rows], sightings.K[rows])))
    (a, direction_a, half_a), (b, direction_b, half_b) = sides
    depth_a, depth_b = nearest_points(a, direction_a, b, direction_b)
    point_a, point_b = a[:, None] + depth_a[..., None] * direction_a, b[:, None] + depth_b[..., None] * direction_b
    gap = np.linalg.norm(point_a - point_b, axis=-1)
    size = depth_a * half_a[:, None] + depth_b * half_b[:, None]
    too_few = both_visible.sum(1) < MIN_VISIBLE
    both_visible[too_few] = True  # for the medians; the weight of such pairs is NaN
    relative_gap = np.nanmedian(np.where(both_visible, gap / size, np.nan), 1)
    log_size = _log_size(np.where(both_visible[..., None], (point_a + point_b) / 2, np.nan), sightings.names)
    weight = np.maximum(1 - (relative_gap / RAY_GATE) ** 2 - np.minimum((log_size / 0.5) ** 2, 1), MIN_WEIGHT)
    return np.where(too_few, np.nan, weight), np.nanmedian(np.where(both_visible, gap, np.nan), 1)


def _half_boxes(xy: np.ndarray, visible: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Tangent (P,) of half the longer side of the keypoints' box."""
    low = np.where(visible[..., None], xy, np.inf).min(1)
    high = np.where(visible[..., None], xy, -np.inf).max(1)
    side = ((high - low) / K[:, [0, 1], [0, 1]]).max(1) / 2
    return np.where(np.isfinite(side), np.maximum(side, 1e-3), 1.0)


def _log_size(points: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Logarithm (P,) of the size of a person at points (P, J, 3), relative to an adult; 0 where no bone is visible."""
    index = {name: i for i, name in enumerate(names)}
    ratio = [
        np.linalg.norm(points[:, index[f"{side}_{a}"]] - points[:, index[f"{side}_{b}"]], axis=-1) / length
        for (a, b), length in BONES.items()
        for side in ("left", "right")
        if f"{side}_{a}" in index and f"{side}_{b}" in index
    ]
    if not ratio:
        return np.zeros(len(points))
    value = np.log(np.maximum(np.stack(ratio, 1), 1e-3))
    unknown = np.isnan(value).all(1)
    value[unknown] = 0
    return np.nanmedian(value, 1)


def pose_weights(sightings: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (P,) and mean distance (P,) m of the joints of two bodies, both in the axes of their own pelvis."""
    assert sightings.joints is not None
    rows, index = np.unique(pairs, return_inverse=True)
    joints = sightings.joints(rows)[index.reshape(pairs.shape)]
    distance = np.linalg.norm(joints[:, 0] - joints[:, 1], axis=-1).mean(-1)
    return np.maximum(1 - distance / POSE_GATE, MIN_WEIGHT), distance


def ray_margin(moments: float) -> float:
    """Weight a moment by which the best partition must beat an exchange of two people, by lines of sight."""
    return RAY_MARGIN


def pose_margin(moments: float) -> float:
    """The same by body poses: more where there are few moments."""
    return (POSE_MARGIN[0] + POSE_MARGIN[1] / max(moments, 1.0) ** 0.5) / POSE_GATE


def independent_share(sightings: Sightings) -> float:
    """Share of the moments that are independent: the pose of the next video frame is nearly the same."""
    if not np.isfinite(sightings.time[sightings.ok]).all():
        return 1.0
    independent = len(np.unique(np.floor(sightings.time[sightings.ok] / INDEPENDENT_AFTER)))
    return independent / max(len(np.unique(sightings.moment[sightings.ok])), 1)
