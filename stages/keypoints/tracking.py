"""Who is the same person in the next frame: tracking by keypoints and boxes, one frame after the other.

Tracking by detection as in SORT (Bewley et al., ICIP 2016): the people of the frames before are predicted with constant
velocity and matched with the people found, all at once (Hungarian method). Two things make it hold behind obstacles and
where people cross:

* A person's position is that of the whole body: what the Kalman filter measures is the median displacement of the
  joints that are seen now and were before. A box does not do: it shrinks and jumps when a part is hidden. Joints that
  are hidden move along, so whichever part comes out first is compared with where it should be.
* Similarity is two thirds keypoint similarity (OKS) and one third overlap (IoU), both widened by the standard deviation
  of the prediction, which grows while somebody is not seen (as buffers do in C-BIoU, Yang et al., WACV 2023). Of two
  people who are alike, the one seen later wins. Who has walked out of the image is not found again.

The order of time is all that is used: nothing is decided later, memory is that of the people seen lately.

    tracker = Tracker(sigmas(joints), max_gap=3.0)
    for each frame: ids = tracker.step(time, box, keypoints, size)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stages.keypoints.oks import extent

LOWEST = 0.05  # similarity below which two are never the same person
USUAL = 0.35  # and share of the similarity that is usual for this person: noise is the detector's own, and steady
MEMORY = 0.9  # of what is usual, from one sight to the next
SPREAD = 1.5  # times COCO's sigmas: people move between frames
OKS_SHARE = 0.65  # of the similarity; the rest is overlap
WAIT = 0.3  # by how much the similarity falls until a person is forgotten
INSIDE = 0.2  # share of the predicted box's width that must lie in the image
MIN_JOINTS = 3  # in common, for a displacement to be that of the joints, else that of the box's centre
# Standard deviations in units of the person's size, the longer side of the box. People change their speed by about half
# a metre a second within a second; walking speed is 0.8 sizes a second.
ACCELERATION = 0.3  # of the white noise that moves the velocity, per s^1.5
SPEED = 0.6  # of the velocity of somebody new, per s
JOINTS_NOISE, BOX_NOISE = 0.03, 0.06  # of a measured displacement


@dataclasses.dataclass
class TrackStates:
    """n people as they were when last seen.

    id (n,) · box (n, 4) px · xy (n, J, 2) px, joints as seen or moved along, NaN if never seen · velocity (n, 2) px/s ·
    variance (n, 3) of position, of both, of velocity along one axis, px and s · seen (n,) s · usual (n,) similarity
    from one sight to the next, 0 at first.
    """

    id: np.ndarray
    box: np.ndarray
    xy: np.ndarray
    velocity: np.ndarray
    variance: np.ndarray
    seen: np.ndarray
    usual: np.ndarray

    @classmethod
    def new(cls, ids: np.ndarray, box: np.ndarray, xy: np.ndarray, time: float) -> TrackStates:
        """People seen for the first time."""
        size = sizes(box)
        variance = np.stack([(JOINTS_NOISE * size) ** 2, 0 * size, (SPEED * size) ** 2], 1)
        return cls(ids, box, xy, np.zeros((len(ids), 2)), variance, np.full(len(ids), time), np.zeros(len(ids)))

    def __len__(self) -> int:
        return len(self.id)

    def take(self, which: np.ndarray) -> TrackStates:
        return TrackStates(**{f.name: getattr(self, f.name)[which] for f in dataclasses.fields(self)})

    def join(self, other: TrackStates) -> TrackStates:
        names = [f.name for f in dataclasses.fields(self)]
        return TrackStates(**{n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in names})

    def predict(self, time: float) -> TrackStates:
        """The same people at `time`, moved on with their velocity; `seen` stays."""
        dt = time - self.seen
        move, noise = self.velocity * dt[:, None], (ACCELERATION * sizes(self.box)) ** 2
        position, both, velocity = self.variance.T
        variance = np.stack(
            [
                position + 2 * dt * both + dt**2 * velocity + noise * dt**3 / 3,
                both + dt * velocity + noise * dt**2 / 2,
                velocity + noise * dt,
            ],
            1,
        )
        moved = {"box": self.box + np.tile(move, 2), "xy": self.xy + move[:, None], "variance": variance}
        return dataclasses.replace(self, **moved)

    def update(self, box: np.ndarray, xy: np.ndarray, time: float, similar: np.ndarray) -> TrackStates:
        """These predicted people, seen at `time` with boxes (n, 4) and joints (n, J, 2), as `similar` (n,) as that."""
        shift, known = displacement(self.xy, xy)
        shift = np.where(known[:, None], shift, centres(box) - centres(self.box))
        noise = (np.where(known, JOINTS_NOISE, BOX_NOISE) * sizes(self.box)) ** 2
        position, both, velocity = self.variance.T
        gain, gain_velocity = position / (position + noise), both / (position + noise)
        variance = np.stack([(1 - gain) * position, (1 - gain) * both, velocity - gain_velocity * both], 1)
        joints = np.where(np.isfinite(xy), xy, self.xy + shift[:, None])
        moving = self.velocity + gain_velocity[:, None] * shift
        usual = MEMORY * self.usual + (1 - MEMORY) * similar
        return TrackStates(self.id, box, joints, moving, variance, np.full(len(self), time), usual)


class Tracker:
    """State of one take. Track numbers count up from `first` and are never used twice; `count` is the next one.

    sigma (J,): of the joints (oks.sigmas) · max_gap: s without being seen after which a person is forgotten.
    """

    def __init__(self, sigma: np.ndarray, *, max_gap: float, first: int = 0) -> None:
        self.sigma, self.max_gap, self.count = sigma * SPREAD, max_gap, first
        none = np.zeros(0)
        self.people = TrackStates.new(none.astype(np.int64), np.zeros((0, 4)), np.zeros((0, len(sigma), 2)), 0.0)

    def step(
        self, time: float, box: np.ndarray, keypoints: np.ndarray, size: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Track numbers (n,) of the people in the frame at `time` s, times rising.

        box (n, 4) xyxy px, keypoints (n, J, 3) x, y, score, J may be 0; a box that is not finite gets -1. size: width
        and height of the image in px, if known.
        """
        ids = np.full(len(box), -1, np.int64)
        usable = np.flatnonzero(np.isfinite(box).all(1))
        box = np.asarray(box, float)[usable]
        xy = np.where(keypoints[usable, :, 2:] > 0, keypoints[usable, :, :2], np.nan).astype(float)
        self.people = self.people.take(time - self.people.seen <= self.max_gap + 1e-9)
        expected = self.people.predict(time)
        old, new, similar = self._match(expected, time, box, xy, size)
        fresh = np.setdiff1d(np.arange(len(box)), new)
        numbers = self.count + np.arange(len(fresh))
        self.count += len(fresh)
        here = expected.take(old).update(box[new], xy[new], time, similar)
        lost = np.setdiff1d(np.arange(len(expected)), old)
        self.people = self.people.take(lost).join(here).join(TrackStates.new(numbers, box[fresh], xy[fresh], time))
        ids[usable[new]], ids[usable[fresh]] = here.id, numbers
        return ids

    def _match(
        self, expected: TrackStates, time: float, box: np.ndarray, xy: np.ndarray, size: tuple[float, float] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of known people and of found people that belong together, and how similar they are."""
        from scipy.optimize import linear_sum_assignment  # half a second to import, needed for videos only

        deviation = np.sqrt(expected.variance[:, 0])
        overlap = widened_iou(expected.box, box, deviation)
        likeness, common = widened_oks(expected.xy, xy, self.sigma, deviation)
        similar = np.where(common, OKS_SHARE * likeness + (1 - OKS_SHARE) * overlap, overlap)
        similar = similar - WAIT * (time - expected.seen)[:, None] / self.max_gap
        if size is not None:
            inside = np.clip(expected.box[:, [0, 2]], 0, size[0])
            width = np.maximum(expected.box[:, 2] - expected.box[:, 0], 1)
            similar[(inside[:, 1] - inside[:, 0]) < INSIDE * width] = 0
        good = similar >= np.maximum(LOWEST, USUAL * expected.usual)[:, None]
        old, new = linear_sum_assignment(-np.where(good, similar, 0))
        fine = good[old, new]
        return old[fine], new[fine], similar[old[fine], new[fine]]


def sizes(box: np.ndarray) -> np.ndarray:
    """Longer sides (n,) of boxes (n, 4), at least a pixel."""
    return np.maximum((box[:, 2:] - box[:, :2]).max(1, initial=1), 1)


def centres(box: np.ndarray) -> np.ndarray:
    """Centres (n, 2) of boxes (n, 4)."""
    return (box[:, :2] + box[:, 2:]) / 2


def displacement(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median over common joints of now - before, (n, 2) px, and whether there are MIN_JOINTS of them (n,).

    The median, because a detector misplaces single joints or takes them from a neighbour. before, now (n, J, 2).
    """
    shift = now - before
    known = np.isfinite(shift).all(-1).sum(1) >= MIN_JOINTS
    median = np.zeros((len(shift), 2))
    if known.any():
        median[known] = np.nanmedian(shift[known], axis=1)
    return median, known


def widened_iou(expected: np.ndarray, box: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), each pair widened on all sides by deviation (n,)."""
    wide = np.array([-1.0, -1.0, 1.0, 1.0]) * deviation[:, None]
    first, second = (expected + wide)[:, None], box[None] + wide[:, None]
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    inner = np.maximum(high - low, 0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - inner
    return inner / np.maximum(union, 1e-9)


def widened_oks(
    expected: np.ndarray, xy: np.ndarray, sigma: np.ndarray, deviation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """OKS (n, m) of joints (n, J, 2) and (m, J, 2) whose tolerance grows by deviation (n,) px, and which pairs have a
    common joint."""
    area = np.maximum(extent(expected)[:, None], extent(xy)[None])[..., None]
    d2 = ((expected[:, None] - xy[None]) ** 2).sum(-1)
    both = np.isfinite(d2)
    tolerance = (2 * sigma) ** 2 * area + (deviation**2)[:, None, None]
    like = np.exp(-np.where(both, d2, 0) / (2 * tolerance + 1e-9)) * both
    return like.sum(-1) / np.maximum(both.sum(-1), 1), both.any(-1)
