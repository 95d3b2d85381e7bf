"""One body for all cameras that show a person: the update of kalman_update.py in the world frame of a calibrated rig.

Every view has its own estimate of the person and its own keypoints, and the rig says where the cameras are. The
unknowns are then one set: orientations of the bones, betas, and the pelvis in the world. Each view's estimate is a
measurement of them, with the measured covariance of the recoverer's error (in which depth is uncertain, in the axes of
a camera that looks at the person); each view's keypoints are rays that the body's points must meet. The maximum of the
Gaussian posterior is found by Gauss-Newton. A keypoint that lies far from where the other views put it loses its weight
(Geman-McClure), so does an estimate that contradicts the others, and a view with noisy keypoints counts less.

Frames: x_camera = R x_world + t, metres. Rows are views of people; `group` (n,) says which rows show one person at one
moment, G groups.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.geometry.cameras import look_at
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.models.scorehmr.groups import group_max, group_mean, group_median, group_sum
from stages.models.scorehmr.kalman_update import KNOWN, MIN_KEYPOINTS, NOT_UPDATED, PIXEL, KalmanUpdate
from stages.models.scorehmr.linearized_body import MIN_DEPTH, POSE_SIZE, LinearizedBody, PosedEstimate, point_jacobian

STATE_SIZE = POSE_SIZE + 3  # rotation vectors of 24 bones, betas, pelvis in the world
FREE = 1e-6  # precision of the pelvis, which the estimates do not hold


@dataclass(frozen=True)
class MultiviewNoise:
    """Noise of several views. px: pixels of a 256 crop of the person.

    noise_range: px, least and most noise of a view's keypoints · initial_noise: px, before the first residuals are
    known · outlier: px at which a keypoint has lost three quarters of its weight, if that is more than outlier_medians
    times the median over the person's views · estimate_outlier: deviations from the others at which an estimate has
    lost half of its weight · initial_outlier_scale: times `outlier` in the first iteration, half as many in each
    further one.
    """

    noise_range: tuple[float, float] = (0.5, 5.0)
    initial_noise: float = 2.5
    outlier: float = 6.0
    outlier_medians: float = 4.0
    estimate_outlier: float = 1.0
    initial_outlier_scale: float = 4.0
    iterations: int = 6


@dataclass
class ViewBatch:
    """n rows: pose (n, 144), betas (n, 10), transl (n, 3) m in each row's camera; keypoints (n, 25, 3) px with
    confidence 0 where not visible; K, R (n, 3, 3), t (n, 3) m world to camera; group (n,): numbers from 0, rows of one
    number show one person at one moment; betas_known (n,) bool: the betas are no estimates."""

    pose: Tensor
    betas: Tensor
    transl: Tensor
    keypoints: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    group: Tensor
    betas_known: Tensor

    def select(self, rows: Tensor) -> ViewBatch:
        """The chosen rows (mask (n,)), groups numbered anew."""
        part = ViewBatch(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))
        return dataclasses.replace(part, group=torch.unique(part.group, return_inverse=True)[1])


@dataclass
class Views:
    """n rows: R (n, 3, 3) and t (n, 3) m world to camera; ray (n, K, 2) tangents of the keypoints; confidence (n, K),
    0 = not visible; half_box (n,) tangent of half the keypoints' box; group (n,)."""

    R: Tensor
    t: Tensor
    ray: Tensor
    confidence: Tensor
    half_box: Tensor
    group: Tensor

    def residuals(self, points: Tensor) -> Tensor:
        """Keypoints less projected points (n, K, 2) in half boxes, of points (n, K, 3) in the world."""
        in_camera = points @ self.R.transpose(1, 2) + self.t[:, None]
        projected = in_camera[..., :2] / in_camera[..., 2:].clamp_min(MIN_DEPTH)
        residual = (self.ray - projected) / self.half_box[:, None, None]
        return torch.where(self.confidence[..., None] > 0, residual, torch.zeros_like(residual))


@dataclass
class WorldBodies:
    """G bodies in the world: rotation (G, 24, 3, 3) of the bones, betas (G, 10), pelvis (G, 3) m; neg_log_posterior
    (G,) up to a constant; information (G, 10, 10) of the keypoints about the betas."""

    rotation: Tensor
    betas: Tensor
    pelvis: Tensor
    neg_log_posterior: Tensor
    information: Tensor


