"""People in motion before a ring of synchronised cameras, with known truth: what `hmr detect --views` would write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import stages
from stages.artefacts.table import Artefact, in_memory
from stages.geometry.rotations import about, axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.smpl.body import load_body

POSES = Path(stages.__file__).parent / "data" / "synth_poses.npz"
SIZE, FOCAL, STEP = (640, 480), 700.0, 0.1  # px, px, s between moments
K = np.array([[FOCAL, 0, (SIZE[0] - 1) / 2], [0, FOCAL, (SIZE[1] - 1) / 2], [0, 0, 1]])


@dataclass
class RigWorld:
    """Rows of all cameras, camera by camera, moment by moment. joints (n, 24, 3) m in the world, person (n,), the
    detections' columns, world-to-camera R (C, 3, 3), t (C, 3)."""

    joints: np.ndarray
    person: np.ndarray
    view: np.ndarray
    moment: np.ndarray
    track: np.ndarray
    keypoints: np.ndarray
    R: np.ndarray
    t: np.ndarray

    def keep(self, rows: np.ndarray) -> RigWorld:
        """Only these rows (mask)."""
        names = ("joints", "person", "view", "moment", "track", "keypoints")
        return RigWorld(**{n: getattr(self, n)[rows] for n in names}, R=self.R, t=self.t)

    def detections(self, *, times: bool = True) -> Artefact:
        cameras, moments = len(self.R), int(self.moment.max()) + 1
        frames = {
            "name": [f"cam{c}.mp4#{m:06d}" for c in range(cameras) for m in range(moments)],
            "size": np.tile(SIZE, (cameras * moments, 1)),
            "K": np.tile(K, (cameras * moments, 1, 1)),
            "K_source": np.full(cameras * moments, 2),
            "view": np.repeat(np.arange(cameras), moments),
            "source": np.repeat(np.arange(cameras), moments),
        }
        if times:
            frames["time"] = np.tile(np.arange(moments) * STEP, cameras)
        xy = self.keypoints[..., :2]
        box = np.concatenate([xy.min(1), xy.max(1)], 1)
        rows = {"frame": self.view * moments + self.moment, "box": box, "track": self.track}
        names = joint_sets.SETS["coco17"]
        return in_memory(
            "detections", frames=frames, rows=rows,
            columns={"keypoints/xy": xy, "keypoints/score": self.keypoints[..., 2]},
            group_attrs={"keypoints": {"joints": list(names), "joint_set": "coco17", "score_definition": ""}},
        )  # fmt: skip

    def rig(self, path: Path, *, views: range | None = None, t: bool = True) -> Path:
        """Write the cameras' poses."""
        poses = {
            str(c): {"R": self.R[c].tolist()} | ({"t": self.t[c].tolist()} if t else {})
            for c in (views or range(len(self.R)))
        }
        path.write_text(json.dumps(poses))
        return path

    def in_world(self, meshes: Artefact) -> np.ndarray:
        """Joints (n, 24, 3) of the meshes' bodies in the world."""
        R, t = self.R[self.view], self.t[self.view]
        return (meshes.read("joints/xyz") - t[:, None]) @ R

    def error(self, meshes: Artefact) -> np.ndarray:
        """Mean distance (n,) mm of 24 joints in the world."""
        return 1000 * np.linalg.norm(self.in_world(meshes) - self.joints, axis=-1).mean(1)

    def apart(self, meshes: Artefact) -> float:
        """The largest distance m of two bodies of one person and moment, at the pelvis."""
        pelvis, most = self.in_world(meshes)[:, 0], 0.0
        for who in np.unique(self.person):
            for when in np.unique(self.moment):
                mine = pelvis[(self.person == who) & (self.moment == when)]
                if len(mine) > 1:
                    most = max(most, float(np.linalg.norm(mine[:, None] - mine[None], axis=-1).max()))
        return most


def ring(cameras: int, distance: float = 4.2, height: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Cameras around the origin, at most a quarter apart, that look at a point 1 m above it: R (C, 3, 3), t (C, 3)."""
    R, t = [], []
    for c in range(cameras):
        angle = 2 * np.pi * c / max(cameras, 4) + 0.35
        eye = np.array([distance * np.sin(angle), height, distance * np.cos(angle)])
        ahead = np.array([0, 1.0, 0]) - eye
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, [0, 1, 0])
        right /= np.linalg.norm(right)
        R.append(np.stack([right, np.cross(ahead, right), ahead]))
        t.append(-R[-1] @ eye)
    return np.stack(R), np.stack(t)


def rig_world(
    people: int = 2,
    cameras: int = 4,
    moments: int = 8,
    *,
    noise: float = 2.0,
    seed: int = 0,
    same_pose: bool = False,
    apart: float = 1.2,
    shape: float = 0.0,
) -> RigWorld:
    """`people` in captured motion, each in a clip of its own or all in the same, `apart` m from each other on a line;
    betas of deviation `shape`. Tracks are numbered camera by camera, people in another order in every second camera."""
    generator = torch.Generator().manual_seed(seed)
    body, every = load_body("embedded"), np.load(POSES)["clips"]
    every_third = 3 * np.arange(moments) % (2 * every.shape[1])
    frames = np.minimum(every_third, 2 * every.shape[1] - 1 - every_third)  # forth and back
    R, t = ring(cameras)
    joints, points = [], []
    for p in range(people):
        pose = torch.from_numpy(every[(seed + (0 if same_pose else p)) % len(every), frames].astype(np.float32))
        rotmat = axis_angle_to_matrix(pose)
        rotmat[:, 0] = about("y", torch.tensor(1.1 * p)) @ rotmat[:, 0]
        betas = (shape * torch.randn(1, 10, generator=generator)).repeat(moments, 1)
        at = torch.tensor([apart * (p - (people - 1) / 2), 0.95, 0.2 * p]) - body.joints(rotmat, betas)[:, 0]
        joints.append(body.joints(rotmat, betas, at).numpy())
        points.append(body.joints(rotmat, betas, at, "coco17").numpy())
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {n: [] for n in ("joints", "person", "view", "moment", "track", "keypoints")}
    for c in range(cameras):
        order = list(range(people))[:: -1 if c % 2 else 1]
        for m in range(moments):
            for k, p in enumerate(order):
                camera = points[p][m] @ R[c].T + t[c]
                xy = (camera / camera[:, 2:]) @ K.T
                xy = xy[:, :2] + noise * rng.normal(size=(17, 2))
                row = joints[p][m], p, c, m, c * people + k, np.concatenate([xy, np.ones((17, 1))], 1)
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(np.asarray(value))
    stacked = {name: np.stack(values) for name, values in columns.items()}
    return RigWorld(**stacked, R=R, t=t)
