"""The scenes of `synth-crowd-video`: people who walk past each other and behind what stands in front of them.

The camera stands still. Most people cross a common area on straight lines, mostly sideways, each with a gait cycle of
motion capture (make_walks.py beside this file) at a pace of their own; some enter or leave the picture, one may run,
others are busy on the spot. Pillars, boards and counters hide them, some for more than a second. Nobody walks through
anybody. World frame: metres, y up, ground at y = 0, the camera above the origin, looking along -z.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from stages.synthetic.occluders import Occluder
from stages.synthetic.sets import SIZE, SynthSet

APART = 0.55  # m between the centres of two people, and between people and things
TRIES = 400
BUSY_SHARE, RUN_SHARE = 0.25, 0.12  # of people busy on the spot, of walkers who run
OBSTACLES = {  # half sizes in metres: fewest and most
    "pillar": ((0.12, 1.2, 0.12), (0.22, 1.4, 0.22)),
    "board": ((0.3, 0.7, 0.03), (0.6, 1.0, 0.04)),
    "counter": ((0.4, 0.45, 0.2), (0.8, 0.55, 0.3)),
}


@dataclasses.dataclass(frozen=True)
class Walks:
    """The motion that people are drawn from: per clip poses (T, 24, 3) and trans (T, 3) m, at 30 per second; clips with
    a speed above 0 m/s repeat and walk along +z, where trans is only the sway."""

    poses: list[np.ndarray]
    trans: list[np.ndarray]
    speed: np.ndarray


@functools.cache
def walks() -> Walks:
    """The package's motion."""
    with np.load(Path(__file__).parents[1] / "data" / "synth_walks.npz") as file:
        cuts = np.flatnonzero(np.diff(file["clip"])) + 1
        poses, trans = np.split(file["poses"].astype(float), cuts), np.split(file["trans"].astype(float), cuts)
        return Walks(poses, trans, file["speed"].astype(float))


@dataclasses.dataclass(frozen=True)
class Walker:
    """One person: `clip` played from frame `start` at `pace`, passing `cross` (x, z) at time `when` s with `heading`
    rad (0 walks towards +z, the camera)."""

    clip: int
    start: float
    pace: float
    cross: np.ndarray
    when: float
    heading: float

    def path(self, time: np.ndarray) -> np.ndarray:
        """Where the pelvis is over the ground (x, z) at times (T,) s: (T, 2)."""
        low, high, share = self._between(time)
        trans, rotation = walks().trans[self.clip], Rotation.from_euler("y", self.heading)
        sway = rotation.apply(trans[low] + share[:, None] * (trans[high] - trans[low]))[:, [0, 2]]
        speed = walks().speed[self.clip] * self.pace
        ahead = np.array([np.sin(self.heading), np.cos(self.heading)])
        return self.cross + speed * (time[:, None] - self.when) * ahead + sway

    def pose(self, time: float) -> np.ndarray:
        """Pose (24, 3), its root rotated into the world."""
        (low,), (high,), (share,) = self._between(np.array([time]))
        poses = walks().poses[self.clip]
        first, second = Rotation.from_rotvec(poses[low]), Rotation.from_rotvec(poses[high])
        pose = (first * Rotation.from_rotvec(share * (first.inv() * second).as_rotvec())).as_rotvec()
        pose[0] = (Rotation.from_euler("y", self.heading) * Rotation.from_rotvec(pose[0])).as_rotvec()
        return pose

    def _between(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The frames of the clip before and after times (T,), and how far between them each lies."""
        count = len(walks().poses[self.clip])
        position = self.start + 30 * self.pace * time
        if walks().speed[self.clip] > 0:
            position = position % count
        low = position.astype(int)
        return low, (low + 1) % count, position - low


def cast(spec: SynthSet, n: int, distance: float, focal: float, rng: np.random.Generator) -> list[Walker]:
    """n people none of whom ever comes nearer than APART to another."""
    seconds = spec.frames / spec.fps
    time = np.arange(spec.frames) / spec.fps
    people: list[Walker] = []
    for _ in range(TRIES * n):
        if len(people) == n:
            break
        one = _draw(seconds, distance, focal, rng)
        way = one.path(time)
        if (way[:, 1] > -2.2).any():  # too near the camera
            continue
        if all(np.linalg.norm(way - other.path(time), axis=1).min() >= APART for other in people):
            people.append(one)
    return people


def _draw(seconds: float, distance: float, focal: float, rng: np.random.Generator) -> Walker:
    speed = walks().speed
    walking = np.flatnonzero((speed > 0) & (speed < 2))
    reach = 0.5 * SIZE[0] / focal * distance  # half the width of what the camera sees there
    cross = np.array([rng.uniform(-0.6, 0.6) * reach, -distance + rng.uniform(-0.9, 0.9)])
    kind = rng.random()
    if kind < BUSY_SHARE:
        clip = int(rng.choice(np.flatnonzero(speed == 0)))
        return Walker(clip, 0.0, 1.0, cross, 0.0, float(rng.uniform(0, 2 * np.pi)))
    clip = int(rng.choice(np.flatnonzero(speed >= 2) if kind > 1 - RUN_SHARE * (1 - BUSY_SHARE) else walking))
    pace = float(rng.uniform(1.0, 1.6)) if speed[clip] < 2 else float(rng.uniform(0.7, 0.9))
    side = float(rng.choice([-1.0, 1.0]))
    heading = side * np.pi / 2 + rng.normal(0, 0.35)
    start = rng.uniform(0, len(walks().poses[clip]))
    return Walker(clip, float(start), pace, cross, seconds * float(rng.uniform(0.2, 0.8)), float(heading))


def obstacles(
    spec: SynthSet, people: list[Walker], distance: float, focal: float, camera: np.ndarray, rng: np.random.Generator
) -> list[Occluder]:
    """The occluders in front of the people, in the camera frame."""
    ways = np.concatenate([one.path(np.arange(spec.frames) / spec.fps) for one in people])
    occluders: list[Occluder] = []
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    for _ in range(TRIES):
        if len(occluders) == count:
            break
        low, high = OBSTACLES[str(rng.choice(list(OBSTACLES)))]
        size = rng.uniform(low, high)
        depth = distance * rng.uniform(0.6, 1.0)
        where = np.array([rng.uniform(-0.8, 0.8) * 0.5 * SIZE[0] / focal * depth, -depth])
        clear = np.linalg.norm(ways - where, axis=1).min() - np.hypot(size[0], size[2])
        if depth < 1.8 or clear < APART / 2:
            continue
        rotation = camera[:3, :3] @ Rotation.from_euler("y", rng.normal(0, 0.25)).as_matrix()
        centre = camera[:3, :3] @ np.array([where[0], size[1], where[1]]) + camera[:3, 3]
        occluders.append(("box", size, centre, rotation))
    return occluders