@dataclass
class SharedShape:
    """The betas of one person over many moments. prior (10, 10): precision of an estimate; information (10, 10) of the
    keypoints, weighted_betas (10,) its product with the betas that they give; total (10,) of `count` estimates. Parts
    add."""

    prior: Tensor
    information: Tensor
    weighted_betas: Tensor
    total: Tensor
    count: int

    def __add__(self, other: SharedShape) -> SharedShape:
        return SharedShape(
            self.prior, self.information + other.information, self.weighted_betas + other.weighted_betas,
            self.total + other.total, self.count + other.count,
        )  # fmt: skip

    def betas(self) -> Tensor:
        """The likeliest (10,); the estimates share the recoverer's bias, so together they count as one."""
        precision = self.prior + self.information
        return torch.linalg.solve(precision, self.weighted_betas + self.prior @ (self.total / self.count)).float()


@dataclass
class Measurements:
    """The n estimates as measurements of their group's body: precision (n, 85, 85), mean (n, 85) about the start,
    weight (n,) from 0 to 1; betas_known (G,): 1 where the betas are no estimate."""

    precision: Tensor
    mean: Tensor
    weight: Tensor
    betas_known: Tensor


class MultiviewUpdate:
    """`single` updates a person in one view, and has the covariance of an estimate's error; without it, bodies are only
    moved to one position, not fitted."""

    def __init__(
        self, linearized: LinearizedBody, single: KalmanUpdate | None, noise_model: MultiviewNoise = MultiviewNoise()
    ) -> None:
        self.linearized, self.single, self.noise_model = linearized, single, noise_model

    def __call__(self, rows: ViewBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pose, betas, transl of each group's one body in every row's camera, and its neg_log_posterior (n,). Rows of
        groups with fewer than MIN_KEYPOINTS visible keypoints in all stay."""
        out = (rows.pose.clone(), rows.betas.clone(), rows.transl.clone(), torch.zeros_like(rows.transl[:, 0]))
        alone, known = (torch.bincount(rows.group) == 1)[rows.group], rows.betas_known > 0
        cases = [(~alone, self._update_groups)]
        if self.single is not None:
            cases += [(alone & known, self._update_single), (alone & ~known, self._update_single)]
        for chosen, update in cases:
            if chosen.any():
                for value, new in zip(out, update(rows.select(chosen)), strict=True):
                    value[chosen] = new
        return out

    def shape(self, rows: ViewBatch) -> SharedShape:
        """The betas of one person, from its rows in several moments."""
        assert self.single is not None
        bodies = self.bodies(dataclasses.replace(rows, betas_known=torch.zeros_like(rows.betas_known)))
        information, betas = bodies.information.double(), rows.betas.double()
        weighted_betas = (information @ bodies.betas.double()[..., None]).sum(0)[:, 0]
        prior = torch.linalg.inv((self.single.factor @ self.single.factor.t())[72:, 72:])
        return SharedShape(prior, information.sum(0), weighted_betas, betas.sum(0), len(betas))

    def _update_single(self, rows: ViewBatch) -> tuple[Tensor, ...]:
        """People shown by one camera: the betas of all are known, or of none."""
        assert self.single is not None
        keep = bool(rows.betas_known[0] > 0)
        return self.single(rows.pose, rows.betas, rows.transl, rows.keypoints, rows.K, keep_shape=keep)

    def _update_groups(self, rows: ViewBatch) -> tuple[Tensor, ...]:
        """People shown by several cameras."""
        chain, group, bodies = self.linearized.chain, rows.group, self.bodies(rows)
        rotation = rows.R[:, None] @ bodies.rotation[group]
        local = rotation[:, chain.parent_index].transpose(2, 3) @ rotation
        local[:, 0] = rotation[:, 0]
        shape, pelvis = bodies.betas[group], (rows.R @ bodies.pelvis[group][..., None])[..., 0] + rows.t
        updated = (
            local[..., :2].transpose(-1, -2).flatten(1),
            shape,
            pelvis - chain.rest(shape).joints[0].t(),
            bodies.neg_log_posterior[group][:, None],
        )
        visible = group_sum((rows.keypoints[..., 2] > 0).sum(1), group, len(bodies.betas))
        finite = torch.isfinite(torch.cat(updated, 1)).all(1)
        can_update = (visible >= MIN_KEYPOINTS)[group] & finite & (pelvis[:, 2] > MIN_DEPTH)
        inputs = (rows.pose, rows.betas, rows.transl, torch.full_like(updated[3], NOT_UPDATED))
        out = [torch.where(can_update[:, None], new, old) for new, old in zip(updated, inputs, strict=True)]
        return out[0], out[1], out[2], out[3][:, 0]

    def bodies(self, rows: ViewBatch) -> WorldBodies:
        """The G bodies in the world."""
        chain, keypoints = self.linearized.chain, rows.keypoints
        rotation = chain.forward(rows.pose, chain.rest(rows.betas)).world[:, :, :3].permute(3, 0, 1, 2).double()
        tangent = (keypoints[..., :2] - rows.K[:, None, :2, 2]) / rows.K[:, None, [0, 1], [0, 1]]
        confidence = keypoints[..., 2].clamp_max(1)  # some detectors' scores exceed 1
        R_look, half_box, _ = (v.movedim(-1, 0).double() for v in look_at(tangent.permute(2, 1, 0), confidence.t()))
        tangent = torch.where(confidence[..., None] > 0, tangent, torch.zeros_like(tangent))
        confidence = torch.where((half_box > 1e-4)[:, None], confidence, torch.zeros_like(confidence))
        R, half_box = rows.R.double(), half_box.clamp_min(1e-4)
        views = Views(R, rows.t.double(), tangent.double(), confidence.double(), half_box, rows.group)
        rotation = R.transpose(1, 2)[:, None] @ rotation
        start = self._start(views, rotation, rows.betas.double())
        if self.single is None:
            none = start.betas.new_zeros(len(start.betas))
            bodies = WorldBodies(start.rotation, start.betas, start.pelvis, none, torch.diag_embed(0 * start.betas))
        else:
            measurements = self._measurements(views, R_look, rotation, start.rotation, rows.betas_known)
            bodies = self._solve(views, start, measurements)
        return WorldBodies(*(getattr(bodies, f.name).to(rows.pose.dtype) for f in dataclasses.fields(bodies)))

    # ---- where Gauss-Newton starts

    def _start(self, views: Views, rotation: Tensor, betas: Tensor) -> PosedEstimate:
        """Of the views' own bodies, rotation (n, 24, 3, 3) in the world, and their mean: the one whose points lie
        nearest to all views' keypoints. betas (n, 10)."""
        group, groups = views.group, int(views.group.max()) + 1
        shape, mean = group_mean(betas, group, groups), _nearest_rotation(group_mean(rotation, group, groups))
        order = torch.argsort(group, stable=True)
        count = torch.bincount(group, minlength=groups)
        first = count.cumsum(0) - count
        best = self._at_keypoints(views, mean, shape)
        lowest = self._distance(views, best)
        for k in range(int(count.max())):
            has_kth = (count > k)[:, None, None, None]
            kth = rotation[order[(first + k).clamp_max(len(order) - 1)]]
            bodies = self._at_keypoints(views, torch.where(has_kth, kth, mean), shape)
            distance = self._distance(views, bodies)
            better = distance < lowest
            lowest = torch.where(better, distance, lowest)
            best.rotation = torch.where(better[:, None, None, None], bodies.rotation, best.rotation)
            best.pelvis = torch.where(better[:, None], bodies.pelvis, best.pelvis)
        return best

    def _at_keypoints(self, views: Views, rotation: Tensor, shape: Tensor) -> PosedEstimate:
        """Bodies (G) with the pelvis where the lines of sight to the keypoints put it."""
        bodies = PosedEstimate(rotation, shape, torch.zeros_like(shape[:, :3]), torch.ones_like(shape[:, 0]))
        pelvis = pelvis_from_rays(views, self.linearized.linearize(bodies)[0], len(shape))
        return dataclasses.replace(bodies, pelvis=pelvis)

    def _distance(self, views: Views, bodies: PosedEstimate) -> Tensor:
        """Sum (G,) of the distances of keypoints from the bodies' points, each bounded."""
        points = self.linearized.linearize(bodies)[0] + bodies.pelvis[:, None]
        distance = views.residuals(points[views.group]).norm(dim=-1) / PIXEL
        bounded = distance.clamp_max(5 * self.noise_model.outlier)
        return group_sum((bounded * views.confidence).sum(1), views.group, len(points))

    def _measurements(
        self, views: Views, R_look: Tensor, rotation: Tensor, start: Tensor, betas_known: Tensor
    ) -> Measurements:
        """The views' estimates, rotation (n, 24, 3, 3) in the world, about the start (G, 24, 3, 3). R_look (n, 3, 3):
        camera to the axes of a camera that looks at the person."""
        assert self.single is not None
        group, groups, P = views.group, len(start), self.single.precision
        offset = matrix_to_axis_angle(rotation @ start[group].transpose(-1, -2)).flatten(1)
        M = R_look @ views.R  # world to the axes in which the covariance was measured
        bones = torch.einsum("nab,iajc,ncd->nibjd", M, P[:72, :72].view(24, 3, 24, 3), M)
        cross = torch.einsum("nab,iak->nibk", M, P[:72, 72:].view(24, 3, 10)).reshape(len(M), 72, 10)
        precision = offset.new_zeros(len(M), STATE_SIZE, STATE_SIZE)
        precision[:, :72, :72], precision[:, :72, 72:POSE_SIZE] = bones.reshape(len(M), 72, 72), cross
        precision[:, 72:POSE_SIZE, :72], precision[:, 72:POSE_SIZE, 72:POSE_SIZE] = cross.transpose(1, 2), P[72:, 72:]
        visible = (views.confidence > 0).sum(1).to(offset)
        weight = ((visible + 0.5) / (group_max(visible, group, groups) + 0.5)[group]).square()
        mean = torch.nn.functional.pad(offset, (0, STATE_SIZE - 72))
        return Measurements(precision, mean, weight, group_max(betas_known.to(offset), group, groups))

    def _combined(self, measurements: Measurements, error: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """All measurements of a body as one Gaussian: precision (G, 85, 85) and its product with the mean (G, 85).

        They share the bias of one network, so together they count as one; those far from the present error (G, 85) lose
        weight.
        """
        groups = len(error)
        offset = (measurements.mean - error[group])[:, :72]
        deviation = ((measurements.precision[:, :72, :72] @ offset[..., None])[..., 0] * offset).sum(1) / 72
        weight = measurements.weight / (1 + deviation / self.noise_model.estimate_outlier**2)
        weight = weight / group_sum(weight, group, groups).clamp_min(1e-9)[group]
        precision = group_sum(measurements.precision * weight[:, None, None], group, groups)
        weighted_mean = (measurements.precision @ measurements.mean[..., None])[..., 0] * weight[:, None]
        precision.diagonal(dim1=1, dim2=2)[:, 72:POSE_SIZE] += KNOWN * measurements.betas_known[:, None]
        precision.diagonal(dim1=1, dim2=2)[:, POSE_SIZE:] += FREE
        return precision, group_sum(weighted_mean, group, groups)

    # ---- Gauss-Newton

    def _solve(self, views: Views, start: PosedEstimate, measurements: Measurements) -> WorldBodies:
        group, groups, model = views.group, len(start.rotation), self.noise_model
        error = start.betas.new_zeros(groups, STATE_SIZE)
        noise = torch.full_like(views.half_box, model.initial_noise * PIXEL)
        for step in range(model.iterations):
            bodies = corrected_in_world(start, error)
            points, J = self.linearize(bodies, views)
            residual = views.residuals((points + bodies.pelvis[:, None])[group])
            weight = self._weights(residual, views, max(1.0, model.initial_outlier_scale / 2**step))
            precision, weighted_mean = self._combined(measurements, error, group)
            weighted = J.transpose(1, 2) * (weight / noise[:, None].square()).repeat_interleave(2, 1)[:, None]
            target = residual.flatten(1) + (J @ error[group][..., None])[..., 0]
            A = precision + group_sum(weighted @ J, group, groups)
            b = weighted_mean + group_sum((weighted @ target[..., None])[..., 0], group, groups)
            error = torch.cholesky_solve(b[..., None], torch.linalg.cholesky_ex(A)[0])[..., 0]
            noise = self._keypoint_noise(residual, weight, views)
        bodies = corrected_in_world(start, error)
        left = (residual.square().sum(-1) * weight / noise[:, None].square()).sum(1)
        prior = ((precision @ error[..., None])[..., 0] * error).sum(1) - 2 * (weighted_mean * error).sum(1)
        energy = (group_sum(left, group, groups) + prior) / 2
        information = _marginal(A) - _marginal(precision)
        return WorldBodies(bodies.rotation, bodies.betas, bodies.pelvis, energy, information)

    def _weights(self, residual: Tensor, views: Views, outlier_scale: float) -> Tensor:
        """Weights (n, K) of the keypoints: their confidence, less where they lie far from the body."""
        square = residual.square().sum(-1)
        median = group_median(square, views.confidence > 0, views.group)
        cut = self.noise_model.outlier_medians**2 * median
        cut = cut.clamp_min((self.noise_model.outlier * outlier_scale * PIXEL) ** 2)
        return views.confidence * (1 + square / cut[views.group][:, None]).pow(-2)

    def _keypoint_noise(self, residual: Tensor, weight: Tensor, views: Views) -> Tensor:
        """Noise (n,) of a coordinate of each view's keypoints in half boxes, from the residuals (n, K, 2)."""
        square = (weight * residual.square().sum(-1)).sum(1) / (2 * weight.sum(1)).clamp_min(1e-9)
        low, high = self.noise_model.noise_range
        return square.sqrt().clamp(low * PIXEL, high * PIXEL)

    def linearize(self, bodies: PosedEstimate, views: Views) -> tuple[Tensor, Tensor]:
        """Points (G, K, 3) from the pelvis and the derivative (n, 2 K, 85) of their projections, in half boxes."""
        points, rotation_jacobian, shape_jacobian = self.linearized.linearize(bodies)
        J = point_jacobian(rotation_jacobian, shape_jacobian).unflatten(1, (-1, 3))  # (G, K, 3, 82)
        J = torch.cat([J, torch.eye(3).to(J).expand(*J.shape[:2], 3, 3)], -1)[views.group]
        in_camera = (points + bodies.pelvis[:, None])[views.group] @ views.R.transpose(1, 2) + views.t[:, None]
        depth = in_camera[..., 2].clamp_min(MIN_DEPTH)
        R = views.R[:, None]
        projection = (R[:, :, :2] - (in_camera[..., :2] / depth[..., None])[..., None] * R[:, :, 2:]) / (
            depth * views.half_box[:, None]
        )[..., None, None]
        return points, (projection @ J).flatten(1, 2)


def corrected_in_world(start: PosedEstimate, error: Tensor) -> PosedEstimate:
    """The bodies that differ from `start` by error (G, 85): the pose's 82 numbers, then the pelvis in the world, m."""
    rotation = axis_angle_to_matrix(error[:, :72].unflatten(1, (24, 3))) @ start.rotation
    betas, pelvis = start.betas + error[:, 72:POSE_SIZE], start.pelvis + error[:, POSE_SIZE:]
    return PosedEstimate(rotation, betas, pelvis, start.half_box)


def pelvis_from_rays(views: Views, points: Tensor, groups: int) -> Tensor:
    """The pelvis (G, 3) that brings points (G, K, 3) nearest to all views' lines of sight: least absolute distances, by
    reweighting."""
    group = views.group
    ray = torch.nn.functional.pad(views.ray, (0, 1), value=1.0) @ views.R  # R^T d, in the world
    ray = ray / ray.norm(dim=-1, keepdim=True)
    center = -(views.t[:, None] @ views.R)  # (n, 1, 3)
    across = torch.eye(3).to(ray) - ray[..., :, None] * ray[..., None, :]
    target = center - points[group]
    weight = views.confidence
    for _ in range(8):
        A = group_sum((across * weight[..., None, None]).sum(1), group, groups) + 1e-9 * torch.eye(3).to(ray)
        b = group_sum(((across @ target[..., None])[..., 0] * weight[..., None]).sum(1), group, groups)
        pelvis = torch.linalg.solve_ex(A, b)[0]
        distance = (across @ (pelvis[group][:, None] - target)[..., None])[..., 0].norm(dim=-1)
        weight = views.confidence / distance.clamp_min(0.02)
    return pelvis


def _marginal(precision: Tensor) -> Tensor:
    """The precision (G, 10, 10) of the betas with everything else left free, of precision (G, 85, 85)."""
    rest = [*range(72), *range(POSE_SIZE, STATE_SIZE)]
    cross = precision[:, rest, 72:POSE_SIZE]
    return precision[:, 72:POSE_SIZE, 72:POSE_SIZE] - cross.transpose(1, 2) @ torch.linalg.solve(
        precision[:, rest][:, :, rest], cross
    )


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The nearest rotations (..., 3, 3)."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ v)
    return torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ v
