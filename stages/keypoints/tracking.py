"""Who is the same person in the next frame: tracking by boxes and keypoints, one frame after the other.

Tracking by detection as in SORT (Bewley et al., ICIP 2016): known people are moved on with the velocity they had, then
matched with the people found, all at once (Hungarian method), by the mean of box overlap (IoU) and keypoint similarity
(OKS with doubled spread, since people move between frames). Memory is that of the people seen lately, whatever the
length of the video.

    tracker = Tracker(sigmas(joints))
    for each frame: ids = tracker.step(time, box, keypoints)
"""

from __future__ import annotations

import numpy as np

from stages.keypoints.oks import extent, iou, oks

LOWEST = 0.15  # similarity below which two are never the same person
MAX_GAP = 1.0  # s without being seen after which a person is forgotten
MEMORY = 0.25  # s, over which velocities are averaged
SPREAD = 2.0  # times COCO's sigmas


class Tracker:
    """State of one video. Track numbers count up from `first` and are never used twice; `count` is the next one."""

    def __init__(self, sigma: np.ndarray, *, first: int = 0, max_gap: float = MAX_GAP) -> None:
        joints = len(sigma)
        self.sigma, self.max_gap, self.count = sigma * SPREAD, max_gap, first
        self.id = np.zeros(0, np.int64)
        self.box, self.xy = np.zeros((0, 4)), np.zeros((0, joints, 2))
        self.velocity, self.seen = np.zeros((0, 2)), np.zeros(0)  # px/s; time of the last sight

    def step(self, time: float, box: np.ndarray, keypoints: np.ndarray, score: np.ndarray | None = None) -> np.ndarray:
        """Track numbers (n,) of the people in the frame at `time` s, times rising.

        box (n, 4) xyxy px, keypoints (n, J, 3) x, y, score; a box that is not finite gets -1.
        """
        ids = np.full(len(box), -1, np.int64)
        usable = np.flatnonzero(np.isfinite(box).all(1))
        box = np.asarray(box, float)[usable]
        xy = np.where(keypoints[usable, :, 2:] > 0, keypoints[usable, :, :2], np.nan).astype(float)
        self._keep(time - self.seen <= self.max_gap + 1e-9)
        old, new = self._match(time, box, xy)
        self._update(time, old, box[new], xy[new])
        ids[usable[new]] = self.id[old]
        fresh = np.setdiff1d(np.arange(len(box)), new)
        ids[usable[fresh]] = self._add(time, box[fresh], xy[fresh])
        return ids

    def _match(self, time: float, box: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of known people and of found people that belong together."""
        from scipy.optimize import linear_sum_assignment  # half a second to import, needed for videos only

        moved = self.velocity * (time - self.seen)[:, None]
        expected, expected_xy = self.box + np.tile(moved, 2), self.xy + moved[:, None]
        area = np.maximum(extent(self.xy)[:, None], extent(xy)[None])
        like = iou(expected, box)
        common = (np.isfinite(expected_xy[:, None]) & np.isfinite(xy[None])).all(-1).any(-1)
        like = np.where(common, (like + oks(expected_xy, xy, area, self.sigma)) / 2, like)
        old, new = linear_sum_assignment(-np.where(like >= LOWEST, like, 0))
        good = like[old, new] >= LOWEST
        return old[good], new[good]

    def _update(self, time: float, old: np.ndarray, box: np.ndarray, xy: np.ndarray) -> None:
        passed = np.maximum(time - self.seen[old], 1e-6)[:, None]
        speed = (box.reshape(-1, 2, 2).mean(1) - self.box[old].reshape(-1, 2, 2).mean(1)) / passed
        share = np.exp(-passed / MEMORY)
        self.velocity[old] = share * self.velocity[old] + (1 - share) * speed
        self.box[old], self.xy[old], self.seen[old] = box, xy, time

    def _add(self, time: float, box: np.ndarray, xy: np.ndarray) -> np.ndarray:
        ids = self.count + np.arange(len(box))
        self.count += len(box)
        self.id, self.box = np.concatenate([self.id, ids]), np.concatenate([self.box, box])
        self.xy, self.velocity = np.concatenate([self.xy, xy]), np.concatenate([self.velocity, np.zeros((len(box), 2))])
        self.seen = np.concatenate([self.seen, np.full(len(box), time)])
        return ids

    def _keep(self, which: np.ndarray) -> None:
        for name in ("id", "box", "xy", "velocity", "seen"):
            setattr(self, name, getattr(self, name)[which])
