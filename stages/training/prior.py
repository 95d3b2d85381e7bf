"""The embedded pose prior: ScoreHMR's denoiser, without image condition, trained on free motion capture.

In: the CMU poses of a motion file (stages/training/data.py: mixed, mirrored, disturbed, seen by random cameras). Out:
a safetensors file of half-precision weights with mean and deviation of the 144 pose numbers.

The denoiser learns the noise in standardised poses (Ho et al. 2020, eq. 14). Refinement reads indices up to about 50 of
1000, so most training indices are low; the rest keeps the prior usable for drawing hypotheses. No keypoint condition:
at low indices the noisy pose itself says more, and the same prior then serves any detector and any joint set.

    hmr train prior --poses mocap_smpl24.npz -o prior.safetensors --max-minutes 15
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stages.checkpoints import write_checkpoint
from stages.human.rotations import axis_angle_to_matrix, matrix_to_rot6d_columns
from stages.models.scorehmr.denoiser import Denoiser, noise_loss
from stages.params import param
from stages.progress import SILENT
from stages.training.data import HELD_OUT, VALIDATION, Augment, PoseBank, load_poses
from stages.training.views import Camera, draw_rotation

LICENCE = "Apache-2.0; poses from CMU mocap (mocap.cs.cmu.edu, NSF EIA-0196217)"


@dataclasses.dataclass(frozen=True)
class Params:
    """Settings of `hmr train prior`."""

    max_minutes: float = param(15.0, "Stop after this long; the learning rate falls to zero by then.", unit="minutes")
    max_steps: int = param(100_000, "Or after so many steps.")
    batch: int = param(512, "Poses in a step.")
    hidden: int = param(1024, "Width of the blocks.")
    blocks: int = param(4, "Number of blocks.")
    rate: float = param(1e-3, "Largest learning rate of AdamW.")
    low: float = param(0.7, "Share of noise indices drawn below 150 of 1000.")
    seed: int = param(0, "Of poses, noise and initial weights.")


def draw(n: int, bank: PoseBank, generator: Generator, augment: Augment = Augment()) -> Tensor:
    """n poses (n, 144) as ScoreHMR numbers them, root in the camera frame (y down, z forward)."""
    rotation = axis_angle_to_matrix(bank.draw(n, generator, augment))
    camera = draw_rotation(n, Camera(broad=0.15), generator).permute(2, 0, 1)
    rotation[:, 0] = camera @ rotation[:, 0]
    return matrix_to_rot6d_columns(rotation).reshape(n, 144)


def train(poses: Path, out: Path, params: Params = Params(), report: Any = SILENT) -> Path:
    """Train and write `out`. Raises AssetError when the motion file is missing or holds no CMU poses."""
    bank = load_poses(poses, without=(*HELD_OUT, *VALIDATION))
    watched = load_poses(poses, subjects=VALIDATION, without=HELD_OUT)
    generator = Generator().manual_seed(params.seed)
    torch.manual_seed(params.seed)
    many = draw(20_000, bank, generator)
    mean, std = many.mean(0), many.std(0).clamp_min(0.02)
    net = Denoiser(condition=0, hidden=params.hidden, blocks=params.blocks)
    average = copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=params.rate, weight_decay=1e-4)
    begin, step, history = time.monotonic(), 0, []
    report.start("training the prior", params.max_steps, unit="steps")
    while True:
        minutes = (time.monotonic() - begin) / 60
        spent = max(minutes / params.max_minutes, step / params.max_steps)
        if spent >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = params.rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * spent))
        x = (draw(params.batch, bank, generator) - mean) / std
        noise = torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = noise_loss(net, x, indices(params, generator), noise, x[:, :0]).float().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.999, 1 - (1 + step) ** -0.75)
        for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)
        history.append(loss.item())
        report.advance(1)
        if step % 500 == 0:
            report.note(f"step {step}, {minutes:.1f} min, loss {sum(history[-500:]) / 500:.4f}")
    report.finish()
    errors = validate(average, watched, mean, std)
    report.note(f"{step} steps, noise error of unseen subjects {errors}")
    tensors = {name: value.half() for name, value in average.state_dict().items()} | {"mean": mean, "std": std}
    words = {
        "model": "hmr pose prior",
        "licence": LICENCE,
        "poses": bank.sha256,
        "without": " ".join((*HELD_OUT, *VALIDATION)),
        "steps": str(step),
        "minutes": f"{(time.monotonic() - begin) / 60:.1f}",
        "validation": str(errors),
        **{name: str(value) for name, value in dataclasses.asdict(params).items()},
    }
    return write_checkpoint(out, tensors, words)


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
    x = (draw(n, bank, generator, Augment(0, 0, 0, 0, 0, 0, 0)) - mean) / std
    noise = torch.randn(x.shape, generator=generator)
    return {
        str(t): round(float(noise_loss(net, x, torch.full((n,), t), noise, x[:, :0]).mean()), 4) for t in (10, 50, 300)
    }
