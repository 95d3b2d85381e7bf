"""The iterated Kalman update of the embedded prior: a pose estimate corrected by its keypoints.

An estimate is a noisy measurement of the true pose, and its noise is far from white: depth is uncertain, and the errors
of neighbouring bones are correlated. The prior holds the covariance of that error, measured on people in motion, and
the update finds the maximum of the Gaussian posterior given the keypoints (Gauss-Newton = iterated Kalman update, Bell
& Cathey 1993). As score guidance it is the pseudo-inverse step (Song et al., "Pseudoinverse-guided diffusion", ICLR
2023) with a measured covariance in place of a white one. Two things keep it from following bad keypoints: the noise of
a person's keypoints is estimated from what the pose cannot explain (residuals over degrees of freedom), and single
outliers lose their weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.geometry.cameras import look_at
from stages.models.scorehmr.linearized_body import (
    MIN_DEPTH,
    POSE_SIZE,
    LinearizedBody,
    PosedEstimate,
    point_jacobian,
    project_with_jacobian,
)

PIXEL = 2 * 1.2 / 256  # a pixel of a 256 crop (box with a margin of 1.2) in half boxes
MIN_KEYPOINTS = 3  # rows with fewer visible keypoints are not updated
KNOWN = 1e12  # precision of a number that is known
NOT_UPDATED = 1e30  # neg_log_posterior of rows that stay as they are: never the likeliest of several


@dataclass(frozen=True)
class NoiseModel:
    """Noise of estimates and keypoints. px: pixels of a 256 crop. Chosen on subjects 08 and 11.

    point_sd: m that the points of an estimate may move for keypoints; holds what is not visible where it is ·
    usual_noise: px; keypoints with less noise than the first may move the points further, with more than the second
    less far · lateral_sd: of the pelvis sideways, in half boxes: free · log_depth_sd: of the logarithm of its depth:
    free · noise_range: px, least and most noise of a person's keypoints · initial_noise: px, before the first residuals
    are known · outlier: px at which a keypoint has lost three quarters of its weight, if that is more than
    outlier_medians times the person's median · usual_error: px; an estimate with a larger median error of its points
    may move further in proportion, up to max_error_scale times.
    """

    point_sd: float = 0.04
    usual_noise: tuple[float, float] = (1.5, 3.0)
    lateral_sd: float = 0.3
    log_depth_sd: float = 0.2
    noise_range: tuple[float, float] = (0.5, 10.0)
    initial_noise: float = 2.5
    outlier: float = 10.0
    outlier_medians: float = 3.0
    usual_error: float = 5.0
    max_error_scale: float = 4.0
    iterations: int = 4


@dataclass
class UpdatedBodies:
    """bodies: the likeliest ones; neg_log_posterior (n,): half the squared error and residuals in units of their
    deviations, the negative logarithm of the posterior up to a constant."""

    bodies: PosedEstimate
    neg_log_posterior: Tensor


class KalmanUpdate:
    """`covariance` (82, 82) of the error of an estimate: 24 rotation vectors (rad, axes of a camera that looks at the
    person), 10 betas."""

    def __init__(self, covariance: Tensor, linearized: LinearizedBody, noise_model: NoiseModel = NoiseModel()) -> None:
        self.linearized, self.noise_model = linearized, noise_model
        self.factor = torch.linalg.cholesky(covariance.double())
        self.precision = torch.cholesky_inverse(self.factor)

    def __call__(
        self,
        pose: Tensor,
        betas: Tensor,
        transl: Tensor,
        keypoints: Tensor,
        K: Tensor,
        *,
        expected: Tensor | None = None,
        keep_shape: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pose (n, 144), betas (n, 10), transl (n, 3) m, keypoints (n, 25, 3) px with confidence 0 where not visible,
        K (n, 3, 3) px.

        -> updated pose, betas and transl, and neg_log_posterior (n,). Rows with fewer than MIN_KEYPOINTS visible
        keypoints stay. expected (n, 82): the error that is expected, by default none (with a sample of the error the
        result is a sample of the posterior). keep_shape: the betas are known.
        """
        chain, confidence = self.linearized.chain, keypoints[..., 2].clamp_max(1)  # some detectors' scores exceed 1
        tangent = (keypoints[..., :2] - K[:, None, :2, 2]) / K[:, None, [0, 1], [0, 1]]
        R, half_box, xy = (v.movedim(-1, 0) for v in look_at(tangent.permute(2, 1, 0), confidence.t()))
        can_update = ((confidence > 0).sum(1) >= MIN_KEYPOINTS) & (half_box > 1e-4)
        world = chain.forward(pose, chain.rest(betas)).world[:, :, :3].permute(3, 0, 1, 2)
        pelvis = chain.rest(betas).joints[0].t() + transl
        estimate = PosedEstimate(
            R[:, None] @ world,
            betas,
            (R @ pelvis[..., None])[..., 0],
            torch.where(can_update, half_box, torch.ones_like(half_box)),
        )
        result = self.update(estimate, xy.transpose(1, 2), confidence, expected=expected, keep_shape=keep_shape)
        rotation = R[:, None].transpose(2, 3) @ result.bodies.rotation
        local = rotation[:, chain.parent_index].transpose(2, 3) @ rotation
        local[:, 0] = rotation[:, 0]
        pelvis = (R.transpose(1, 2) @ result.bodies.pelvis[..., None])[..., 0]
        shape = betas if keep_shape else result.bodies.betas
        updated = (
            local[..., :2].transpose(-1, -2).flatten(1),
            shape,
            pelvis - chain.rest(shape).joints[0].t(),
            result.neg_log_posterior[:, None],
        )
        can_update &= torch.isfinite(torch.cat(updated, 1)).all(1)
        inputs = (pose, betas, transl, torch.full_like(updated[3], NOT_UPDATED))
        out = [torch.where(can_update[:, None], new, old) for new, old in zip(updated, inputs, strict=True)]
        return out[0], out[1], out[2], out[3][:, 0]

    def update(
        self,
        estimate: PosedEstimate,
        xy: Tensor,
        confidence: Tensor,
        *,
        expected: Tensor | None = None,
        keep_shape: bool = False,
    ) -> UpdatedBodies:
        """The likeliest bodies, given an estimate and keypoints xy (n, K, 2) in half boxes with confidence (n, K)."""
        model, visible, dtype = self.noise_model, (confidence > 0)[..., None], xy.dtype
        estimate, xy, confidence = estimate.to(torch.float64), xy.double(), confidence.double()
        points, rotation_jacobian, shape_jacobian = self.linearized.linearize(estimate)
        estimate = self._relocated(estimate, points, rotation_jacobian, shape_jacobian, xy, visible)
        projected, _ = project_with_jacobian(estimate, points, rotation_jacobian, shape_jacobian)
        median = _median_square(xy - projected, visible[..., 0]).sqrt()
        error_scale = (median / (model.usual_error * PIXEL)).clamp(1, model.max_error_scale)
        error_prior, point_prior = self._priors(rotation_jacobian, shape_jacobian, error_scale, keep_shape)
        mean = xy.new_zeros(len(xy), POSE_SIZE + 3)
        held = point_prior
        if expected is not None:  # the points of a sample may go wherever the keypoints pull them
            mean[:, :POSE_SIZE], held = expected, torch.zeros_like(point_prior)
        noise = torch.full_like(mean[:, 0], model.initial_noise * PIXEL)
        error, covariance, prior = mean, None, error_prior
        for _ in range(model.iterations):
            bodies, last_error = estimate.corrected(error), error
            points, rotation_jacobian, shape_jacobian = self.linearized.linearize(bodies)
            projected, J = project_with_jacobian(bodies, points, rotation_jacobian, shape_jacobian)
            residual = torch.where(visible, xy - projected, torch.zeros_like(xy))
            cut = model.outlier_medians**2 * _median_square(residual, visible[..., 0])
            cut = cut.clamp_min((model.outlier * PIXEL) ** 2)
            robust = 1 / (1 + residual.square().sum(-1) / cut[:, None])  # Geman-McClure
            weight = (confidence * robust.square()).repeat_interleave(2, 1)
            residual = residual.flatten(1)
            if covariance is not None:
                noise = self._keypoint_noise(residual, weight, covariance, prior)
            low, high = (noise / (model.usual_noise[k] * PIXEL) for k in (0, 1))
            stiffness = (low.clamp_max(1) * (high / error_scale).clamp_min(1)) ** 4
            prior = error_prior + stiffness[:, None, None] * held
            weighted = J.transpose(1, 2) * (weight / noise[:, None].square())[:, None]
            covariance = torch.cholesky_inverse(torch.linalg.cholesky_ex(prior + weighted @ J)[0])
            target = residual + (J @ (error - mean)[..., None])[..., 0]
            error = mean + (covariance @ (weighted @ target[..., None]))[..., 0]
        left = residual - (J @ (error - last_error)[..., None])[..., 0]
        full_prior = error_prior + stiffness[:, None, None] * point_prior
        energy = ((full_prior @ error[..., None])[..., 0] * error).sum(1)
        energy = (energy + (weight * (left / noise[:, None]).square()).sum(1)) / 2
        return UpdatedBodies(estimate.corrected(error).to(dtype), energy.to(dtype))

    def _relocated(
        self,
        estimate: PosedEstimate,
        points: Tensor,
        rotation_jacobian: Tensor,
        shape_jacobian: Tensor,
        xy: Tensor,
        visible: Tensor,
    ) -> PosedEstimate:
        """The estimate; the pelvis is solved from the keypoints where the estimate is off by more than half a box, or
        not before the camera."""
        projected, _ = project_with_jacobian(estimate, points, rotation_jacobian, shape_jacobian)
        lost = (_median_square(xy - projected, visible[..., 0]) > 1) | (estimate.pelvis[:, 2] < MIN_DEPTH)
        pelvis = _solve_pelvis(points, xy * estimate.half_box[:, None, None], visible, estimate.pelvis)
        return dataclasses.replace(estimate, pelvis=torch.where(lost[:, None], pelvis, estimate.pelvis))

    def _keypoint_noise(self, residual: Tensor, weight: Tensor, covariance: Tensor, prior: Tensor) -> Tensor:
        """Noise (n,) of the keypoints in half boxes, from the residuals (n, 2 K) over the degrees of freedom: numbers
        measured less numbers fitted."""
        fitted = POSE_SIZE + 3 - (covariance * prior).sum((1, 2))
        freedom = torch.maximum(weight.sum(1) - fitted, 0.25 * weight.sum(1)).clamp_min(1e-9)
        noise = ((weight * residual.square()).sum(1) / freedom).sqrt()
        low, high = self.noise_model.noise_range
        return noise.clamp(low * PIXEL, high * PIXEL)

    def _priors(
        self, rotation_jacobian: Tensor, shape_jacobian: Tensor, error_scale: Tensor, keep_shape: bool
    ) -> tuple[Tensor, Tensor]:
        """Precisions (n, 85, 85) of the error: as measured, and of the points about their mean; for an estimate whose
        error is `error_scale` (n,) times the usual one."""
        model, n, K = self.noise_model, len(rotation_jacobian), rotation_jacobian.shape[1]
        G = point_jacobian(rotation_jacobian, shape_jacobian)
        G = torch.nn.functional.pad(G - G.unflatten(1, (K, 3)).mean(1).repeat(1, K, 1), (0, 3))
        G = G / (model.point_sd * error_scale)[:, None, None]
        precision = G.new_zeros(n, POSE_SIZE + 3, POSE_SIZE + 3)
        precision[:, :POSE_SIZE, :POSE_SIZE] = self.precision / error_scale.square()[:, None, None]
        if keep_shape:
            precision.diagonal(dim1=1, dim2=2)[:, 72:POSE_SIZE] = KNOWN
        for k, sd in enumerate((model.lateral_sd, model.lateral_sd, model.log_depth_sd), POSE_SIZE):
            precision[:, k, k] = 1 / sd**2
        return precision, G.transpose(1, 2) @ G


