"""What can guide the sampler: keypoints, neighbours in time, other views. Terms add.

Every term gives the gradient of its own loss with respect to x0 (n, 144); weights are the step sizes of the released
code. Source: ScoreHMR, eqs. 9 (keypoints), 10 (views), 11 (time).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.models.scorehmr.keypoint_term import KeypointTerm


@dataclass
class SmoothTerm:
    """Squared difference to the previous row where `linked` (n,) says that it is the same track one frame earlier."""

    linked: Tensor

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (n - 1,) of each pair of neighbouring rows (0 if not linked) and the gradient (n, 144)."""
        step = (x[1:] - x[:-1]) * self.linked[1:, None]
        gradient = torch.zeros_like(x)
        gradient[1:] = 2 * step
        gradient[:-1] -= 2 * step
        return step.square().sum(1), gradient


@dataclass
class ViewTerm:
    """Distance of the body pose from its mean over the views of a person.

    `group` (n,) numbers the persons; `turn` (n, 3, 3), if the cameras' orientations are known, takes camera to world
    directions: then the global orientations must agree as well. Gain 300^2 as released.
    """

    group: Tensor
    groups: int
    turn: Tensor | None = None
    gain: float = 300.0**2
    count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        one = torch.ones_like(self.group, dtype=torch.float32)
        self.count = torch.zeros(self.groups, device=self.group.device).index_add_(0, self.group, one)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (groups,) and the gradient (n, 144)."""
        away = self._from_mean(x)
        away[:, :6] = 0
        if self.turn is not None:
            columns = x[:, :6].reshape(-1, 2, 3)
            world = torch.einsum("nab,ncb->nca", self.turn, columns).reshape(-1, 6)
            off = self._from_mean(world).reshape(-1, 2, 3)
            away[:, :6] = torch.einsum("nab,nca->ncb", self.turn, off).reshape(-1, 6)
        loss = torch.zeros_like(self.count, dtype=x.dtype).index_add_(0, self.group, away.square().sum(1))
        return self.gain * loss, 2 * self.gain * away

    def _from_mean(self, x: Tensor) -> Tensor:
        mean = x.new_zeros(self.groups, x.shape[1]).index_add_(0, self.group, x) / self.count[:, None]
        return x - mean[self.group]


@dataclass
class Guidance:
    """The terms of one run and their weights.

    `replace` is the released program's habit, kept for comparison only: with several terms the view term takes the
    place of the keypoint term, and the smoothness term, without keypoints, that of the view term.

    `damped`: steps are divided by 1 + variance * curvature. The released rule, x0' = x0 - variance * gradient with the
    variance (1 - a) / a of x0 given the latent, is the limit of a weak pull; this is the mean of the Gaussian posterior
    that the same variance and a quadratic loss give, so strong weights do not overshoot at high noise.
    """

    keypoints: KeypointTerm | None = None
    views: ViewTerm | None = None
    smooth: SmoothTerm | None = None
    w_keypoints: float | Tensor = 0.003
    w_views: float = 0.005
    w_smooth: float = 30.0
    replace: bool = False
    damped: bool = False
    losses: dict[str, Tensor] = field(default_factory=dict)

    def gradient(self, x: Tensor, betas: Tensor | None, going: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weighted gradient with respect to x (n, 144) and to betas; the keypoint part of rows not `going` is dropped.

        `going` is decided by the caller from `losses["keypoints"]`, so evaluate() must have been called for this x.
        """
        total, on_betas = torch.zeros_like(x), None
        use_views = self.views is not None and not (self.replace and self.smooth is not None and self.keypoints is None)
        if self.keypoints is not None and not (self.replace and use_views):
            part, on_betas = self._part
            if going is not None:
                part = torch.where(going[:, None], part, torch.zeros_like(part))
                on_betas = (
                    None if on_betas is None else torch.where(going[:, None], on_betas, torch.zeros_like(on_betas))
                )
            total = part * self.w_keypoints
            on_betas = None if on_betas is None else on_betas * self.w_keypoints
        if use_views and self.views is not None:
            self.losses["views"], part = self.views.evaluate(x)
            total = total + self.w_views * part
        if self.smooth is not None:
            self.losses["smooth"], part = self.smooth.evaluate(x)
            total = total + self.w_smooth * part
        return total, on_betas

    def curvature(self, x: Tensor) -> Tensor:
        """Second derivative of the weighted loss, bounded from above, at the x (n, 144) of the last look()."""
        total = torch.zeros_like(x)
        if self.keypoints is not None:
            total = total + self.keypoints.curvature() * self.w_keypoints
        if self.views is not None:
            total = total + 2 * self.views.gain * self.w_views
        if self.smooth is not None:
            total = total + 8 * self.w_smooth
        return total

    def look(self, x: Tensor, betas: Tensor | None) -> Tensor | None:
        """Evaluate the keypoint term at x (n, 144); its loss (n,), before anything is dropped."""
        if self.keypoints is None:
            return None
        loss, part, on_betas = self.keypoints.evaluate(x, betas)
        self._part = part, on_betas
        self.losses["keypoints"] = loss
        return loss
