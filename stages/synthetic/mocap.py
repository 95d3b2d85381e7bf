"""Endless training people: poses from motion capture, mixed, mirrored and disturbed; cameras; imperfect keypoints.

Everything is drawn in whole batches from one `torch.Generator`, so a seed fixes the stream. The motion file is
`mocap_smpl24.npz` (poses (N, 24, 3) axis-angle in a y-up world, seq, seq_subject, seq_source ...); its SHA-256 is kept
with what is trained from it. Only CMU poses may be used for weights that are given away (HDM05 is share-alike).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from stages.errors import AssetError
from stages.keypoints import joint_sets

SMPL = joint_sets.get("smpl24")
COCO = joint_sets.get("coco17")
HELD_OUT = ("cmu14",)  # the test subject of the acceptance table
BENCHMARK = ("cmu05", "cmu09", "cmu12", "cmu14")  # subjects of `hmr synth` (stages/synthetic/make_poses.py)
VALIDATION = ("cmu08", "cmu11")  # looked at during training, never trained on


def _flip(names: Sequence[str]) -> Tensor:
    swap = {"left": "right", "right": "left"}
    other = ["_".join(swap.get(part, part) for part in name.split("_")) for name in names]
    return torch.tensor([names.index(name) for name in other])


SMPL_FLIP, COCO_FLIP = _flip(SMPL), _flip(COCO)


def _smpl(*words: str) -> list[int]:
    return [i for i, name in enumerate(SMPL) if any(name.endswith(w) or name == w for w in words)]


LEGS = _smpl("hip", "knee", "ankle", "foot")
LEFT_ARM = _smpl(*(f"left_{w}" for w in ("collar", "shoulder", "elbow", "wrist", "hand")))
RIGHT_ARM = [int(SMPL_FLIP[i]) for i in LEFT_ARM]
SPINE = _smpl("spine1", "spine2", "spine3")


@dataclasses.dataclass(frozen=True)
class Augment:
    """How a drawn pose is changed. Probabilities unless a unit is named."""

    legs: float = 0.30  # taken from another frame
    arm: float = 0.25  # each arm likewise
    mirror: float = 0.5
    noisy: float = 0.6
    noise: float = 7.0  # degrees, largest standard deviation per joint
    spine: float = 0.3  # the bend shared out anew over the three spine joints
    seat: float = 0.04  # hips and knees bent as on a chair, which the motion capture lacks


NOTHING = Augment(0, 0, 0, 0, 0, 0, 0)


@dataclasses.dataclass
class PoseBank:
    """Poses (N, 24, 3) axis-angle, y-up world, with a drawing weight each; `sha256` of the file they came from."""

    poses: Tensor
    weight: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.poses)

    def to(self, device: str | torch.device) -> PoseBank:
        """The same on another device; draw then with a generator of that device."""
        return PoseBank(self.poses.to(device), self.weight.to(device), self.sha256)

    def draw(self, n: int, generator: Generator, augment: Augment = Augment()) -> Tensor:
        """n poses (n, 24, 3), axis-angle, root in the y-up world (a standing person with zero rotation faces +z)."""
        with generator.device:
            return self._draw(n, generator, augment)

    def _draw(self, n: int, generator: Generator, augment: Augment) -> Tensor:
        def some(probability: float) -> Tensor:
            return torch.rand(n, 1, 1, generator=generator) < probability

        pose = self.poses[self._frames(n, generator)]
        for part, probability in ((LEGS, augment.legs), (LEFT_ARM, augment.arm), (RIGHT_ARM, augment.arm)):
            if probability:
                chosen = some(probability)[:, 0, 0].nonzero()[:, 0]
                other = self.poses[self._frames(len(chosen), generator)]
                pose[chosen[:, None], torch.tensor(part)] = other[:, part]
        if augment.spine:
            share = torch.rand(n, 3, 1, generator=generator) + 0.05
            bend = pose[:, SPINE].sum(1, keepdim=True) * (share / share.sum(1, keepdim=True))
            pose[:, SPINE] = torch.where(some(augment.spine), bend, pose[:, SPINE])
        if augment.seat:
            pose = torch.where(some(augment.seat), _seated(pose, generator), pose)
        if augment.noisy:
            sigma = torch.rand(n, 1, 1, generator=generator) * math.radians(augment.noise) * some(augment.noisy)
            pose = pose + sigma * torch.randn(n, 24, 3, generator=generator)
        if augment.mirror:
            pose = torch.where(some(augment.mirror), mirror(pose), pose)
        return pose

    def _frames(self, n: int, generator: Generator) -> Tensor:
        """Half of the frames evenly, half by weight."""
        even = torch.randint(len(self.poses), (n,), generator=generator)
        quantile = torch.rand(n, generator=generator)
        rare = torch.searchsorted(self._cumulative(), quantile).clamp_(max=len(self.poses) - 1)
        return torch.where(torch.rand(n, generator=generator) < 0.5, even, rare)

    def _cumulative(self) -> Tensor:
        if not hasattr(self, "_sums"):
            self._sums = (self.weight.double().cumsum(0) / self.weight.double().sum()).float()
        return self._sums


def mirror(pose: Tensor) -> Tensor:
    """The pose seen in a mirror: (..., 24, 3) axis-angle, left and right exchanged, reflected in x."""
    return pose[..., SMPL_FLIP, :] * pose.new_tensor([1.0, -1.0, -1.0])


def _seated(pose: Tensor, generator: Generator) -> Tensor:
    """The same upper bodies with hips bent by 50 to 115 degrees and knees by 20 to 125."""
    pose, n = pose.clone(), len(pose)
    bend = torch.rand(n, 4, generator=generator)
    both = torch.rand(n, 1, generator=generator) < 0.7  # legs alike
    hip, knee = bend[:, :2], bend[:, 2:]
    hip = torch.where(both, hip[:, :1] + 0.1 * (hip[:, 1:] - hip[:, :1]) * torch.tensor([0.0, 1.0]), hip)
    knee = torch.where(both, knee[:, :1] + 0.1 * (knee[:, 1:] - knee[:, :1]) * torch.tensor([0.0, 1.0]), knee)
    spread = torch.randn(n, 2, 2, generator=generator) * 0.2
    left, right = SMPL.index("left_hip"), SMPL.index("right_hip")
    for side, joint in enumerate((left, right)):
        pose[:, joint, 0] = -torch.deg2rad(50 + 65 * hip[:, side])
        pose[:, joint, 1:] = spread[:, side]
        pose[:, joint + 3, 0] = torch.deg2rad(20 + 105 * knee[:, side])
        pose[:, joint + 3, 1:] = 0
    return pose


def load_poses(
    path: str | Path, *, sources: str = "cmu", subjects: Sequence[str] = (), without: Sequence[str] = HELD_OUT
) -> PoseBank:
    """The poses of a motion file: `sources` is the start of `seq_source`; only `subjects` if given, never `without`.

    Raises AssetError when the file is missing, is not such a file or holds no such pose.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        with np.load(path) as file:
            poses, clip = file["poses"].astype(np.float32), file["seq"].astype(np.int64)
            source, subject = file["seq_source"].astype(str), file["seq_subject"].astype(str)
    except FileNotFoundError:
        raise AssetError(f"no motion file {path}", "give mocap_smpl24.npz with --poses") from None
    except Exception as error:
        known = isinstance(error, (KeyError, OSError)) and not isinstance(error, ValueError)
        why = f": {error}" if known else ""  # numpy's advice on other files is to load them unsafely
        raise AssetError(f"{path} is not a motion file{why}", "it needs poses, seq, seq_source, seq_subject") from error
    keep = np.char.startswith(source, sources) & ~np.isin(subject, list(without))
    if subjects:
        keep &= np.isin(subject, list(subjects))
    chosen = torch.from_numpy(poses[keep[clip]])
    if not len(chosen):
        raise AssetError(f"{path} holds no poses of {sources!r} {list(subjects)}", "check the subjects")
    return PoseBank(chosen, rarity(chosen), hashlib.sha256(data).hexdigest())


def rarity(poses: Tensor, *, neighbour: int = 6, sample: int = 8192) -> Tensor:
    """Drawing weight (N,) of each pose: distance to its 6th neighbour in an even sample, at most 4 times the mean."""
    step = max(1, len(poses) // sample)
    flat = poses[:, 1:20].flatten(1)
    reference = flat[::step]
    k = min(neighbour + 1, len(reference))
    near = torch.cat([torch.cdist(part, reference).kthvalue(k).values for part in flat.split(2048)])
    return near.clamp(max=4 * float(near.mean()) + 1e-6) + 1e-6
