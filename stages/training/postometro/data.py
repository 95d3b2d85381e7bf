"""People with a known body for training mesh networks: crops and targets from a detections artefact with the truth.

The truth is the group `extra` that `hmr synth` writes (stages/training/truth.py). Augmentation is METRO's: scale,
rotation, colour gains; and the flip of the released programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.table import Artefact
from stages.geometry import crops
from stages.geometry.cameras import project
from stages.geometry.rotations import about
from stages.keypoints.joint_sets import convert, flip
from stages.keypoints.joint_sets import get as joint_set
from stages.loaders.people import PersonLoader
from stages.models.backbones.imagenet import imagenet_normalised
from stages.models.embedded.kinematics import Skeleton
from stages.models.postometro.recoverers import GROW
from stages.smpl.body import Body
from stages.smpl.mesh_sampling import MeshSampling
from stages.synthetic.mocap import BENCHMARK, load_poses, mirror
from stages.training.augmentation import Augmentation as Common
from stages.training.synthetic_keypoints import Corruption, draw_batch
from stages.training.truth import TRUTH, read_truth

MAX_ENLARGED = 1.25 * 2**0.5  # the largest crop of the augmentation, rotated, over the plain one
CACHE_BYTES = 1 << 31
KEYPOINT_SIDE = 256  # the tokenizer of PCT takes pixels of its own crop
CORRUPTION = Corruption(clean=0.5, gauss=1, pixels=4)


@dataclasses.dataclass
class PostoMetroBatch:
    """n people. images (n, 3, S, S) normalised · meshes: fine, intermediate, coarse vertices (n, V, 3) in metres, the
    pelvis at the origin · joints (n, 14, 3), the same frame · joints_2d (n, 14, 2) in the crop's [-1, 1] · keypoints
    (n, 17, 3) COCO keypoints of the detections: x, y in pixels of a 256 crop, 1 = known."""

    images: Tensor
    meshes: tuple[Tensor, Tensor, Tensor]
    joints: Tensor
    joints_2d: Tensor
    keypoints: Tensor

    def to(self, device: str) -> PostoMetroBatch:
        fine, intermediate, coarse = (mesh.to(device) for mesh in self.meshes)
        rest = (x.to(device) for x in (self.joints, self.joints_2d, self.keypoints))
        return PostoMetroBatch(self.images.to(device), (fine, intermediate, coarse), *rest)


class PostoMetroExamples:
    """The rows of a table as training examples. Raises ArtefactError when it holds no truth.

    Images are opened once: of each person a crop with margins for every augmentation is cached, up to CACHE_BYTES.
    """

    def __init__(self, table: Artefact, body: Body, levels: MeshSampling, side: int, root: Path | None = None) -> None:
        self.truth = read_truth(table)
        self.people = PersonLoader(table, root=root)
        self.people_without_images = PersonLoader(table, needs_images=lambda available: False)
        self.body, self.levels, self.side = body, levels, side
        self.fingerprint = f"{table.fingerprint} {side} {body.name}"
        self.edges, self.faces = torch.from_numpy(levels.edges(1)), torch.from_numpy(levels.faces[1])
        self.rows = np.flatnonzero(np.isfinite(self.truth["transl"]).all(1) & (table.rows["status"] == 0))
        self.cached: dict[int, np.ndarray] = {}
        self.margin = math.ceil((MAX_ENLARGED - 1) / 2 * side)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def batch(
        self, indices: Sequence[int] | np.ndarray, generator: np.random.Generator | None = None, *, images: bool = True
    ) -> PostoMetroBatch:
        """The examples `indices`, augmented by random numbers of `generator` if given; with or without their images."""
        rows = self.rows[np.asarray(indices)]
        people = self.people_without_images(rows)
        n = len(rows)
        augmentation = (
            PostoMetroAugmentation.none(n) if generator is None else PostoMetroAugmentation.draw(n, generator)
        )
        affine = augmentation.affine(people.box, self.side)
        crop = self.crops(rows, people.box, affine) if images else np.zeros((n, 0, 0, 3), np.float32)
        crop = np.clip(crop * augmentation.gains[:, None, None].astype(np.float32), 0, 255)
        vertices = self.body(*(torch.from_numpy(self.truth[name][rows]) for name in TRUTH)).vertices
        joints = self.body.regress(vertices, "lsp14")
        joints_2d = crops.apply(affine, project(joints, torch.from_numpy(people.K)).double().numpy())
        mirrored = torch.from_numpy(augmentation.mirrored)
        if augmentation.mirrored.any():
            vertices = torch.where(mirrored[:, None, None], self._mirrored(rows), vertices)
        rotation = about("z", torch.from_numpy(augmentation.angle).float())
        vertices = vertices @ rotation.transpose(1, 2)
        joints = self.body.regress(vertices, "lsp14")
        pelvis = self.body.regress(vertices, "h36m17")[:, :1]
        fine = vertices - pelvis
        coarser = [fine[:, torch.from_numpy(keep)] for keep in (self.levels.keep[0], self._coarse)]
        keypoints = convert(people.keypoints, people.joints, "coco17")
        known = (keypoints[..., 2] > 0) & np.isfinite(keypoints).all(-1)
        xy = crops.apply(affine, np.where(known[..., None], keypoints[..., :2], 0)) * (KEYPOINT_SIDE / self.side)
        keypoints = np.concatenate([np.where(known[..., None], xy, 0), known[..., None]], -1)
        joints_2d = augmentation.swap_sides(joints_2d, flip(joint_set("lsp14")))
        keypoints = augmentation.swap_sides(keypoints, flip(joint_set("coco17")))
        return PostoMetroBatch(
            imagenet_normalised(crop),
            (fine, coarser[0], coarser[1]),
            joints - pelvis,
            torch.from_numpy(2 * joints_2d / self.side - 1).float(),
            torch.from_numpy(keypoints).float(),
        )

    def crops(self, rows: np.ndarray, box: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Crops (n, side, side, 3) float32 of rows (n,) by `affine` (n, 2, 3), image to crop."""
        wide = PostoMetroAugmentation.none(len(rows)).affine(box, self.side)
        wide[:, :, 2] += self.margin
        new = np.array([k for k, row in enumerate(rows) if int(row) not in self.cached], int)
        patches = {int(row): self.cached[int(row)] for row in rows if int(row) in self.cached}
        if len(new):
            people = self.people(rows[new])
            read = crops.warp(people.images, people.frame, wide[new], self.side + 2 * self.margin)
            patches |= {int(rows[k]): patch for k, patch in zip(new, read, strict=True)}
            if (len(self.cached) + len(new)) * read[0].nbytes < CACHE_BYTES:
                self.cached |= patches
        # Without augmentation this is a shift by whole pixels, which changes nothing.
        back = crops.invert(wide)
        linear = affine[:, :, :2] @ back[:, :, :2]
        offset = affine[:, :, :2] @ back[:, :, 2:] + affine[:, :, 2:]
        from_cached = np.concatenate([linear, offset], 2)
        return crops.warp([patches[int(row)] for row in rows], np.arange(len(rows)), from_cached, self.side, np.float32)

    @property
    def _coarse(self) -> np.ndarray:
        return self.levels.keep[0][self.levels.keep[1]]

    def _mirrored(self, rows: np.ndarray) -> Tensor:
        """The vertices of the mirrored bodies of rows: reflected in x, left and right exchanged."""
        orient, pose, betas, _ = (torch.from_numpy(self.truth[name][rows]) for name in TRUTH)
        full_pose = mirror(torch.cat([orient[:, None], pose], 1))
        return self.body(full_pose[:, 0], full_pose[:, 1:], betas).vertices


