"""The terms that guide the sampler: keypoints, neighbours in time, other views. They are added.

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
    """Squared difference to the previous row where it is one frame earlier in the same track: consecutive (n,) bool."""

    consecutive: Tensor

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (n - 1,) of each pair of neighbouring rows (0 if not consecutive) and the gradient (n, 144)."""
        step = (x[1:] - x[:-1]) * self.consecutive[1:, None]
        gradient = torch.zeros_like(x)
        gradient[1:] = 2 * step
        gradient[:-1] -= 2 * step
        return step.square().sum(1), gradient


@dataclass
class ViewTerm:
    """Distance of the body pose from its mean over the views of a person.

    group (n,): number of the person · R_camera_to_world (n, 3, 3), if the cameras' orientations are known: then the
    global orientations must agree as well · gain: 300^2 as released.
    """

    group: Tensor
    groups: int
    R_camera_to_world: Tensor | None = None
    gain: float = 300.0**2
    count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ones = torch.ones_like(self.group, dtype=torch.float32)
        self.count = torch.zeros(self.groups, device=self.group.device).index_add_(0, self.group, ones)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (groups,) and the gradient (n, 144)."""
        difference = self._from_mean(x)
        difference[:, :6] = 0
        if self.R_camera_to_world is not None:
            columns = x[:, :6].reshape(-1, 2, 3)
            world = torch.einsum("nab,ncb->nca", self.R_camera_to_world, columns).reshape(-1, 6)
            root_difference = self._from_mean(world).reshape(-1, 2, 3)
            difference[:, :6] = torch.einsum("nab,nca->ncb", self.R_camera_to_world, root_difference).reshape(-1, 6)
        loss = torch.zeros_like(self.count, dtype=x.dtype).index_add_(0, self.group, difference.square().sum(1))
        return self.gain * loss, 2 * self.gain * difference

    def _from_mean(self, x: Tensor) -> Tensor:
        mean = x.new_zeros(self.groups, x.shape[1]).index_add_(0, self.group, x) / self.count[:, None]
        return x - mean[self.group]


@dataclass
class Guidance:
    """The terms of one run and their weights.

    `replace` does what the released program does, for comparison only: with several terms, the view term replaces the
    keypoint term, and the smoothness term, without keypoints, the view term.

    `damped`: steps are divided by 1 + variance * curvature. The released rule, x0' = x0 - variance * gradient with the
    variance (1 - a) / a of x0 given the latent, is the limit for a small weight; the damped step leads to the mean of
    the Gaussian posterior of the same variance and a quadratic loss, so large weights do not overshoot at high noise.
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

    def gradient(self, x: Tensor, betas: Tensor | None, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weighted gradient with respect to x (n, 144) and to betas; rows that are not `active` get no keypoint part.

        The caller decides `active` from `losses["keypoints"]`: call evaluate_keypoints() for this x first.
        """
        total, betas_gradient = torch.zeros_like(x), None
        use_views = self.views is not None and not (self.replace and self.smooth is not None and self.keypoints is None)
        if self.keypoints is not None and not (self.replace and use_views):
            part, betas_gradient = self._keypoint_gradients
            if active is not None:
                part = torch.where(active[:, None], part, torch.zeros_like(part))
                if betas_gradient is not None:
                    betas_gradient = torch.where(active[:, None], betas_gradient, torch.zeros_like(betas_gradient))
            total = part * self.w_keypoints
            betas_gradient = None if betas_gradient is None else betas_gradient * self.w_keypoints
        if use_views and self.views is not None:
            self.losses["views"], part = self.views.evaluate(x)
            total = total + self.w_views * part
        if self.smooth is not None:
            self.losses["smooth"], part = self.smooth.evaluate(x)
            total = total + self.w_smooth * part
        return total, betas_gradient

    def curvature(self, x: Tensor) -> Tensor:
        """Upper bound (n, 144) of the second derivative of the weighted loss at the last x of evaluate_keypoints()."""
        total = torch.zeros_like(x)
        if self.keypoints is not None:
            total = total + self.keypoints.curvature() * self.w_keypoints
        if self.views is not None:
            total = total + 2 * self.views.gain * self.w_views
        if self.smooth is not None:
            total = total + 8 * self.w_smooth
        return total

    def evaluate_keypoints(self, x: Tensor, betas: Tensor | None) -> Tensor | None:
        """Evaluate the keypoint term at x (n, 144); its loss (n,) for all rows."""
        if self.keypoints is None:
            return None
        loss, part, betas_gradient = self.keypoints.evaluate(x, betas)
        self._keypoint_gradients = part, betas_gradient
        self.losses["keypoints"] = loss
        return loss
