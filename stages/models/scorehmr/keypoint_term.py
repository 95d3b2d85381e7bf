"""The keypoint term: robust reprojection error of the body's points, its gradient, and the translation that it moves.

Source: ScoreHMR, eq. 9 (reprojection), with what the released code does beyond it: confidences and the resolution
weight enter squared, the Geman-McClure function acts on pixels of the whole image, and the translation is optimised by
one Adam step per guided step. `camera="solve"` replaces Adam by the closed-form translation (weighted least squares on
the lines of sight, with the robust weights of the current residuals).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.scorehmr.kinematic_chain import KinematicChain, PosedChain


@dataclass
class Observed:
    """The evidence of n people: xy (n, K, 2) px, confidence (n, K), focal (n, 2), center (n, 2) px, and per person the
    robust scale sigma (n,) px and the weight (n,) 1/px of a residual."""

    xy: Tensor
    confidence: Tensor
    focal: Tensor
    center: Tensor
    sigma: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class KeypointTerm:
    """State of one refinement of n people: `transl` (n, 3) moves with every step; `betas` (n, B) stay as they are."""

    def __init__(
        self,
        chain: KinematicChain,
        observed: Observed,
        betas: Tensor,
        transl: Tensor,
        *,
        camera: str = "adam",
        adam: Adam | None = None,
    ) -> None:
        self.chain, self.camera, self.adam = chain, camera, adam or Adam()
        self.rest = chain.rest(betas)
        self.transl = transl.t().contiguous()  # (3, n)
        self.xy = observed.xy.permute(1, 2, 0).contiguous()  # (K, 2, n)
        self.focal, self.center = observed.focal.t().contiguous(), observed.center.t().contiguous()
        self.sigma2 = observed.sigma.square()
        self.weight2 = (observed.weight[:, None] * observed.confidence).square().t()[:, None].contiguous()  # (K, 1, n)
        self.xy = torch.where(self.weight2 > 0, self.xy, torch.zeros_like(self.xy))  # may be NaN
        self.scale = observed.weight
        self.m, self.v, self.count = torch.zeros_like(self.transl), torch.zeros_like(self.transl), 0
        self.grad_transl = torch.zeros_like(self.transl)

    def evaluate(self, x: Tensor, betas: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (n,), its gradient with respect to x (n, 144) and, where betas (n, B) are given, to them."""
        rest = self.rest if betas is None else self.chain.rest(betas)
        posed = self.chain.forward(x, rest)
        if self.camera == "solve":
            self._solve(posed.points)
        loss, force = self.residual(posed)
        gradient, betas_gradient = self.chain.backward(posed, force, betas is not None)
        return loss, gradient, betas_gradient

    def residual(self, posed: PosedChain) -> tuple[Tensor, Tensor]:
        """Loss (n,) and forces on the points (K, 3, n); keeps the gradient of the translation."""
        points = posed.points + self.transl
        depth = points[:, 2:].clamp_min(0.05)  # points behind the camera have no image; never divide by zero
        tangent = points[:, :2] / depth
        error = tangent * self.focal + (self.center - self.xy)
        square = error.square()
        robust = self.sigma2 / (self.sigma2 + square)  # gmof(r) = r^2 * robust, its derivative 2 r robust^2
        loss = (square * robust * self.weight2).sum((0, 1))
        pull = error * robust.square_() * self.weight2 * (2 * self.focal)
        pull /= depth
        force = torch.cat([pull, -(pull * tangent).sum(1, keepdim=True)], 1)
        self.grad_transl = force.sum(0)
        self._last = posed, depth
        return loss, force

    def curvature(self) -> Tensor:
        """An upper bound (n, 144) of the loss's second derivative at the last evaluation, for step sizes.

        A point at distance L_j from joint j moves by L_j per radian; several joints share each correction, so the row
        sums of the Gauss-Newton matrix are taken in place of its diagonal, which keeps simultaneous steps stable.
        """
        posed, depth = self._last
        distance = (posed.points[:, None] - posed.world[None, :, :, 3]).norm(dim=2) * self.chain.carried[..., None]
        pull = (self.weight2[:, 0] * (self.focal.amax(0) / depth[:, 0]).square()) * distance.sum(1)  # (K, n)
        joint = 2 * (pull[:, None] * distance).sum(0)  # (24, n)
        return joint.t().repeat_interleave(6, 1)

    def move_camera(self, active: Tensor | None = None) -> None:
        """One Adam step on the translation with the last gradient; rows that are not `active` (n,) move by momentum."""
        if self.camera != "adam":
            return
        a, gradient = self.adam, self.grad_transl
        if active is not None:
            gradient = torch.where(active, gradient, torch.zeros_like(gradient))
        self.count += 1
        self.m.mul_(a.beta1).add_(gradient, alpha=1 - a.beta1)
        self.v.mul_(a.beta2).addcmul_(gradient, gradient, value=1 - a.beta2)
        size = self.v.sqrt() / (1 - a.beta2**self.count) ** 0.5 + a.eps
        self.transl = self.transl - a.lr / (1 - a.beta1**self.count) * self.m / size

    def solve_camera(self, x: Tensor, betas: Tensor | None = None, rounds: int = 1) -> None:
        """Move the translation to where the weighted lines of sight meet; rows with fewer than two points stay."""
        rest = self.rest if betas is None else self.chain.rest(betas)
        points = self.chain.forward(x, rest).points
        for _ in range(rounds):
            self._solve(points)

    def _solve(self, points: Tensor) -> None:
        A, b = self._normal_equations(points)
        # A small weight of the present translation holds badly conditioned depth (two points on a line of sight).
        damping = 1e-6 * A.diagonal(dim1=1, dim2=2).amax(1, keepdim=True).clamp_min(1e-12)
        transl = self.transl.t().double()
        solution = torch.linalg.solve_ex(A + torch.diag_embed(damping.expand(-1, 3)), b + damping * transl)[0]
        good = ((self.weight2[:, 0] > 0).sum(0) >= 2) & torch.isfinite(solution).all(1) & (solution[:, 2] > 0.2)
        self.transl = torch.where(good[:, None], solution, transl).t().to(self.transl.dtype).contiguous()

    def information(self, x: Tensor) -> Tensor:
        """The normal matrix (n, 3, 3) of the translation at the present one: how well the keypoints determine it."""
        return self._normal_equations(self.chain.forward(x, self.rest).points)[0]

    def _normal_equations(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """focal (X + tx) = (u - c) (Z + tz) for both axes is linear in the translation: A (n, 3, 3), b (n, 3)."""
        # Depth is the difference of large numbers, so this small system is built and solved in double precision.
        points, transl, f = points.double(), self.transl.double(), self.focal.double()
        in_camera = points + transl
        depth = in_camera[:, 2:].clamp_min(0.05)
        ray = self.xy.double() - self.center
        error = in_camera[:, :2] / depth * f - ray
        robust = self.sigma2 / (self.sigma2 + error.square())
        w = self.weight2 * robust.square() / depth.square()  # (K, 2, n): residuals in pixels, not in metres
        right = ray * points[:, 2:] - f * points[:, :2]
        A = in_camera.new_zeros(in_camera.shape[-1], 3, 3)
        wx, wy = w[:, 0], w[:, 1]
        A[:, 0, 0], A[:, 1, 1] = (wx.sum(0) * f[0] ** 2), (wy.sum(0) * f[1] ** 2)
        A[:, 0, 2] = A[:, 2, 0] = -(wx * ray[:, 0]).sum(0) * f[0]
        A[:, 1, 2] = A[:, 2, 1] = -(wy * ray[:, 1]).sum(0) * f[1]
        A[:, 2, 2] = (w * ray.square()).sum((0, 1))
        b = torch.stack(
            [f[0] * (wx * right[:, 0]).sum(0), f[1] * (wy * right[:, 1]).sum(0), -(w * ray * right).sum((0, 1))], -1
        )
        return A, b
