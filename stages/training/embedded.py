"""The embedded recoverer, trained: motion capture, random shapes and cameras, imperfect keypoints in; weights out.

In: the CMU poses of a motion file (stages/synthetic/mocap.py) and a body. Out: a safetensors file of half-precision
weights. Method: stages/models/embedded/network.py on people drawn without end, AdamW, the learning rate falling along a
cosine until the time (or the number of samples) is used up, weights averaged over the last steps.

    hmr train embedded --poses mocap_smpl24.npz -o embedded.safetensors --max-minutes 60

The state is saved every minute next to the target; the same command resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.engine.job import SILENT
from stages.engine.stored_params import to_json
from stages.errors import UsageError
from stages.files.checkpoints import write_checkpoint
from stages.models.embedded.kinematics import Skeleton
from stages.models.embedded.network import Estimate, Network
from stages.params import TrainEmbeddedParams as Params
from stages.params import check
from stages.smpl.body import Body, load_body
from stages.synthetic.mocap import HELD_OUT, NOTHING, VALIDATION, PoseBank, load_poses
from stages.training.loop import ByProgress, train
from stages.training.synthetic_keypoints import Camera, Corruption, KeypointBatch, draw_batch

LICENCE = "Apache-2.0; poses from CMU mocap (mocap.cs.cmu.edu, NSF EIA-0196217)"
EVERY = 4  # steps between two updates of the averaged weights
NEAR = 0.1  # metres within which a joint counts as found


def run(poses: Path, out: Path, params: Params = Params(), device: str = "cpu", report: Any = SILENT) -> Path:
    """Train on the motion file `poses` and write the weights to `out`.

    Raises AssetError (motion file), UsageError (impossible settings), ArtefactError (a state made otherwise is there).
    """
    params = check(params)
    if not params.samples and not params.max_minutes:
        raise UsageError("nothing to train: --max-minutes is 0 and --samples is not given")
    bank = load_poses(poses, without=(*HELD_OUT, *VALIDATION))
    watched = load_poses(poses, subjects=VALIDATION)
    bank, watched = bank.to(device), watched.to(device)
    trainer = EmbeddedTrainer(load_body("embedded", device=device), bank, params, device, watched)
    train(trainer, out.with_name(out.name + ".state"), report)
    report.note(trainer.status())
    return write_checkpoint(out, trainer.weights(), trainer.card())


class EmbeddedTrainer(ByProgress):
    """Network, optimiser, averaged weights and the stream of people; all of it can be saved and continued.

    `watched`: poses of subjects that are never trained on, else none are measured.
    """

    def __init__(
        self, body: Body, bank: PoseBank, params: Params, device: str = "cpu", watched: PoseBank | None = None
    ) -> None:
        torch.manual_seed(params.seed)
        self.watched = watched
        self.params, self.bank, self.body, self.device = params, bank, body, torch.device(device)
        self.skeleton = Skeleton.from_body(body).to(device)
        self.network = Network(self.skeleton, params.width, tuple(params.blocks)).to(device)
        self.mean = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=params.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        self.generator = torch.Generator(self.device).manual_seed(params.seed)
        self.steps, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def progress(self) -> float:
        """0 at the start, 1 when done."""
        if self.params.samples:
            return self.steps * self.params.batch / self.params.samples
        return self.seconds / (60 * self.params.max_minutes)

    def step(self) -> None:
        """One step on fresh people."""
        begun = time.monotonic()
        warm = min(1.0, (self.steps + 1) / 200)
        rate = self.params.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress()))) + 1e-6
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            batch = draw_batch(self.params.batch, self.bank, self.skeleton, self.generator)
        estimates, sure = self.network(batch.inputs, batch.half, autocast=True)
        total = loss(estimates, sure, batch)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimiser.step()
        self.steps += 1
        if self.steps % EVERY == 0:
            age = self.steps / EVERY
            keep = min(0.998, (1 + age) / (10 + age))
            current = list(self.network.state_dict().values())
            torch._foreach_lerp_(list(self.mean.values()), current, 1 - keep)
        self.losses.append(total.item())
        self.seconds += time.monotonic() - begun

    def status(self) -> str:
        """One line on how the training stands."""
        recent = self.losses[-200:]
        unseen = f", held-out subjects {self.validate():.1f} mm (3 px noise)" if self.watched else ""
        return (
            f"{self.steps * self.params.batch / 1e6:.2f}M people, {self.seconds / 60:.1f} min, loss "
            f"{sum(recent) / max(1, len(recent)):.3f}{unseen}"
        )

    @torch.no_grad()
    def validate(self, n: int = 1024) -> float:
        """MPJPE in mm of the averaged weights on n of the watched poses, 3 px noise untold; NaN without any."""
        if self.watched is None:
            return math.nan
        network = Network(self.skeleton, self.params.width, tuple(self.params.blocks)).to(self.device)
        network.load_state_dict(self.mean)
        generator = torch.Generator(self.device).manual_seed(1)
        noisy = Corruption(clean=0, gauss=1, pixels=3, told=0, scattered=0, grouped=0, focal=0)
        batch = draw_batch(
            n, self.watched, self.skeleton, generator, augment=NOTHING, camera=Camera(even=True), defects=noisy
        )
        last = network(batch.inputs, batch.half)[0][-1]
        return 1000 * float(
            (from_hips(last.joints, last.joints) - from_hips(batch.joints, batch.joints)).norm(dim=0).mean()
        )

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights in half precision."""
        return {f"embedded.{name}": value.half().cpu() for name, value in self.mean.items()}

    def card(self) -> dict[str, str]:
        """What the weights file says of itself."""
        return {
            "model": "embedded",
            "licence": LICENCE,
            "shape": json.dumps(self.network.shape),
            "topology": self.body.topology,
            "params": to_json(self.params),
            "poses_sha256": self.bank.sha256,
            "people": str(self.steps * self.params.batch),
            "seconds": f"{self.seconds:.0f}",
            "first_loss": f"{sum(self.losses[:20]) / max(1, len(self.losses[:20])):.4f}",
            "last_loss": f"{sum(self.losses[-20:]) / max(1, len(self.losses[-20:])):.4f}",
            "validation_mm": f"{self.validate():.1f}",
        }

    def fingerprint(self) -> str:
        """Of everything that a state must agree on to be continued (not of the length of the training)."""
        kept = dataclasses.replace(self.params, max_minutes=0, samples=0)
        rest = [self.body.v_template, self.body.weights, self.body.shapedirs]
        digest = hashlib.sha256((to_json(kept) + self.bank.sha256).encode())
        for array in rest:
            digest.update(array.cpu().numpy().tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """All that changes."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.mean = {name: value.to(self.device) for name, value in state["mean"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.steps, self.seconds, self.losses = state["steps"], state["seconds"], state["losses"]


def from_hips(points: Tensor, joints: Tensor) -> Tensor:
    """points (3, J, n) from the middle of the hip joints of joints (3, 24, n)."""
    return points - (joints[:, 1:2] + joints[:, 2:3]) / 2


def loss(estimates: list[Estimate], sure: Tensor, batch: KeypointBatch) -> Tensor:
    """The loss of all rounds.

    Rotation matrices 0.5, joints and keypoints in 3D 6, keypoints in the picture 1 (in half sides of the box), betas
    0.05; rounds before the last count 0.4. The surety is a logistic loss on "this joint is within 10 cm".
    """
    joints, points = from_hips(batch.joints, batch.joints), from_hips(batch.points, batch.joints)
    total = torch.zeros((), device=sure.device)
    for i, e in enumerate(estimates):
        off_joints = _length(from_hips(e.joints, e.joints) - joints)
        error = 0.5 * (off_joints.mean() + _length(from_hips(e.points, e.joints) - points).mean())
        turned = (e.rotation - batch.rotation).square().sum((0, 1)).mean()
        drawn = _length(e.image - batch.image).clamp(max=3).mean()
        shape = (e.betas - batch.betas).square().mean()
        share = 1.0 if i == len(estimates) - 1 else 0.4
        total = total + share * (0.5 * turned + 6 * error + drawn + 0.05 * shape)
    found = (off_joints.detach() < NEAR).float().T
    total = total + 0.1 * torch.nn.functional.binary_cross_entropy_with_logits(sure, found)
    return total


def _length(x: Tensor) -> Tensor:
    return x.square().sum(0).add(1e-8).sqrt()
