"""People with a known body for training mesh networks: crops and targets from a detections artefact with the truth.

The truth is the group `extra` that `hmr synth` writes (global_orient, body_pose, betas, transl in the camera frame).
Augmentation is METRO's: scale, rotation, colour gains; and the flip of the released programs.
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
from stages.errors import ArtefactError
from stages.geometry import crops
from stages.geometry.cameras import project
from stages.geometry.rotations import about
from stages.keypoints.joint_sets import convert, flip
from stages.keypoints.joint_sets import get as joint_set
from stages.loaders.people import PersonLoader
from stages.models.embedded.kinematics import Skeleton
from stages.models.postometro.recoverers import GROW, MEAN, STD
from stages.smpl.body import Body
from stages.smpl.mesh_sampling import MeshSampling
from stages.synthetic.mocap import BENCHMARK, load_poses, mirror
from stages.training.augmentation import Augmentation as Common
from stages.training.synthetic_keypoints import Corruption, draw_batch

TRUTH = ("global_orient", "body_pose", "betas", "transl")
ROOM = 1.25 * 2**0.5  # the largest crop of the augmentation, turned, over the plain one
KEEP_BYTES = 1 << 31
KEYPOINT_SIDE = 256  # PCT's tokenizer counts in pixels of its own crop
NOISE = Corruption(clean=0.5, gauss=1, pixels=4)


@dataclasses.dataclass
class PostoMetroBatch:
    """n people. images (n, 3, S, S) normalised · meshes: fine, intermediate, coarse vertices (n, V, 3) in metres, the
    pelvis at the origin · joints (n, 14, 3), the same frame · places (n, 14, 2) in the crop's [-1, 1] · keypoints
    (n, 17, 3) given (disturbed) COCO keypoints: x, y in 256-pixel crop pixels, 1 = given."""

    images: Tensor
    meshes: tuple[Tensor, Tensor, Tensor]
    joints: Tensor
    places: Tensor
    keypoints: Tensor

    def to(self, device: str) -> PostoMetroBatch:
        fine, intermediate, coarse = (mesh.to(device) for mesh in self.meshes)
        rest = (x.to(device) for x in (self.joints, self.places, self.keypoints))
        return PostoMetroBatch(self.images.to(device), (fine, intermediate, coarse), *rest)


class PostoMetroExamples:
    """The rows of a table as training examples. Raises ArtefactError when it holds no truth.

    Pictures are opened once: a crop with room for every augmentation is kept of each person, as far as memory goes.
    """

    def __init__(self, table: Artefact, body: Body, levels: MeshSampling, side: int, root: Path | None = None) -> None:
        missing = [f"extra/{name}" for name in TRUTH if not table.has(f"extra/{name}")]
        if missing:
            raise ArtefactError(f"{table.path or 'the table'} holds no {', '.join(missing)}", "make one with hmr synth")
        self.people = PersonLoader(table, root=root)
        self.blind = PersonLoader(table, needs_images=lambda given: False)
        self.truth = {name: table.read(f"extra/{name}") for name in TRUTH}
        self.body, self.levels, self.side = body, levels, side
        self.fingerprint = f"{table.fingerprint} {side} {body.name}"
        self.edges, self.faces = torch.from_numpy(levels.edges(1)), torch.from_numpy(levels.faces[1])
        self.rows = np.flatnonzero(np.isfinite(self.truth["transl"]).all(1) & (table.rows["status"] == 0))
        self.kept: dict[int, np.ndarray] = {}
        self.margin = math.ceil((ROOM - 1) / 2 * side)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def batch(
        self, which: Sequence[int] | np.ndarray, generator: np.random.Generator | None = None, *, pictures: bool = True
    ) -> PostoMetroBatch:
        """The examples `which`, as they are, or augmented by random numbers of `generator`; perhaps without images."""
        rows = self.rows[np.asarray(which)]
        people = self.blind(rows)
        n = len(rows)
        change = PostoMetroAugmentation.none(n) if generator is None else PostoMetroAugmentation.draw(n, generator)
        affine = change.affine(people.box, self.side)
        images = self.images(rows, people.box, affine) if pictures else np.zeros((n, 0, 0, 3), np.float32)
        images = np.clip(images * change.gains[:, None, None].astype(np.float32), 0, 255)
        vertices = self.body(*(torch.from_numpy(self.truth[name][rows]) for name in TRUTH)).vertices
        joints = self.body.regress(vertices, "lsp14")
        places = crops.apply(affine, project(joints, torch.from_numpy(people.K)).double().numpy())
        mirrored = torch.from_numpy(change.mirrored)
        if change.mirrored.any():
            vertices = torch.where(mirrored[:, None, None], self._mirrored(rows), vertices)
        turn = about("z", torch.from_numpy(change.angle).float())
        vertices = vertices @ turn.transpose(1, 2)
        joints = self.body.regress(vertices, "lsp14")
        pelvis = self.body.regress(vertices, "h36m17")[:, :1]
        fine = vertices - pelvis
        coarser = [fine[:, torch.from_numpy(keep)] for keep in (self.levels.keep[0], self._coarse)]
        keypoints = convert(people.keypoints, people.joints, "coco17")
        given = (keypoints[..., 2] > 0) & np.isfinite(keypoints).all(-1)
        xy = crops.apply(affine, np.where(given[..., None], keypoints[..., :2], 0)) * (KEYPOINT_SIDE / self.side)
        keypoints = np.concatenate([np.where(given[..., None], xy, 0), given[..., None]], -1)
        places = change.named(places, flip(joint_set("lsp14")))
        keypoints = change.named(keypoints, flip(joint_set("coco17")))
        return PostoMetroBatch(
            torch.from_numpy((images - MEAN) / STD).permute(0, 3, 1, 2).contiguous(),
            (fine, coarser[0], coarser[1]),
            joints - pelvis,
            torch.from_numpy(2 * places / self.side - 1).float(),
            torch.from_numpy(keypoints).float(),
        )

    def images(self, rows: np.ndarray, box: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Crops (n, side, side, 3) float32 of rows (n,) by `affine` (n, 2, 3), picture to crop."""
        wide = PostoMetroAugmentation.none(len(rows)).affine(box, self.side)
        wide[:, :, 2] += self.margin
        new = np.array([k for k, row in enumerate(rows) if int(row) not in self.kept], int)
        patches = {int(row): self.kept[int(row)] for row in rows if int(row) in self.kept}
        if len(new):
            people = self.people(rows[new])
            read = crops.warp(people.images, people.frame, wide[new], self.side + 2 * self.margin)
            patches |= {int(rows[k]): patch for k, patch in zip(new, read, strict=True)}
            if (len(self.kept) + len(new)) * read[0].nbytes < KEEP_BYTES:
                self.kept |= patches
        # Without augmentation this is a shift by whole pixels, which changes nothing.
        back = crops.invert(wide)
        linear = affine[:, :, :2] @ back[:, :, :2]
        offset = affine[:, :, :2] @ back[:, :, 2:] + affine[:, :, 2:]
        moved = np.concatenate([linear, offset], 2)
        return crops.warp([patches[int(row)] for row in rows], np.arange(len(rows)), moved, self.side, np.float32)

    @property
    def _coarse(self) -> np.ndarray:
        return self.levels.keep[0][self.levels.keep[1]]

    def _mirrored(self, rows: np.ndarray) -> Tensor:
        """The bodies of rows as a mirror shows them: reflected in x, before and after the root's turn."""
        orient, pose, betas, _ = (torch.from_numpy(self.truth[name][rows]) for name in TRUTH)
        both = mirror(torch.cat([orient[:, None], pose], 1))
        return self.body(both[:, 0], both[:, 1:], betas).vertices


