"""Keypoints as a detector would give them: the error model of PoseFix, which DPMesh trains with.

Moon et al., "PoseFix: Model-Agnostic General Human Pose Refinement Network", CVPR 2019, section 4 (error statistics of
Ruggero Ronchi & Perona, ICCV 2017), with the probabilities of DPMesh's loader. A joint is *good* (within the distance
where the keypoint similarity is 0.85), *jittered* (0.85 to 0.5), *missed* (0.5 to 0.1 around any likely place),
*inverted* (on the mirrored joint) or *swapped* (on another person's joint). Nothing is removed: a miss displaces.
"""

from __future__ import annotations

import numpy as np

from stages.keypoints import joint_sets
from stages.keypoints.oks import extent, iou, sigmas

COCO = joint_sets.get("coco17")
_FACE = np.array([name.split("_")[-1] in ("nose", "eye", "ear") for name in COCO])
_LOWER = np.array([name.split("_")[-1] in ("hip", "knee", "ankle") for name in COCO])
_HIP = np.array([name.endswith("hip") for name in COCO])
_EDGE = np.array([name.endswith(("shoulder", "ankle")) for name in COCO])
_LOW_JITTER = np.array([name == "nose" or name.endswith(("knee", "ankle")) for name in COCO])
_SWAP_SIDE = {"left": "right", "right": "left"}
_MIRROR = np.array(
    [COCO.index("_".join(_SWAP_SIDE.get(part, part) for part in name.split("_"))) for name in COCO], np.int64
)
_TRIES = 16  # draws for a miss before the type counts as impossible
GOOD, JITTER, MISS, INVERSION, SWAP = range(5)


def disturb(xy: np.ndarray, valid: np.ndarray, rng: np.random.Generator, *, crowded: bool = False) -> np.ndarray:
    """Disturbed keypoints (n, 17, 2) of the n people of one image, and the type of error of each, (n, 17).

    xy (n, 17, 2) true COCO keypoints in px, valid (n, 17) those that may be disturbed; others are returned as they are.
    crowded: the higher probabilities of swapping that the loader uses for crowded data sets.
    """
    n = len(xy)
    if not n:
        return xy.copy()
    masked = np.where(valid[..., None], xy, np.nan)
    area = extent(masked)
    spread = area[:, None] * (2 * sigmas(COCO)) ** 2
    reach = {ks: np.sqrt(-2 * spread * np.log(ks)) for ks in (0.85, 0.5, 0.1)}
    boxes = _boxes(masked)
    near = (iou(boxes, boxes) >= 0.1) & ~np.eye(n, dtype=bool)

    mirror = np.where((np.arange(len(COCO)) != _MIRROR)[:, None], masked[:, _MIRROR], np.nan)
    others = np.where(near[:, :, None, None], masked[None], np.nan)  # (person, other, joint, 2)
    victim = _pick(rng, np.isfinite(others[..., 0]))
    swapped = np.take_along_axis(others, victim[:, None, :, None], 1)[:, 0]

    missed, can_miss = _miss(rng, masked, mirror, others, reach)
    ways = np.stack(
        [
            xy + _ring(rng, np.zeros_like(reach[0.85]), reach[0.85]),
            xy + _ring(rng, reach[0.85], reach[0.5]),
            missed,
            mirror + _ring(rng, np.zeros_like(reach[0.5]), reach[0.5]),
            swapped + _ring(rng, np.zeros_like(reach[0.5]), reach[0.5]),
        ]
    )
    chance = _chances(valid.sum(1), crowded)
    chance[MISS] *= can_miss
    chance *= np.isfinite(ways[..., 0])
    kind = _pick(rng, chance.transpose(1, 0, 2))
    drawn = np.take_along_axis(ways, kind[None, ..., None], 0)[0]
    return np.where(valid[..., None], drawn, xy)


def _chances(count: np.ndarray, crowded: bool) -> np.ndarray:
    """Probability of each type, (5, n, 17), given the number of valid joints of each person (n,)."""
    few = np.digitize(count, [6, 11])  # <= 5, <= 10, more
    jitter = np.where(_LOW_JITTER, 0.10, np.where(_HIP, 0.20, 0.15)) + 0.05 * (few < 2)[:, None]
    table = np.array([[0.15, 0.10, 0.02], [0.20, 0.13, 0.05], [0.25, 0.15, 0.10]])
    miss = table[np.where(_FACE, 0, np.where(_EDGE, 1, 2))][:, few].T
    part = np.where(_FACE, 0, np.where(_LOWER, 2, 1))
    inversion = np.array([0.01, 0.03, 0.06])[part]
    swap = np.array([0.02, 0.15, 0.10] if crowded else [0.01, 0.06, 0.03])[part]
    rest = 1 - jitter - miss - inversion - swap
    return np.stack(np.broadcast_arrays(rest, jitter, miss, inversion, swap)).copy()


def _ring(rng: np.random.Generator, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Offsets (..., 2) spread evenly over the area of a ring."""
    radius = np.sqrt(inner**2 + rng.random(inner.shape) * (outer**2 - inner**2))
    angle = rng.random(inner.shape) * 2 * np.pi
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _pick(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """An index along axis 1 with probability proportional to `chance` (n, choices, J); 0 where nothing is possible."""
    total = chance.cumsum(1, dtype=float)
    return (total <= rng.random((len(chance), 1, chance.shape[2])) * total[:, -1:]).sum(1).clip(0, chance.shape[1] - 1)


def _miss(
    rng: np.random.Generator, masked: np.ndarray, mirror: np.ndarray, others: np.ndarray, reach: dict[float, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A position (n, 17, 2) d50 to d10 from one candidate and over d50 from every other, and whether there is one."""
    candidates = np.concatenate([masked[:, None], mirror[:, None], others], 1)  # (n, candidates, 17, 2)
    inner, outer = (np.broadcast_to(reach[ks], (_TRIES, *reach[ks].shape)) for ks in (0.5, 0.1))
    there = np.isfinite(candidates[..., 0])
    chosen = np.stack([_pick(rng, there) for _ in range(_TRIES)])
    start = np.take_along_axis(candidates[None], chosen[:, :, None, :, None], 2)[:, :, 0]
    tries = start + _ring(rng, inner, outer)
    distance = np.linalg.norm(tries[:, :, None] - candidates[None], axis=-1)
    clear = ((distance > inner[:, :, None]) | ~there[None]).all(2) & np.isfinite(tries[..., 0])
    first = clear.argmax(0)
    return np.take_along_axis(tries, first[None, ..., None], 0)[0], clear.any(0)


def _boxes(xy: np.ndarray) -> np.ndarray:
    """Tight boxes (n, 4) of keypoints with NaN; NaN where there are none."""
    low = np.where(np.isfinite(xy), xy, np.inf).min(1)
    high = np.where(np.isfinite(xy), xy, -np.inf).max(1)
    box = np.concatenate([low, high], 1)
    return np.where(np.isfinite(box), box, np.nan)
