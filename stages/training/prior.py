"""Training of the embedded pose prior: the recoverer's error covariance, and ScoreHMR's denoiser without a condition.

In: the CMU poses of a motion file (synthetic/mocap.py: mixed, mirrored, disturbed, before random cameras) and the
embedded recoverer. Out: a safetensors file with the covariance of the recoverer's error (refinement of single images:
scorehmr/kalman_update.py), and half-precision weights of the denoiser with mean and deviation of the 144 pose
numbers (tracks and views: scorehmr/sampler.py).

The denoiser learns the noise in standardised poses (Ho et al. 2020, eq. 14). Refinement reads indices up to about 50 of
1000, so most training indices are low. There is no keypoint condition: at low indices the noisy pose itself is more
informative, and the same prior serves any detector and any joint set.

    hmr train prior --poses mocap_smpl24.npz -o prior.safetensors --max-minutes 15

The state is saved every minute next to the target; the same command resumes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stages.engine.job import SILENT
from stages.errors import UsageError
from stages.files.checkpoints import write_checkpoint
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rot6d_columns
from stages.models.embedded.network import Network
from stages.models.embedded.recoverer import EmbeddedRecoverer
from stages.models.scorehmr.denoiser import Denoiser, noise_loss
from stages.params import TrainPriorParams as Params
from stages.params.rules import check
from stages.params.stored import to_json
from stages.synthetic.mocap import HELD_OUT, NOTHING, VALIDATION, Augment, PoseBank, load_poses
from stages.training.loop import TimedTrainer, state_file, train
from stages.training.synthetic_keypoints import Camera, draw_batch, draw_rotation, noise_only

LICENCE = "Apache-2.0; poses from CMU mocap (mocap.cs.cmu.edu, NSF EIA-0196217)"
NOISE = noise_only(5.5)  # keypoints on which the recoverer's error is measured


def run(poses: Path, out: Path, params: Params = Params(), report: Any = SILENT) -> Path:
    """Train on the motion file `poses` and write the prior to `out`.

    Raises AssetError (motion file), UsageError (settings), ArtefactError (there is a state of another training).
    """
    params = check(params)
    if not params.steps and not params.max_minutes:
        raise UsageError("nothing to train: --max-minutes is 0 and --steps is not given")
    bank = load_poses(poses, without=(*HELD_OUT, *VALIDATION))
    validation = load_poses(poses, subjects=VALIDATION, without=HELD_OUT)
    trainer = PriorTrainer(bank, params)
    report.note(f"learning from {len(bank)} poses")
    train(trainer, state_file(out), report)
    errors = validate(trainer.average, validation, trainer.mean, trainer.std)
    report.note(f"{trainer.status()}, noise error of unseen subjects {errors}")
    tensors = {name: value.half() for name, value in trainer.average.state_dict().items()}
    tensors |= {
        "mean": trainer.mean,
        "std": trainer.std,
        "error_covariance": error_covariance(bank, params.people, params.seed),
    }
    header = {
        "model": "hmr pose prior",
        "licence": LICENCE,
        "poses": bank.sha256,
        "without": " ".join((*HELD_OUT, *VALIDATION)),
        "steps": str(trainer.steps),
        "minutes": f"{trainer.seconds / 60:.1f}",
        "validation": str(errors),
        "params": to_json(params),
    }
    return write_checkpoint(out, tensors, header)


@torch.no_grad()
def error_covariance(bank: PoseBank, people: int = 30_000, seed: int = 0) -> Tensor:
    """Covariance (82, 82) of the embedded recoverer's error on noisy keypoints of the poses: 24 rotation vectors (rad,
    axes of the camera that looks at the person) from estimated to true orientation of the bones, 10 betas."""
    network = EmbeddedRecoverer.load().network
    generator = Generator().manual_seed(seed)
    total = torch.zeros(82, 82, dtype=torch.float64)
    done = 0
    while done < people:
        batch = draw_batch(min(2048, people), bank, network.skeleton, generator, augment=NOTHING, corruption=NOISE)
        last = network(batch.inputs, batch.half)[0][-1]
        true, estimated = (_orientations(network, r) for r in (batch.rotation, last.rotation))
        rotation = matrix_to_axis_angle(true @ estimated.transpose(-1, -2)).flatten(1)
        error = torch.cat([rotation, (batch.betas - last.betas).t()], 1).double()
        total += error.t() @ error
        done += len(error)
    return (total / done).float()


def _orientations(network: Network, rotation: Tensor) -> Tensor:
    """Joint rotations (3, 3, 24, n) -> orientations of the bones (n, 24, 3, 3)."""
    local = rotation.permute(3, 2, 0, 1)
    out = [local[:, 0]]
    for joint, parent in enumerate(network.skeleton.parents[1:], 1):
        out.append(out[parent] @ local[:, joint])
    return torch.stack(out, 1)


def draw(n: int, bank: PoseBank, generator: Generator, augment: Augment = Augment()) -> Tensor:
    """n poses (n, 144), 6D rotations in ScoreHMR's order, root in the camera frame (y down, z forward)."""
    rotation = axis_angle_to_matrix(bank.draw(n, generator, augment))
    camera = draw_rotation(n, Camera(broad=0.15), generator).permute(2, 0, 1)
    rotation[:, 0] = camera @ rotation[:, 0]
    return matrix_to_rot6d_columns(rotation).reshape(n, 144)


