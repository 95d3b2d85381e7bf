"""People with a known body for training DPMesh: crops, true and disturbed keypoints, the targets of its losses.

The truth is the group `extra` that `hmr synth` writes (stages/training/truth.py). Augmentation is the released
program's: scale, rotation, colour gains, flip, dropped joints; keypoints are disturbed by PoseFix's error model
(`stages.keypoints.noise`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.table import Artefact
from stages.errors import ArtefactError
from stages.geometry import crops
from stages.geometry.cameras import project
from stages.geometry.heatmaps import dpmesh_keypoints, joints_in_crop
from stages.geometry.rotations import about, axis_angle_to_matrix, matrix_to_axis_angle
from stages.keypoints.joint_sets import SETS, convert, flip
from stages.keypoints.noise import disturb
from stages.loaders.people import PersonLoader
from stages.models.dpmesh.inputs import CROP, HEAT
from stages.smpl.body import Body
from stages.synthetic.mocap import mirror
from stages.training.augmentation import Augmentation as Common
from stages.training.dpmesh.losses import UNIT, UNSUPERVISED
from stages.training.truth import TRUTH, read_truth

NAMES = SETS["dpmesh30"]
DEPTH_RANGE = 2.0  # metres of the depth axis that joint_img's z covers, about the root
DROPPED = 0.1  # share of visible joints that the network is not given


@dataclasses.dataclass
class DPMeshBatch:
    """n people. images (n, 3, 256, 256) in [0, 1] · clean and noisy: joints (n, 30, 2) in heatmap pixels and which of
    them are visible (n, 30) · focal (n,) of the crop's camera · target: see `stages.training.dpmesh.losses.terms`."""

    images: Tensor
    clean: tuple[Tensor, Tensor]
    noisy: tuple[Tensor, Tensor]
    focal: Tensor
    target: dict[str, Tensor]

    def to(self, device: str) -> DPMeshBatch:
        move = lambda pair: (pair[0].to(device), pair[1].to(device))  # noqa: E731
        target = {name: value.to(device) for name, value in self.target.items()}
        return DPMeshBatch(self.images.to(device), move(self.clean), move(self.noisy), self.focal.to(device), target)