class KeypointExamples:
    """An endless stream of keypoints of a motion file's bodies before random cameras, for the tokenizer (no images).

    Half of them exact, half with normal noise up to 4 pixels; some missing, as in `hmr train embedded`.
    """

    def __init__(self, poses: Path, body: Body) -> None:
        self.bank = load_poses(poses, without=BENCHMARK)
        self.skeleton = Skeleton.from_body(body)
        self.fingerprint = f"{self.bank.sha256} {body.name}"

    def __len__(self) -> int:
        return len(self.bank)

    @torch.no_grad()
    def batch(
        self, indices: Sequence[int] | np.ndarray, generator: np.random.Generator | None = None, *, images: bool = False
    ) -> PostoMetroBatch:
        """As many people as there are indices; the generator alone decides which."""
        n, rng = len(indices), generator or np.random.default_rng(int(indices[0]))
        random = torch.Generator().manual_seed(int(rng.integers(2**62)))
        people = draw_batch(n, self.bank, self.skeleton, random, corruption=CORRUPTION)
        visible = people.visible.T[..., None].float()
        scale = torch.from_numpy(rng.uniform(0.75, 1.25, (n, 1, 1))).float() * KEYPOINT_SIDE / 2 / GROW
        shift = torch.from_numpy(rng.normal(0, 6, (n, 1, 2))).float()
        xy = people.observed.permute(2, 1, 0) * scale + (KEYPOINT_SIDE - 1) / 2 + shift
        empty = torch.zeros(n)
        return PostoMetroBatch(empty, (empty, empty, empty), empty, empty, torch.cat([xy * visible, visible], -1))


class PostoMetroAugmentation(Common):
    """The augmentation of mesh networks."""

    @classmethod
    def draw(cls, n: int, rng: np.random.Generator) -> PostoMetroAugmentation:
        """METRO's: scale normal(1, 0.25) within a quarter, rotation normal(0, 30 degrees) within 60 for two of five."""
        angle = np.deg2rad(np.clip(rng.normal(0, 30, n), -60, 60)) * (rng.random(n) >= 0.6)
        scale = np.clip(rng.normal(1, 0.25, n), 0.75, 1.25)
        return cls(scale, angle, rng.uniform(0.6, 1.4, (n, 3)), rng.random(n) < 0.5)

    def affine(self, box: np.ndarray, side: int) -> np.ndarray:
        """Image to crop (n, 2, 3): the square around each box, grown, scaled, rotated by `angle`, mirrored."""
        center, extent = crops.square_boxes(box, GROW)
        linear = self.linear(side / (extent * self.scale))
        offset = side / 2 - (linear @ center[..., None])[..., 0]
        return np.concatenate([linear, offset[..., None]], 2)