class PriorTrainer(TimedTrainer):
    """Denoiser, optimiser, averaged weights and the stream of poses."""

    def __init__(self, bank: PoseBank, params: Params) -> None:
        super().__init__()
        torch.manual_seed(params.seed)
        self.bank, self.params = bank, params
        self.generator = Generator().manual_seed(params.seed)
        sample = draw(20_000, bank, self.generator)
        self.mean, self.std = sample.mean(0), sample.std(0).clamp_min(0.02)
        self.net = Denoiser(condition=0, hidden=params.hidden, blocks=params.blocks)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=params.rate, weight_decay=1e-4)

    def progress(self) -> float:
        if self.params.steps:
            return self.steps / self.params.steps
        return self.seconds / (60 * self.params.max_minutes)

    def update(self) -> float:
        """One step on fresh poses."""
        params = self.params
        x = (draw(params.batch, self.bank, self.generator) - self.mean) / self.std
        noise = torch.randn(x.shape, generator=self.generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = noise_loss(self.net, x, indices(params, self.generator), noise, x[:, :0]).float().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        decay = min(0.999, 1 - (1 + self.steps) ** -0.75)
        for slow, fast in zip(self.average.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)
        self.losses = [*self.losses[-499:], loss.item()]
        return self.losses[-1]

    def status(self) -> str:
        mean = sum(self.losses) / max(1, len(self.losses))
        return f"step {self.steps}, {self.seconds / 60:.1f} min, loss {mean:.4f}"

    def fingerprint(self) -> str:
        """Of settings and poses, not of the length of the training."""
        params = dataclasses.replace(self.params, max_minutes=0, steps=None, people=0)
        return hashlib.sha256((to_json(params) + self.bank.sha256).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        return super().state() | {"net": self.net.state_dict(), "average": self.average.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])


def indices(params: Params, generator: Generator) -> Tensor:
    """Noise indices (batch,): the share `low` uniform below 150, the rest uniform over all 1000; each for eight poses,
    because the network's time branch is computed once for each distinct index."""
    n = -(-params.batch // 8)
    near = torch.rand(n, generator=generator) < params.low
    any_index, low_index = (torch.randint(top, (n,), generator=generator) for top in (1000, 150))
    return torch.where(near, low_index, any_index).repeat_interleave(8)[: params.batch]


@torch.no_grad()
def validate(net: Denoiser, bank: PoseBank, mean: Tensor, std: Tensor, n: int = 2048) -> dict[str, float]:
    """Mean squared error of the predicted noise at three indices, on poses of subjects that were not trained on."""
    generator = Generator().manual_seed(1)
    x = (draw(n, bank, generator, NOTHING) - mean) / std
    noise = torch.randn(x.shape, generator=generator)
    return {
        str(t): round(float(noise_loss(net, x, torch.full((n,), t), noise, x[:, :0]).mean()), 4) for t in (10, 50, 300)
    }
