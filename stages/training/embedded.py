"""Training of the embedded recoverer: motion capture, random shapes and cameras, imperfect keypoints in; weights out.

In: the CMU poses of a motion file (stages/synthetic/mocap.py) and a body. Out: a safetensors file of half-precision
weights. Method: stages/models/embedded/network.py on an endless stream of people, AdamW, the learning rate falling
along a cosine until the time (or the number of samples) is used up, weights averaged over the last steps.

    hmr train embedded --poses mocap_smpl24.npz -o embedded.safetensors --max-minutes 60

The state is saved every minute next to the target; the same command resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.engine.job import SILENT
from stages.errors import UsageError
from stages.files.checkpoints import write_checkpoint
from stages.models.embedded.kinematics import Skeleton
from stages.models.embedded.network import Estimate, Network
from stages.params import TrainEmbeddedParams as Params
from stages.params.rules import check
from stages.params.stored import to_json
from stages.smpl.body import Body, load_body
from stages.synthetic.mocap import HELD_OUT, NOTHING, VALIDATION, PoseBank, load_poses
from stages.training.loop import TimedTrainer, state_file, train
from stages.training.synthetic_keypoints import Camera, KeypointBatch, draw_batch, noise_only

LICENCE = "Apache-2.0; poses from CMU mocap (mocap.cs.cmu.edu, NSF EIA-0196217)"
EVERY = 4  # steps between two updates of the averaged weights
NEAR = 0.1  # metres: a joint within counts as correct


def run(poses: Path, out: Path, params: Params = Params(), device: str = "cpu", report: Any = SILENT) -> Path:
    """Train on the motion file `poses` and write the weights to `out`.

    Raises AssetError (motion file), UsageError (settings), ArtefactError (there is a state of another training).
    """
    params = check(params)
    if not params.samples and not params.max_minutes:
        raise UsageError("nothing to train: --max-minutes is 0 and --samples is not given")
    bank = load_poses(poses, without=(*HELD_OUT, *VALIDATION))
    validation = load_poses(poses, subjects=VALIDATION)
    bank, validation = bank.to(device), validation.to(device)
    trainer = EmbeddedTrainer(load_body("embedded", device=device), bank, params, device, validation)
    train(trainer, state_file(out), report)
    report.note(trainer.status())
    return write_checkpoint(out, trainer.weights(), trainer.card())


class EmbeddedTrainer(TimedTrainer):
    """Network, optimiser, averaged weights and the stream of people.

    validation: poses of subjects that are never trained on, for `validate`; without, nothing is measured.
    """

    def __init__(
        self, body: Body, bank: PoseBank, params: Params, device: str = "cpu", validation: PoseBank | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(params.seed)
        self.validation = validation
        self.params, self.bank, self.body, self.device = params, bank, body, torch.device(device)
        self.skeleton = Skeleton.from_body(body).to(device)
        self.network = Network(self.skeleton, params.width, tuple(params.blocks)).to(device)
        self.mean = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=params.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        self.generator = torch.Generator(self.device).manual_seed(params.seed)

    def progress(self) -> float:
        if self.params.samples:
            return self.steps * self.params.batch / self.params.samples
        return self.seconds / (60 * self.params.max_minutes)

    def learning_rate(self) -> float:
        return super().learning_rate() + 1e-6

    def update(self) -> float:
        """One step on fresh people."""
        with torch.no_grad():
            batch = draw_batch(self.params.batch, self.bank, self.skeleton, self.generator)
        estimates, confidence_logit = self.network(batch.inputs, batch.half, autocast=True)
        total = loss(estimates, confidence_logit, batch)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimiser.step()
        self.steps += 1
        if self.steps % EVERY == 0:
            updates = self.steps / EVERY
            decay = min(0.998, (1 + updates) / (10 + updates))
            current = list(self.network.state_dict().values())
            torch._foreach_lerp_(list(self.mean.values()), current, 1 - decay)
        self.losses.append(total.item())
        return self.losses[-1]

    def status(self) -> str:
        recent = self.losses[-200:]
        measured = f", held-out subjects {self.validate():.1f} mm (3 px noise)" if self.validation else ""
        return (
            f"{self.steps * self.params.batch / 1e6:.2f}M people, {self.seconds / 60:.1f} min, loss "
            f"{sum(recent) / max(1, len(recent)):.3f}{measured}"
        )

    @torch.no_grad()
    def validate(self, n: int = 1024) -> float:
        """MPJPE in mm of the averaged weights on n validation poses, with 3 px noise that the confidence does not show;
        NaN without validation poses."""
        if self.validation is None:
            return math.nan
        network = Network(self.skeleton, self.params.width, tuple(self.params.blocks)).to(self.device)
        network.load_state_dict(self.mean)
        generator = torch.Generator(self.device).manual_seed(1)
        camera = Camera(even=True)
        batch = draw_batch(
            n, self.validation, self.skeleton, generator, augment=NOTHING, camera=camera, corruption=noise_only(3)
        )
        last = network(batch.inputs, batch.half)[0][-1]
        return 1000 * float(
            (from_hips(last.joints, last.joints) - from_hips(batch.joints, batch.joints)).norm(dim=0).mean()
        )

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights in half precision."""
        return {f"embedded.{name}": value.half().cpu() for name, value in self.mean.items()}

    def card(self) -> dict[str, str]:
        """The header of the weights file."""
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
        """Of settings, poses and body, not of the length of the training."""
        params = dataclasses.replace(self.params, max_minutes=0, samples=None)
        arrays = [self.body.v_template, self.body.weights, self.body.shapedirs]
        digest = hashlib.sha256((to_json(params) + self.bank.sha256).encode())
        for array in arrays:
            digest.update(array.cpu().numpy().tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        return super().state() | {"network": self.network.state_dict(), "mean": self.mean}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.network.load_state_dict(state["network"])
        self.mean = {name: value.to(self.device) for name, value in state["mean"].items()}


def from_hips(points: Tensor, joints: Tensor) -> Tensor:
    """points (3, J, n) relative to the middle of the hip joints of joints (3, 24, n)."""
    return points - (joints[:, 1:2] + joints[:, 2:3]) / 2


def loss(estimates: list[Estimate], confidence_logit: Tensor, batch: KeypointBatch) -> Tensor:
    """The loss of all rounds.

    Rotation matrices 0.5, joints and keypoints in 3D 6, keypoints in the image 1 (in half sides of the box), betas
    0.05; rounds before the last count 0.4. The confidence's is a logistic loss on "this joint is within 10 cm".
    """
    joints, points = from_hips(batch.joints, batch.joints), from_hips(batch.points, batch.joints)
    total = torch.zeros((), device=confidence_logit.device)
    for i, e in enumerate(estimates):
        joint_error = _length(from_hips(e.joints, e.joints) - joints)
        error = 0.5 * (joint_error.mean() + _length(from_hips(e.points, e.joints) - points).mean())
        rotation = (e.rotation - batch.rotation).square().sum((0, 1)).mean()
        reprojection = _length(e.image - batch.image).clamp(max=3).mean()
        shape = (e.betas - batch.betas).square().mean()
        share = 1.0 if i == len(estimates) - 1 else 0.4
        total = total + share * (0.5 * rotation + 6 * error + reprojection + 0.05 * shape)
    correct = (joint_error.detach() < NEAR).float().T
    return total + 0.1 * torch.nn.functional.binary_cross_entropy_with_logits(confidence_logit, correct)


def _length(x: Tensor) -> Tensor:
    """Euclidean length over the first axis, differentiable at 0."""
    return x.square().sum(0).add(1e-8).sqrt()
