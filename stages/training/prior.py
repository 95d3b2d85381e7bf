"""The embedded pose prior: how the recoverer errs, and ScoreHMR's denoiser without image condition.

In: the CMU poses of a motion file (synthetic/mocap.py: mixed, mirrored, disturbed, seen by random cameras) and the
embedded recoverer. Out: a safetensors file with the covariance of the recoverer's error (refinement of single pictures:
scorehmr/kalman_update.py), and half-precision weights of the denoiser with mean and deviation of the 144 pose
numbers (tracks and views: scorehmr/sampler.py).

The denoiser learns the noise in standardised poses (Ho et al. 2020, eq. 14). Refinement reads indices up to about 50 of
1000, so most training indices are low. No keypoint condition: at low indices the noisy pose itself says more, and the
same prior then serves any detector and any joint set.

    hmr train prior --poses mocap_smpl24.npz -o prior.safetensors --max-minutes 15

The state is saved every minute next to the target; the same command resumes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stages.engine.job import SILENT
from stages.engine.stored_params import to_json
from stages.errors import UsageError
from stages.files.checkpoints import write_checkpoint
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rot6d_columns
from stages.models.embedded.network import Network
from stages.models.embedded.recoverer import EmbeddedRecoverer
from stages.models.scorehmr.denoiser import Denoiser, noise_loss
from stages.params import TrainPriorParams as Params
from stages.params import check
from stages.synthetic.mocap import HELD_OUT, NOTHING, VALIDATION, Augment, PoseBank, load_poses
from stages.training.loop import ByProgress, train
from stages.training.synthetic_keypoints import Camera, Corruption, draw_batch, draw_rotation

LICENCE = "Apache-2.0; poses from CMU mocap (mocap.cs.cmu.edu, NSF EIA-0196217)"
NOISY = Corruption(clean=0, gauss=1, pixels=5.5, told=0, scattered=0, grouped=0, focal=0)


def run(poses: Path, out: Path, params: Params = Params(), report: Any = SILENT) -> Path:
    """Train on the motion file `poses` and write the prior to `out`.

    Raises AssetError (motion file), UsageError (impossible settings), ArtefactError (a state made otherwise is there).
    """
    params = check(params)
    if not params.steps and not params.max_minutes:
        raise UsageError("nothing to train: --max-minutes is 0 and --steps is not given")
    bank = load_poses(poses, without=(*HELD_OUT, *VALIDATION))
    watched = load_poses(poses, subjects=VALIDATION, without=HELD_OUT)
    trainer = PriorTrainer(bank, params)
    report.note(f"learning from {len(bank)} poses")
    train(trainer, out.with_name(out.name + ".state"), report)
    errors = validate(trainer.average, watched, trainer.mean, trainer.std)
    report.note(f"{trainer.status()}, noise error of unseen subjects {errors}")
    tensors = {name: value.half() for name, value in trainer.average.state_dict().items()}
    tensors |= {
        "mean": trainer.mean,
        "std": trainer.std,
        "error_covariance": error_covariance(bank, params.people, params.seed),
    }
    words = {
        "model": "hmr pose prior",
        "licence": LICENCE,
        "poses": bank.sha256,
        "without": " ".join((*HELD_OUT, *VALIDATION)),
        "steps": str(trainer.steps),
        "minutes": f"{trainer.seconds / 60:.1f}",
        "validation": str(errors),
        "params": to_json(params),
    }
    return write_checkpoint(out, tensors, words)


@torch.no_grad()
def error_covariance(bank: PoseBank, people: int = 30_000, seed: int = 0) -> Tensor:
    """Covariance (82, 82) of the embedded recoverer's error on noisy keypoints of the poses: 24 rotation vectors (rad,
    axes of the camera that looks at the person) from estimated to true orientation of the bones, 10 betas."""
    network = EmbeddedRecoverer.load().network
    generator = Generator().manual_seed(seed)
    total = torch.zeros(82, 82, dtype=torch.float64)
    done = 0
    while done < people:
        batch = draw_batch(min(2048, people), bank, network.skeleton, generator, augment=NOTHING, defects=NOISY)
        last = network(batch.inputs, batch.half)[0][-1]
        true, found = (_orientations(network, r) for r in (batch.rotation, last.rotation))
        turned = matrix_to_axis_angle(true @ found.transpose(-1, -2)).flatten(1)
        error = torch.cat([turned, (batch.betas - last.betas).t()], 1).double()
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
    """n poses (n, 144) as ScoreHMR numbers them, root in the camera frame (y down, z forward)."""
    rotation = axis_angle_to_matrix(bank.draw(n, generator, augment))
    camera = draw_rotation(n, Camera(broad=0.15), generator).permute(2, 0, 1)
    rotation[:, 0] = camera @ rotation[:, 0]
    return matrix_to_rot6d_columns(rotation).reshape(n, 144)


class PriorTrainer(ByProgress):
    """Denoiser, optimiser, averaged weights and the stream of poses; all of it can be saved and continued."""

    def __init__(self, bank: PoseBank, params: Params) -> None:
        torch.manual_seed(params.seed)
        self.bank, self.params = bank, params
        self.generator = Generator().manual_seed(params.seed)
        many = draw(20_000, bank, self.generator)
        self.mean, self.std = many.mean(0), many.std(0).clamp_min(0.02)
        self.net = Denoiser(condition=0, hidden=params.hidden, blocks=params.blocks)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=params.rate, weight_decay=1e-4)
        self.steps, self.seconds, self.losses = 0, 0.0, [0.0]

    def progress(self) -> float:
        """0 at the start, 1 when done."""
        if self.params.steps:
            return self.steps / self.params.steps
        return self.seconds / (60 * self.params.max_minutes)

    def step(self) -> None:
        """One step on fresh poses."""
        begun = time.monotonic()
        params, done = self.params, min(1.0, self.progress())
        for group in self.optimiser.param_groups:
            group["lr"] = params.rate * min(1, (self.steps + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
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
        self.seconds += time.monotonic() - begun

    def status(self) -> str:
        """One line on how the training stands."""
        mean = sum(self.losses) / len(self.losses)
        return f"step {self.steps}, {self.seconds / 60:.1f} min, loss {mean:.4f}"

    def fingerprint(self) -> str:
        """Of what a state must agree on to be continued (not of the length of the training)."""
        kept = dataclasses.replace(self.params, max_minutes=0, steps=0, people=0)
        return hashlib.sha256((to_json(kept) + self.bank.sha256).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """All that changes."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.steps, self.seconds, self.losses = state["steps"], state["seconds"], state["losses"]


def indices(params: Params, generator: Generator) -> Tensor:
    """Noise indices (batch,): the share `low` even below 150, the rest even over all 1000; each for eight poses,
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