class DPMeshExamples:
    """The rows of a table as training examples. Raises ArtefactError when it has no truth, or nobody with keypoints."""

    def __init__(self, table: Artefact, body: Body, root: Path | None = None) -> None:
        self.truth = read_truth(table)
        self.people, self.body = PersonLoader(table, root=root), body
        self.frame = table.rows["frame"]
        self.fingerprint = f"{table.fingerprint} {body.name}"
        xy, score = table.read("keypoints/xy"), table.read("keypoints/score")
        keypoints = np.concatenate([xy, score[..., None]], -1)
        # COCO's: the error model is defined for these, and every detector has them.
        self.keypoints = np.nan_to_num(convert(keypoints, self.people.joints, "coco17"))
        crop = joints_in_crop(dpmesh_keypoints(self.keypoints, SETS["coco17"]), table.frames["size"][self.frame])
        usable = np.isfinite(crop.affine).all((1, 2)) & np.isfinite(self.truth["transl"]).all(1)
        self.rows = np.flatnonzero(usable & (table.rows["status"] == 0))
        if not len(self.rows):
            raise ArtefactError(f"{table.path or 'the table'} has no row with truth and keypoints", "hmr info FILE")

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, *, augment: bool = True
    ) -> DPMeshBatch:
        """The examples `indices`; keypoint errors, and the augmentation, by random numbers of `rng`."""
        rows = self.rows[np.asarray(indices)]
        people = self.people(rows)
        augmentation = DPMeshAugmentation.draw(len(rows), rng) if augment else DPMeshAugmentation.none(len(rows))
        clean = dpmesh_keypoints(self.keypoints[rows], SETS["coco17"])
        affine = augmentation.affine(joints_in_crop(clean, people.size, CROP).affine)
        patches = crops.warp(people.images, people.frame, affine.astype(np.float32), CROP, np.float32)
        patches = np.clip(patches * augmentation.gains[:, None, None].astype(np.float32), 0, 255) / np.float32(255)
        dropped = rng.random((len(rows), len(NAMES))) < DROPPED * augment
        disturbed = dpmesh_keypoints(self.disturbed(rows, rng), SETS["coco17"])
        focal = np.hypot(*people.size.T.astype(np.float64))
        return DPMeshBatch(
            torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous(),
            self.crop_joints(clean, affine, augmentation, np.zeros_like(dropped)),
            self.crop_joints(disturbed, affine, augmentation, dropped),
            torch.from_numpy(focal).float(),
            self.target(rows, people.K, affine, augmentation),
        )

    def disturbed(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Keypoints (n, 17, 3) with a detector's errors: all people of an image together, since joints are swapped."""
        noisy = self.keypoints[rows].copy()
        for frame in np.unique(self.frame[rows]):
            together = np.flatnonzero(self.frame == frame)
            points = self.keypoints[together]
            noise = disturb(points[..., :2].astype(np.float64), points[..., 2] > 0.05, rng)
            here = np.flatnonzero(self.frame[rows] == frame)
            noisy[here, :, :2] = noise[np.searchsorted(together, rows[here])]
        return noisy

    def crop_joints(
        self, keypoints: np.ndarray, affine: np.ndarray, augmentation: DPMeshAugmentation, dropped: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Joints in heatmap pixels (n, 30, 2) and which are visible (n, 30), left and right as in the crop."""
        xy = crops.apply(crops.scaled(affine, HEAT / CROP), keypoints[..., :2].astype(np.float64)).astype(np.float32)
        visible = (keypoints[..., 2] > 0.05) & (xy >= 0).all(-1) & (xy < HEAT).all(-1)
        order = flip(NAMES)
        xy, visible = augmentation.swap_sides(xy, order), augmentation.swap_sides(visible, order) & ~dropped
        return torch.from_numpy(xy), torch.from_numpy(visible)

    def target(
        self, rows: np.ndarray, K: np.ndarray, affine: np.ndarray, augmentation: DPMeshAugmentation
    ) -> dict[str, Tensor]:
        """Where the body's joints are in the augmented crop, and the augmented body itself, about its root."""
        orient, pose, betas, transl = (torch.from_numpy(self.truth[name][rows]).float() for name in TRUTH)
        posed = self.body(orient, pose, betas, transl)
        joints = self.body.regress(posed.vertices, "dpmesh30")
        pixels = crops.apply(affine, project(joints, torch.from_numpy(K).float()).double().numpy())
        mirrored = torch.from_numpy(augmentation.mirrored)
        full_pose = torch.cat([orient[:, None], pose], 1)
        full_pose = torch.where(mirrored[:, None, None], mirror(full_pose), full_pose)
        rotation = about("z", torch.from_numpy(augmentation.angle).float())
        full_pose[:, 0] = matrix_to_axis_angle(rotation @ axis_angle_to_matrix(full_pose[:, 0]))
        xyz = self.body.regress(self.body(full_pose[:, 0], full_pose[:, 1:], betas).vertices, "dpmesh30")
        xyz = xyz - xyz[:, :1]
        pixels = augmentation.swap_sides(pixels, flip(NAMES))
        depth = (xyz[..., 2:] / DEPTH_RANGE + 0.5) * UNIT
        image = torch.cat([torch.from_numpy(pixels).float() * (UNIT / CROP), depth], -1)
        inside = ((image >= 0) & (image < UNIT)).all(-1, keepdim=True).float()
        n, one = len(rows), torch.ones(len(rows))
        supervised = torch.ones(24, 3)
        supervised[torch.as_tensor(UNSUPERVISED)] = 0
        return {
            "orig_joint_img": image,
            "fit_joint_img": image,
            "orig_joint_trunc": inside,
            "fit_joint_trunc": inside,
            "orig_joint_cam": xyz,
            "orig_joint_valid": torch.ones(n, len(NAMES), 1),
            "pose_param": full_pose.flatten(1),
            "shape_param": betas,
            "fit_param_valid": supervised.flatten().expand(n, -1),
            "is_valid_fit": one,
            "is_3D": one,
        }


class DPMeshAugmentation(Common):
    """The augmentation of DPMesh."""

    @classmethod
    def draw(cls, n: int, rng: np.random.Generator) -> DPMeshAugmentation:
        """The released loader's: scale 1 +- 0.25, 30 degrees times a normal number within 2 for three of five."""
        angle = np.deg2rad(30 * np.clip(rng.normal(size=n), -2, 2)) * (rng.random(n) < 0.6)
        scale = 1 + 0.25 * np.clip(rng.normal(size=n), -1, 1)
        return cls(scale, angle, rng.uniform(0.8, 1.2, (n, 3)), rng.random(n) < 0.5)

    def affine(self, plain: np.ndarray) -> np.ndarray:
        """Image to crop (n, 2, 3): after `plain`, mirrored, then rotated, then scaled about the crop's middle."""
        linear = self.linear(1 / self.scale)
        middle = np.full((len(linear), 2, 1), CROP / 2)
        affine = linear @ plain
        affine[:, :, 2:] += middle - linear @ middle
        return affine