def _median_square(residual: Tensor, visible: Tensor) -> Tensor:
    """Median (n,) of the squared lengths of residual (n, K, 2) over the visible (n, K) points; 0 without any."""
    square = torch.where(visible, residual.square().sum(-1), torch.nan)
    return square.nanmedian(1).values.nan_to_num()


def _solve_pelvis(points: Tensor, ray: Tensor, visible: Tensor, pelvis: Tensor) -> Tensor:
    """The pelvis (n, 3) that brings points (n, K, 3) closest to their lines of sight, tangents ray (n, K, 2), where
    they are visible (n, K, 1): linear least squares. Rows whose solution is not before the camera keep `pelvis`."""
    weight = visible.to(points)
    offset = (ray * points[..., 2:] - points[..., :2]) * weight  # x + X = u (z + Z)
    A = points.new_zeros(len(points), 3, 3)
    A[:, 0, 0] = A[:, 1, 1] = weight.sum((1, 2))
    A[:, 2, :2] = A[:, :2, 2] = -(ray * weight).sum(1)
    A[:, 2, 2] = (ray.square() * weight).sum((1, 2))
    b = torch.cat([offset.sum(1), -(ray * offset).sum((1, 2))[:, None]], 1)
    solution = torch.linalg.solve_ex(A, b)[0]
    good = (solution[:, 2:] > MIN_DEPTH) & torch.isfinite(solution).all(1, keepdim=True)
    return torch.where(good, solution, pelvis)
