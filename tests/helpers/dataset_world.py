"""Small data sets in their original layouts, made of the free body as a stand-in for SMPL.

A World is people seen by a camera: poses in the world frame, as most data sets store them, and meshes in the camera
frame, computed here and not by the readers. An estimate is the true mesh scaled by 1.1: its MPJPE is a tenth of the
mean distance of the joints from the root, its PA-MPJPE nothing.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from stages.artefacts.kinds import Column
from stages.artefacts.table import Artefact
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.smpl import body_files as body_file
from stages.smpl.body import load_body
from tests.helpers import body_files

SIZE = (320, 240)
K = np.array([[400.0, 0, 159.5], [0, 400.0, 119.5], [0, 0, 1]])
GENDERS = {"male": 1.05, "female": 0.95, "neutral": 1.0}
SCALE = 1.1


def add_bodies(folder: Path) -> None:
    """The free body as "smpl", larger for men and smaller for women, in the cache."""
    keep = body_files.arrays()
    del keep["posedirs"]
    for gender, size in GENDERS.items():
        grown = {"v_template": keep["v_template"] * size, "shapedirs": keep["shapedirs"] * size}
        path = folder / f"stand_in_{gender}.npz"
        np.savez(path, **(keep | grown))
        body_file.add(path, "smpl", gender)


def add_regressors(folder: Path) -> None:
    """Stand-ins for the published joint regressors, from the free body's points."""
    free = load_body("embedded")
    np.save(folder / "J_regressor_h36m_correct.npy", free.regressor("h36m17").numpy())
    extra = [free.regressor("h36m17")[k].numpy() for k in (0, 8, 7, 9, 10)]  # pelvis, thorax, spine, jaw, head
    matrix = np.concatenate([free.regressor("lsp14").numpy(), np.stack(extra)])
    (folder / "SMPL_to_J19.pkl").write_bytes(pickle.dumps(matrix.astype(np.float64), protocol=2))


def matrix(folder: Path, joint_set: str) -> np.ndarray:
    if joint_set == "h36m17":
        return np.load(folder / "J_regressor_h36m_correct.npy").astype(np.float64)
    return pickle.loads((folder / "SMPL_to_J19.pkl").read_bytes())


class World:
    """`frames` pictures of `people`; arrays (frames, people, ...). Frame f, person p stands beside the others."""

    def __init__(self, frames: int, people: int, genders: tuple[str, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shape = (frames, people)
        self.genders = genders
        self.pose = rng.normal(0, 0.25, (*shape, 72))
        self.betas = np.repeat(rng.normal(0, 0.5, (1, people, 10)), frames, 0)
        self.R = Rotation.from_euler("xyz", rng.normal((np.pi, 0, 0), 0.4, (frames, 3))).as_matrix()
        self.t = rng.normal(0, 1, (frames, 3))
        place = np.stack([(np.arange(people) - (people - 1) / 2) * 1.1, np.zeros(people), np.full(people, 4.5)], 1)
        self.trans = np.einsum("fji,fpj->fpi", self.R, place[None] - self.t[:, None])
        world = np.empty((*shape, 6890, 3))
        self.joints_world = np.empty((*shape, 24, 3))
        for p, gender in enumerate(genders):
            out = load_body("smpl", gender)(
                *(torch.tensor(x, dtype=torch.float32) for x in (self.pose[:, p, :3], self.pose[:, p, 3:])),
                torch.tensor(self.betas[:, p], dtype=torch.float32),
            )
            moved = [x.numpy() + self.trans[:, p, None] for x in out]
            world[:, p], self.joints_world[:, p] = moved
        self.vertices = np.einsum("fij,fpvj->fpvi", self.R, world) + self.t[:, None, None]

    @property
    def camera(self) -> np.ndarray:
        """World to camera (F, 4, 4)."""
        out = np.tile(np.eye(4), (len(self.R), 1, 1))
        out[:, :3, :3], out[:, :3, 3] = self.R, self.t
        return out

    def points(self, joint_set: str) -> np.ndarray:
        """Points of a set in the camera frame (F, P, J, 3)."""
        return load_body("smpl", "neutral").regressor(joint_set).numpy().astype(np.float64) @ self.vertices

    def keypoints(self, joint_set: str, k: np.ndarray = K) -> np.ndarray:
        """Their pixels, with score 1 (F, P, J, 3)."""
        xy = pixels(self.points(joint_set), k)
        return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)

    def turned_pose(self, f: int, p: int) -> np.ndarray:
        """The pose (72,) with its root in the camera frame."""
        root = Rotation.from_matrix(self.R[f]) * Rotation.from_rotvec(self.pose[f, p, :3])
        return np.concatenate([root.as_rotvec(), self.pose[f, p, 3:]])


def pixels(xyz: np.ndarray, k: np.ndarray = K) -> np.ndarray:
    uvw = xyz @ k.T
    return uvw[..., :2] / uvw[..., 2:]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 120, 150)).save(path)


def dump(path: Path, content: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def dump_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=lambda x: x.tolist()))
    return path


def estimate(rows: Artefact, vertices: np.ndarray, out: Path) -> Path:
    """A meshes file: SCALE times the vertices (R, V, 3) of the rows, as a network that predicts vertices would."""
    job = Job(
        stage="test",
        kind="meshes",
        params={"scale": SCALE},
        inputs={"detections": rows},
        columns=(Column("vertices/xyz", "f4", ("R", 6890, 3), "m", "test"),),
        group_attrs={"vertices": {"body_model": "smpl", "gender": "neutral"}},
    )
    return Path(run_rows(job, lambda: lambda r: {"vertices/xyz": SCALE * vertices[r]}, out, RunOptions()))