class Keypoints:
    """Endless keypoints of a motion file's bodies before random cameras, for the tokenizer, which sees no picture.

    Half of them exact, half with normal noise up to 4 pixels; some missing, as `hmr train embedded` leaves them out.
    """

    def __init__(self, poses: Path, body: Body) -> None:
        self.bank = load_poses(poses, without=BENCHMARK)
        self.skeleton = Skeleton.from_body(body)
        self.fingerprint = f"{self.bank.sha256} {body.name}"

    def __len__(self) -> int:
        return len(self.bank)

    @torch.no_grad()
    def batch(
        self, which: Sequence[int] | np.ndarray, generator: np.random.Generator | None = None, *, pictures: bool = False
    ) -> PostoMetroBatch:
        """As many as `which` names; which ones, the generator alone decides."""
        n, rng = len(which), generator or np.random.default_rng(int(which[0]))
        random = torch.Generator().manual_seed(int(rng.integers(2**62)))
        drawn = draw_batch(n, self.bank, self.skeleton, random, defects=NOISE)
        given = drawn.seen.T[..., None].float()
        scale = torch.from_numpy(rng.uniform(0.75, 1.25, (n, 1, 1))).float() * KEYPOINT_SIDE / 2 / GROW
        shift = torch.from_numpy(rng.normal(0, 6, (n, 1, 2))).float()
        xy = drawn.observed.permute(2, 1, 0) * scale + (KEYPOINT_SIDE - 1) / 2 + shift
        none = torch.zeros(n)
        return PostoMetroBatch(none, (none, none, none), none, none, torch.cat([xy * given, given], -1))


class PostoMetroAugmentation(Common):
    """The augmentation of mesh networks."""

    @classmethod
    def draw(cls, n: int, rng: np.random.Generator) -> PostoMetroAugmentation:
        """METRO's: scale normal(1, 0.25) within a quarter, rotation normal(0, 30 degrees) within 60 for two of five."""
        angle = np.deg2rad(np.clip(rng.normal(0, 30, n), -60, 60)) * (rng.random(n) >= 0.6)
        scale = np.clip(rng.normal(1, 0.25, n), 0.75, 1.25)
        return cls(scale, angle, rng.uniform(0.6, 1.4, (n, 3)), rng.random(n) < 0.5)

    def affine(self, box: np.ndarray, side: int) -> np.ndarray:
        """Picture to crop (n, 2, 3): the square around each box, grown, scaled, turned by `angle`, mirrored."""
        center, extent = crops.square_boxes(box, GROW)
        linear = self.linear(side / (extent * self.scale))
        offset = side / 2 - (linear @ center[..., None])[..., 0]
        return np.concatenate([linear, offset[..., None]], 2)
