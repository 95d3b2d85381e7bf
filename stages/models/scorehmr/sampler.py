"""The refinement loop: DDIM inversion of an estimate, then sampling guided by evidence, several times over.

Source: ScoreHMR, algorithm 1 and eq. 8, as the released code runs it: the noise estimate is held constant when the
guidance is differentiated, loops restart from the latent (not from the clean estimate), the result is the last clean
estimate. Nothing is random, and rows influence each other through the smoothness and view terms alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stages.models.scorehmr.denoiser import Call
from stages.models.scorehmr.guidance import Guidance
from stages.models.scorehmr.schedule import Schedule, down

Recorder = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class SamplingPlan:
    """The loop: `loops` times up to noise index `start` in steps of `step`, and back under guidance."""

    loops: int = 10
    start: int = 50
    step: int = 2
    early_stopping: bool = False
    early_tolerance: float = 1e-5

    @property
    def times(self) -> list[int]:
        return [0, *reversed(down(self.start, self.step))]


@dataclass(frozen=True)
class Codec:
    """The denoiser's numbers: pose = x * std + mean (144); betas = (x + 1) / 2 * (high - low) + low."""

    mean: Tensor | None = None
    std: Tensor | None = None
    betas_low: Tensor | None = None
    betas_high: Tensor | None = None

    def encode(self, pose: Tensor, betas: Tensor | None = None) -> Tensor:
        """pose (n, 144) [and betas (n, 10), if the denoiser has them] -> x (n, D)."""
        x = pose if self.std is None or self.mean is None else (pose - self.mean) / self.std
        if self.betas_low is None or self.betas_high is None or betas is None:
            return x
        return torch.cat([x, 2 * (betas - self.betas_low) / (self.betas_high - self.betas_low) - 1], -1)

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        pose = x[:, :144]
        if self.std is not None and self.mean is not None:
            pose = torch.addcmul(self.mean, pose, self.std)
        if self.betas_low is None or self.betas_high is None:
            return pose.contiguous(), None
        return pose.contiguous(), (x[:, 144:] + 1) / 2 * (self.betas_high - self.betas_low) + self.betas_low

    def gradient_to_x(self, pose: Tensor, betas: Tensor | None) -> Tensor:
        """Gradients with respect to pose and betas -> with respect to x."""
        x = pose if self.std is None else pose * self.std
        if betas is None or self.betas_low is None or self.betas_high is None:
            return x
        return torch.cat([x, betas * (self.betas_high - self.betas_low) / 2], -1)


@dataclass
class SampledPoses:
    """x0 (n, D) and transl (n, 3) or None; stop_step (n,) guided step at which a row met the stopping rule, else -1."""

    x0: Tensor
    transl: Tensor | None
    stop_step: Tensor


class _Stopping:
    """Keeps, for each row, the first iterate whose loss changed by less than the tolerance since the step before."""

    def __init__(self, plan: SamplingPlan, n: int, device: torch.device) -> None:
        self.on, self.tolerance, self.step = plan.early_stopping, plan.early_tolerance, 0
        self.last: Tensor | None = None
        self.stop_step = torch.full((n,), -1, dtype=torch.long, device=device)
        self.kept: tuple[Tensor, Tensor] | None = None

    def active(self, loss: Tensor | None) -> Tensor | None:
        if not self.on or loss is None:
            return None
        last, self.last = self.last, loss
        if last is None:
            return None
        change = (last - loss).abs() / torch.maximum(last, loss).clamp_min(1)
        return change >= self.tolerance

    def keep(self, active: Tensor | None, x0: Tensor, transl: Tensor | None) -> None:
        if active is not None and transl is not None:
            new = ~active & (self.stop_step < 0)
            if self.kept is None:
                self.kept = x0.clone(), transl.clone()
            self.kept[0][new], self.kept[1][new] = x0[new], transl[new]
            self.stop_step[new] = self.step
        self.step += 1

    def result(self, x0: Tensor, transl: Tensor | None) -> SampledPoses:
        if self.kept is not None and transl is not None:
            stopped = (self.stop_step >= 0)[:, None]
            x0, transl = torch.where(stopped, self.kept[0], x0), torch.where(stopped, self.kept[1], transl)
        return SampledPoses(x0, transl, self.stop_step)


@torch.no_grad()
def guided_sampling(
    eps: Call,
    schedule: Schedule,
    x: Tensor,
    guidance: Guidance,
    plan: SamplingPlan,
    codec: Codec,
    record: Recorder | None = None,
) -> SampledPoses:
    """Refine x (n, D), the encoded estimate, with the conditioned denoiser `eps`. `record` gets every value."""
    times = plan.times
    note: Recorder = record or (lambda name, value: None)
    stopping = _Stopping(plan, len(x), x.device)
    term = guidance.keypoints
    x0 = x
    note("x_start", x)
    for _ in range(plan.loops):
        for t, up in pairwise(times):
            noise = eps(x, t)
            x = schedule.move(schedule.x0(x, noise, t), noise, up)
        note("latent_after_inversion", x)
        for t, below in pairwise(reversed(times)):
            noise = eps(x, t)
            estimate = schedule.x0(x, noise, t)
            pose, betas = codec.decode(estimate)
            active = stopping.active(guidance.evaluate_keypoints(pose, betas))
            x_gradient = codec.gradient_to_x(*guidance.gradient(pose, betas, active)) * schedule.recip[t]
            if guidance.damped:
                curvature = guidance.curvature(pose)
                curvature = curvature if codec.std is None else curvature * codec.std**2
                x_gradient = x_gradient / (1 + schedule.recipm1[t] ** 2 * curvature)
            if term is not None:
                term.move_camera(active)
            noise = torch.add(noise, x_gradient, alpha=schedule.sigma[t])
            x0 = schedule.x0(x, noise, t)
            x = schedule.move(x0, noise, below)
            stopping.keep(active, x0, None if term is None else term.transl.t())
            if record is not None:
                note("timesteps", torch.tensor(t))
                note("grad_norm", x_gradient.norm(dim=-1))
                note("x0", x0)
                for name, loss in guidance.losses.items():
                    note(f"loss_{name}", loss)
                if term is not None:
                    note("cam_steps", term.transl.t())
        note("latent_after_sampling", x)
        note("x0_end_of_loop", x0)
    return stopping.result(x0, None if term is None else term.transl.t().contiguous())


@torch.no_grad()
def sample(
    eps: Call, schedule: Schedule, noise: Tensor, start: int = 950, step: int = 50, record: Recorder | None = None
) -> Tensor:
    """Unguided samples x0 (n, D) from `noise` (n, D), clipped to [-1, 1] at every step (monitoring of training)."""
    x, x0 = noise, noise
    for t in down(start, step):
        predicted = eps(x, t)
        if record is not None:
            record("latents", x)
        x0 = schedule.x0(x, predicted, t).clamp(-1, 1)
        if record is not None:
            record("x0", x0)
        x = schedule.move(x0, predicted, t - step)
    return x0
