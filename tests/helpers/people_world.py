"""Small synthetic worlds for tests of refinement: people with known truth, keypoints and a disturbed estimate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.artefacts.kinds import KINDS
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from stages.geometry import cameras
from stages.geometry.rotations import about, axis_angle_to_matrix, matrix_to_axis_angle
from stages.keypoints import joint_sets
from stages.smpl.body import load_body

SIZE = np.array([640, 480])


@dataclass
class World:
    """meshes: the disturbed estimate; detections: its evidence; truth: axis-angle (R, 24, 3) and transl (R, 3)."""

    meshes: Artefact
    detections: Artefact
    pose: np.ndarray
    transl: np.ndarray

    def joints(self, artefact: Artefact | None = None) -> np.ndarray:
        """(R, 24, 3) of the truth, or of an artefact, from the pelvis."""
        body = load_body("embedded")
        pose = self.pose
        betas = np.zeros((len(pose), 10), np.float32)
        if artefact is not None:
            pose = np.concatenate([artefact.read("smpl/global_orient")[:, None], artefact.read("smpl/body_pose")], 1)
            betas = artefact.read("smpl/betas")
        points = body.joints(axis_angle_to_matrix(torch.from_numpy(pose).float()), torch.from_numpy(betas)).numpy()
        return points - points[:, :1]


def limbs(n: int, generator: torch.Generator, size: float) -> torch.Tensor:
    """Axis-angle (n, 24, 3) around standing: arms down, knees a little bent, `size` rad of variation at limbs."""
    pose = torch.zeros(n, 24, 3)
    names = joint_sets.SETS["smpl24"]
    moving = [names.index(f"{s}_{p}") for s in ("left", "right") for p in ("hip", "knee", "shoulder", "elbow")]
    pose[:, moving] += size * torch.randn(n, len(moving), 3, generator=generator)
    pose[:, names.index("left_shoulder"), 2] -= 1.0
    pose[:, names.index("right_shoulder"), 2] += 1.0
    return pose


def turned(pose: torch.Tensor, yaw: torch.Tensor) -> torch.Tensor:
    """The root turned by `yaw` (n,) and put upright in the OpenCV camera (y down)."""
    root = about("x", torch.full_like(yaw, np.pi)) @ about("y", yaw) @ axis_angle_to_matrix(pose[:, 0])
    pose = pose.clone()
    pose[:, 0] = matrix_to_axis_angle(root)
    return pose


def observe(
    pose: torch.Tensor, transl: torch.Tensor, K: np.ndarray, noise: float, generator: torch.Generator
) -> np.ndarray:
    """COCO keypoints (n, 17, 3) with `noise` px."""
    body = load_body("embedded")
    points = body.joints(axis_angle_to_matrix(pose), torch.zeros(len(pose), 10), transl, "coco17")
    xy = cameras.project(points, torch.from_numpy(K).float())
    xy = xy + noise * torch.randn(xy.shape, generator=generator)
    return torch.cat([xy, torch.ones(*xy.shape[:2], 1)], -1).numpy()


def build(
    pose: torch.Tensor,
    transl: torch.Tensor,
    start: torch.Tensor,
    keypoints: np.ndarray,
    frame: np.ndarray,
    *,
    track: np.ndarray | None = None,
    frames: int | None = None,
    view: np.ndarray | None = None,
    K: np.ndarray | None = None,
) -> World:
    """Artefacts of the given rows."""
    count = int(frame.max(initial=-1)) + 1 if frames is None else frames
    size = np.tile(SIZE, (count, 1))
    table = {
        "name": [f"f{i:04d}.jpg" for i in range(count)],
        "size": size,
        "K": cameras.default_K(size) if K is None else K,
        "source": np.zeros(count, int),
        "view": np.zeros(count, int) if view is None else view,
    }
    low, high = np.nanmin(keypoints[..., :2], 1), np.nanmax(keypoints[..., :2], 1)
    rows = {"frame": frame, "box": np.concatenate([low, high], 1), "track": -1 if track is None else track}
    n = len(pose)
    meshes = in_memory(
        "meshes", frames=table, rows=rows, group_attrs={"smpl": {"body_model": "embedded", "gender": "neutral"}},
        columns={
            "smpl/global_orient": start[:, 0].numpy(), "smpl/body_pose": start[:, 1:].numpy(),
            "smpl/betas": np.zeros((n, 10), np.float32), "smpl/transl": transl.numpy(),
        },
    )  # fmt: skip
    attrs = {"joints": list(joint_sets.SETS["coco17"]), "joint_set": "coco17", "score_definition": ""}
    detections = in_memory(
        "detections", frames=table, rows=rows, group_attrs={"keypoints": attrs},
        columns={"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]},
    )  # fmt: skip
    return World(meshes, detections, pose.numpy(), transl.numpy())


def crowd(n: int, seed: int = 0, noise: float = 1.0, error: float = 0.12) -> World:
    """n people, two to a frame, each estimate wrong by `error` rad per axis at every joint."""
    generator = torch.Generator().manual_seed(seed)
    pose = turned(limbs(n, generator, 0.25), 6.28 * torch.rand(n, generator=generator))
    transl = torch.tensor([0.0, 0.0, 4.0]) + torch.tensor([0.6, 0.2, 0.8]) * torch.randn(
        n, 3, generator=generator
    ).clamp(-1, 1)
    K = cameras.default_K(SIZE[None])
    keypoints = observe(pose, transl, K, noise, generator)
    start = pose + error * torch.randn(pose.shape, generator=generator)
    return build(pose, transl, start, keypoints, np.arange(n) // 2)


def walk(
    frames: int, tracks: int = 1, seed: int = 0, noise: float = 3.0, error: float = 0.08, drop: tuple[int, ...] = ()
) -> World:
    """`tracks` people swinging arms and legs for `frames` frames at 30 a second; frames in `drop` have no rows."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(frames) / 30
    poses, places = [], []
    names = joint_sets.SETS["smpl24"]
    for k in range(tracks):
        pose = limbs(1, generator, 0.1).repeat(frames, 1, 1)
        swing = 0.5 * torch.sin(2 * np.pi * t + k)
        for name, sign in (("left_hip", 1), ("right_hip", -1), ("left_shoulder", -1), ("right_shoulder", 1)):
            pose[:, names.index(name), 0] += sign * swing
        poses.append(turned(pose, 0.7 * k + 0.2 * t))
        places.append(torch.stack([1.2 * (k - tracks / 2 + 0.5) + 0.1 * t, 0 * t, 4.5 + 0 * t], -1))
    keep = [f for f in range(frames) if f not in drop]
    pose = torch.stack(poses, 1)[keep].flatten(0, 1)
    transl = torch.stack(places, 1)[keep].flatten(0, 1)
    keypoints = observe(pose, transl, cameras.default_K(SIZE[None]), noise, generator)
    start = pose + error * torch.randn(pose.shape, generator=generator)
    return build(
        pose,
        transl,
        start,
        keypoints,
        np.repeat(keep, tracks),
        track=np.tile(np.arange(tracks), len(keep)),
        frames=frames,
    )


def with_keypoints(world: World, xy: np.ndarray, score: np.ndarray) -> World:
    """The same world with other keypoints (R, J, 2) and scores (R, J)."""
    d = world.detections
    again = in_memory(
        "detections", frames=d.frames, rows=d.rows, group_attrs={"keypoints": d.group_attrs("keypoints")},
        columns={"keypoints/xy": xy, "keypoints/score": score},
    )  # fmt: skip
    return World(world.meshes, again, world.pose, world.transl)


def save(table: Artefact, path: Path) -> Path:
    """The table as a file."""
    columns = tuple(c for c in KINDS[table.kind].columns if table.has(c.name))
    groups = {g: table.group_attrs(g) for g in ("smpl", "keypoints") if table.group_attrs(g)}
    job = Job(stage="test", kind=table.kind, params=None, inputs={}, columns=columns, group_attrs=groups)
    run_whole(job, lambda: table, path, RunOptions())
    return path
