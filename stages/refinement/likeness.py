"""How much two rows of one moment, in different views, look like one person: by lines of sight, or by body poses.

A weight is 1 for a perfect match, 0 where it could be either, negative for two people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stages.geometry.rays import nearest_points, rays

FEWEST = 4  # joints that both rows must show
GATE = 0.09  # half boxes, about 10 px of a 256 crop: rays of one person miss by less
WORST = -0.5  # weight of one moment, at least: wrong moments do not outvote right ones
POSE_GATE = 0.16  # m between joints of two pelvis-aligned bodies: recovered bodies of one person differ by less
TELL_RAYS = 0.1  # weight a moment by which the best partition must beat an exchange of two people
TELL_POSE = (0.03, 0.05)  # m, the same for poses: always, and more divided by the root of the number of moments
APART = 0.3  # s between moments that say something new
# m, of an adult: what tells a person from the ghost in which the lines of sight to two people cross.
BONES = {
    ("shoulder", "elbow"): 0.27, ("elbow", "wrist"): 0.25, ("hip", "knee"): 0.40, ("knee", "ankle"): 0.41,
    ("shoulder", "hip"): 0.50,
}  # fmt: skip


@dataclass(frozen=True)
class Sightings:
    """R rows: track (R,), -1 for none; camera, moment (R,) numbers; keypoints (R, J, 3) px of `names`, score 0 or NaN =
    not seen; K (R, 3, 3); time (R,) s or NaN; ok (R,): may be joined. With a rig: R (R, 3, 3), t (R, 3) m world to
    camera. With bodies: joints, rows (n,) -> (n, J', 3) m about the pelvis and in its axes."""

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
    """person (R,) numbers; `how` they were told apart; notes and warnings for whoever reads along; `nobody`: why no two
    views could be joined, if none were."""

    person: np.ndarray
    how: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    nobody: str = ""


Measure = Callable[[Sightings, np.ndarray], tuple[np.ndarray, np.ndarray]]


def always(seen: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person in each view: whoever is there at the same moment is the same."""
    return np.ones(len(pairs)), np.zeros(len(pairs))


def ray_weights(seen: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (P,) and metres (P,) by which lines of sight to the same joints miss each other, median over joints."""
    assert seen.R is not None and seen.t is not None
    xy, score = seen.keypoints[..., :2], seen.keypoints[..., 2]
    there = (score > 0) & np.isfinite(xy).all(-1)
    both = there[pairs[:, 0]] & there[pairs[:, 1]]
    ends = []
    for rows in pairs.T:
        center, along = rays(np.where(there[rows, :, None], xy[rows], 0), seen.K[rows], seen.R[rows], seen.t[rows])
        ends.append((center, along, _half_boxes(xy[rows], there[rows], seen.K[rows])))
    (a, along_a, half_a), (b, along_b, half_b) = ends
    far_a, far_b = nearest_points(a, along_a, b, along_b)
    on_a, on_b = a[:, None] + far_a[..., None] * along_a, b[:, None] + far_b[..., None] * along_b
    gap = np.linalg.norm(on_a - on_b, axis=-1)
    size = far_a * half_a[:, None] + far_b * half_b[:, None]
    few = both.sum(1) < FEWEST
    both[few] = True  # for the medians; such pairs say nothing
    off = np.nanmedian(np.where(both, gap / size, np.nan), 1)
    odd = _size(np.where(both[..., None], (on_a + on_b) / 2, np.nan), seen.names)
    weight = np.maximum(1 - (off / GATE) ** 2 - np.minimum((odd / 0.5) ** 2, 1), WORST)
    return np.where(few, np.nan, weight), np.nanmedian(np.where(both, gap, np.nan), 1)


def _half_boxes(xy: np.ndarray, there: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Tangent (P,) of half the longer side of the keypoints' box."""
    low = np.where(there[..., None], xy, np.inf).min(1)
    high = np.where(there[..., None], xy, -np.inf).max(1)
    side = ((high - low) / K[:, [0, 1], [0, 1]]).max(1) / 2
    return np.where(np.isfinite(side), np.maximum(side, 1e-3), 1.0)


def _size(points: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Logarithm (P,) of the size of a person at points (P, J, 3), against an adult; 0 where no bone is seen."""
    at = {name: i for i, name in enumerate(names)}
    ratio = [
        np.linalg.norm(points[:, at[f"{side}_{a}"]] - points[:, at[f"{side}_{b}"]], axis=-1) / length
        for (a, b), length in BONES.items()
        for side in ("left", "right")
        if f"{side}_{a}" in at and f"{side}_{b}" in at
    ]
    if not ratio:
        return np.zeros(len(points))
    value = np.log(np.maximum(np.stack(ratio, 1), 1e-3))
    none = np.isnan(value).all(1)
    value[none] = 0
    return np.nanmedian(value, 1)


def pose_weights(seen: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (P,) and mean distance (P,) m of the joints of two bodies, both in the axes of their own pelvis."""
    assert seen.joints is not None
    rows, at = np.unique(pairs, return_inverse=True)
    joints = seen.joints(rows)[at.reshape(pairs.shape)]
    away = np.linalg.norm(joints[:, 0] - joints[:, 1], axis=-1).mean(-1)
    return np.maximum(1 - away / POSE_GATE, WORST), away


def tell_rays(moments: float) -> float:
    """The weight a moment by which lines of sight must tell two people apart."""
    return TELL_RAYS


def tell_poses(moments: float) -> float:
    """The weight a moment by which poses must tell two people apart: more where there are few moments."""
    return (TELL_POSE[0] + TELL_POSE[1] / max(moments, 1.0) ** 0.5) / POSE_GATE


def news(seen: Sightings) -> float:
    """Which share of the moments says something new: poses of the next video frame are the same."""
    if not np.isfinite(seen.time[seen.ok]).all():
        return 1.0
    return len(np.unique(np.floor(seen.time[seen.ok] / APART))) / max(len(np.unique(seen.moment[seen.ok])), 1)
