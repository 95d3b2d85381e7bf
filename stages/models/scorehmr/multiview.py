"""One body for all cameras that see a person: the update of kalman_update.py in the world frame of a calibrated rig.

Every view has its own estimate of the person and its own keypoints, and the rig says where the cameras stand. Then
there is only one unknown: orientations of the bones, betas and pelvis in the world. Each view's estimate is a reading
of it, with the measured covariance of the recoverer's error (which knows that depth is guessed, in the axes of a camera
that looks at the person); each view's keypoints are rays that the body's points must meet. The maximum of the Gaussian
posterior is found by Gauss-Newton. A keypoint that lies far from where the others put it loses its weight
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
from stages.models.scorehmr.kalman_update import MIN_KEYPOINTS, NOT_UPDATED, PIXEL, KalmanUpdate
from stages.models.scorehmr.linearized_body import POSE, LinearizedBody, PosedEstimate, in_space

STATE = POSE + 3  # rotation vectors of 24 bones, betas, pelvis in the world
NEAREST = 0.1  # m before a camera
SURE, FREE = 1e12, 1e-6  # precisions of what is known and of what is not held


@dataclass(frozen=True)
class MultiviewNoise:
    """What is believed of several views. px: pixels of a 256 crop of the person."""

    noise: tuple[float, float] = (0.5, 5.0)  # px, least and most noise of a view's keypoints
    begin: float = 2.5  # px, before the first look at the residuals
    outlier: float = 6.0  # px, where a keypoint has lost three quarters of its weight,
    unusual: float = 4.0  # if that is more than so many times the median over the person's views
    strange: float = 1.0  # an estimate so many deviations from the others has lost half of its weight
    patience: float = 4.0  # in the first round outliers may be so many times as large, half as many in each further
    rounds: int = 6


@dataclass
class ViewBatch:
    """n rows: pose (n, 144), betas (n, 10), transl (n, 3) m in each row's camera; keypoints (n, 25, 3) px with score 0
    where unseen; K, R (n, 3, 3), t (n, 3) m world to camera; group (n,): numbers from 0 of who is one person at one
    moment; known_shape (n,): 1 where betas are no estimates."""

    pose: Tensor
    betas: Tensor
    transl: Tensor
    keypoints: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    group: Tensor
    known_shape: Tensor

    def only(self, chosen: Tensor) -> ViewBatch:
        """The rows `chosen` (n,), groups numbered anew."""
        part = ViewBatch(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))
        return dataclasses.replace(part, group=torch.unique(part.group, return_inverse=True)[1])


@dataclass
class Views:
    """n rows: rotation (n, 3, 3) and t (n, 3) m world to camera; ray (n, K, 2) tangents of the keypoints, seen (n, K)
    their weight, 0 = not seen; half (n,) tangent of half the keypoints' box; group (n,)."""

    rotation: Tensor
    t: Tensor
    ray: Tensor
    seen: Tensor
    half: Tensor
    group: Tensor

    def residuals(self, points: Tensor) -> Tensor:
        """Keypoints less projected points (n, K, 2) in half boxes, of points (n, K, 3) in the world."""
        xyz = points @ self.rotation.transpose(1, 2) + self.t[:, None]
        off = (self.ray - xyz[..., :2] / xyz[..., 2:].clamp_min(NEAREST)) / self.half[:, None, None]
        return torch.where(self.seen[..., None] > 0, off, torch.zeros_like(off))


@dataclass
class WorldBodies:
    """G bodies in the world: rotation (G, 24, 3, 3) of the bones, betas (G, 10), pelvis (G, 3) m; energy (G,), the
    negative logarithm of the posterior up to a constant; information (G, 10, 10) of the keypoints about the betas."""

    rotation: Tensor
    betas: Tensor
    pelvis: Tensor
    energy: Tensor
    information: Tensor


@dataclass
class SharedShape:
    """The betas of one person over many moments. prior (10, 10): precision of an estimate; information (10, 10) of the
    keypoints, pulled (10,) its product with what they say; total (10,) of `count` estimates. Parts add."""

    prior: Tensor
    information: Tensor
    pulled: Tensor
    total: Tensor
    count: int

    def __add__(self, other: SharedShape) -> SharedShape:
        return SharedShape(
            self.prior, self.information + other.information, self.pulled + other.pulled, self.total + other.total,
            self.count + other.count,
        )  # fmt: skip

    def betas(self) -> Tensor:
        """The likeliest (10,); the estimates, all of one habit, count as one."""
        precision = self.prior + self.information
        return torch.linalg.solve(precision, self.pulled + self.prior @ (self.total / self.count)).float()


@dataclass
class Readings:
    """The n estimates as readings of their group's body: precision (n, 85, 85), mean (n, 85) about the start, trust
    (n,) from 0 to 1; known (G,): 1 where the betas are no estimate."""

    precision: Tensor
    mean: Tensor
    trust: Tensor
    known: Tensor


class MultiviewUpdate:
    """`single` updates a person in one view, and has the covariance of an estimate's error; without it bodies are only
    brought to one place, not fitted."""

    def __init__(
        self, linearized: LinearizedBody, single: KalmanUpdate | None, noise: MultiviewNoise = MultiviewNoise()
    ) -> None:
        self.linearized, self.single, self.noise = linearized, single, noise

    def __call__(self, rows: ViewBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pose, betas, transl of each group's one body in every row's camera, and its energy (n,). Rows of groups with
        fewer than three keypoints in all stay."""
        out = (rows.pose.clone(), rows.betas.clone(), rows.transl.clone(), torch.zeros_like(rows.transl[:, 0]))
        alone, known = (torch.bincount(rows.group) == 1)[rows.group], rows.known_shape > 0
        cases = [(~alone, self._together)]
        if self.single is not None:
            cases += [(alone & known, self._alone), (alone & ~known, self._alone)]
        for chosen, update in cases:
            if chosen.any():
                for value, new in zip(out, update(rows.only(chosen)), strict=True):
                    value[chosen] = new
        return out

    def shape(self, rows: ViewBatch) -> SharedShape:
        """What the rows of one person, in several moments, say of its betas."""
        assert self.single is not None
        found = self.bodies(dataclasses.replace(rows, known_shape=torch.zeros_like(rows.known_shape)))
        information, betas = found.information.double(), rows.betas.double()
        pulled = (information @ found.betas.double()[..., None]).sum(0)[:, 0]
        prior = torch.linalg.inv((self.single.factor @ self.single.factor.t())[72:, 72:])
        return SharedShape(prior, information.sum(0), pulled, betas.sum(0), len(betas))

    def _alone(self, rows: ViewBatch) -> tuple[Tensor, ...]:
        """People seen by one camera: all with known shape, or none."""
        assert self.single is not None
        keep = bool(rows.known_shape[0] > 0)
        return self.single(rows.pose, rows.betas, rows.transl, rows.keypoints, rows.K, keep_shape=keep)

    def _together(self, rows: ViewBatch) -> tuple[Tensor, ...]:
        """People seen by several."""
        chain, group, found = self.linearized.chain, rows.group, self.bodies(rows)
        rotation = rows.R[:, None] @ found.rotation[group]
        local = rotation[:, chain.parent_index].transpose(2, 3) @ rotation
        local[:, 0] = rotation[:, 0]
        shape, pelvis = found.betas[group], (rows.R @ found.pelvis[group][..., None])[..., 0] + rows.t
        better = (
            local[..., :2].transpose(-1, -2).flatten(1),
            shape,
            pelvis - chain.rest(shape).joints[0].t(),
            found.energy[group][:, None],
        )
        seen = _sum((rows.keypoints[..., 2] > 0).sum(1), group, len(found.betas))
        able = (seen >= MIN_KEYPOINTS)[group] & torch.isfinite(torch.cat(better, 1)).all(1) & (pelvis[:, 2] > NEAREST)
        as_it_was = (rows.pose, rows.betas, rows.transl, torch.full_like(better[3], NOT_UPDATED))
        out = [torch.where(able[:, None], new, old) for new, old in zip(better, as_it_was, strict=True)]
        return out[0], out[1], out[2], out[3][:, 0]

    def bodies(self, rows: ViewBatch) -> WorldBodies:
        """The G bodies in the world."""
        chain, keypoints = self.linearized.chain, rows.keypoints
        rotation = chain.forward(rows.pose, chain.rest(rows.betas)).world[:, :, :3].permute(3, 0, 1, 2).double()
        tangent = (keypoints[..., :2] - rows.K[:, None, :2, 2]) / rows.K[:, None, [0, 1], [0, 1]]
        seen = keypoints[..., 2].clamp_max(1)  # some detectors' scores have no bound
        look, half, _ = (v.movedim(-1, 0).double() for v in look_at(tangent.permute(2, 1, 0), seen.t()))
        tangent = torch.where(seen[..., None] > 0, tangent, torch.zeros_like(tangent))
        seen = torch.where((half > 1e-4)[:, None], seen, torch.zeros_like(seen))
        R, half = rows.R.double(), half.clamp_min(1e-4)
        views = Views(R, rows.t.double(), tangent.double(), seen.double(), half, rows.group)
        rotation = R.transpose(1, 2)[:, None] @ rotation
        start = self._start(views, rotation, rows.betas.double())
        if self.single is None:
            none = start.betas.new_zeros(len(start.betas))
            found = WorldBodies(start.rotation, start.betas, start.pelvis, none, torch.diag_embed(0 * start.betas))
        else:
            found = self._solve(views, start, self._readings(views, look, rotation, start.rotation, rows.known_shape))
        return WorldBodies(*(getattr(found, f.name).to(rows.pose.dtype) for f in dataclasses.fields(found)))

    # ---- the beginning

    def _start(self, views: Views, rotation: Tensor, betas: Tensor) -> PosedEstimate:
        """Of the views' own bodies, rotation (n, 24, 3, 3) in the world, and their mean: the one whose points lie
        nearest to all views' keypoints. betas (n, 10)."""
        group, groups = views.group, int(views.group.max()) + 1
        shape, mean = _mean(betas, group, groups), _nearest_rotation(_mean(rotation, group, groups))
        order = torch.argsort(group, stable=True)
        count = torch.bincount(group, minlength=groups)
        first = count.cumsum(0) - count
        best = self._place(views, mean, shape)
        lowest = self._cost(views, best)
        for k in range(int(count.max())):
            there = (count > k)[:, None, None, None]
            body = self._place(
                views, torch.where(there, rotation[order[(first + k).clamp_max(len(order) - 1)]], mean), shape
            )
            cost = self._cost(views, body)
            better = cost < lowest
            lowest = torch.where(better, cost, lowest)
            best.rotation = torch.where(better[:, None, None, None], body.rotation, best.rotation)
            best.pelvis = torch.where(better[:, None], body.pelvis, best.pelvis)
        return best

    def _place(self, views: Views, rotation: Tensor, shape: Tensor) -> PosedEstimate:
        """Bodies (G) put where the lines of sight want them."""
        body = PosedEstimate(rotation, shape, torch.zeros_like(shape[:, :3]), torch.ones_like(shape[:, 0]))
        return dataclasses.replace(body, pelvis=_placed(views, self.linearized.linearise(body)[0], len(shape)))

    def _cost(self, views: Views, body: PosedEstimate) -> Tensor:
        """Sum (G,) of the distances of keypoints from the body's points, none very large."""
        points = self.linearized.linearise(body)[0] + body.pelvis[:, None]
        off = views.residuals(points[views.group]).norm(dim=-1) / PIXEL
        return _sum((off.clamp_max(5 * self.noise.outlier) * views.seen).sum(1), views.group, len(points))

    def _readings(self, views: Views, look: Tensor, rotation: Tensor, start: Tensor, known_shape: Tensor) -> Readings:
        """The views' estimates, rotation (n, 24, 3, 3) in the world, about the start (G, 24, 3, 3)."""
        assert self.single is not None
        group, groups, P = views.group, len(start), self.single.precision
        off = matrix_to_axis_angle(rotation @ start[group].transpose(-1, -2)).flatten(1)
        M = look @ views.rotation  # world to the axes in which the covariance was measured
        bones = torch.einsum("nab,iajc,ncd->nibjd", M, P[:72, :72].view(24, 3, 24, 3), M)
        cross = torch.einsum("nab,iak->nibk", M, P[:72, 72:].view(24, 3, 10)).reshape(len(M), 72, 10)
        precision = off.new_zeros(len(M), STATE, STATE)
        precision[:, :72, :72], precision[:, :72, 72:POSE] = bones.reshape(len(M), 72, 72), cross
        precision[:, 72:POSE, :72], precision[:, 72:POSE, 72:POSE] = cross.transpose(1, 2), P[72:, 72:]
        seen = (views.seen > 0).sum(1).to(off)
        trust = ((seen + 0.5) / (_most(seen, group, groups) + 0.5)[group]).square()
        return Readings(
            precision, torch.nn.functional.pad(off, (0, STATE - 72)), trust, _most(known_shape.to(off), group, groups)
        )

    def _joint(self, readings: Readings, error: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """All readings of a body as one Gaussian: precision (G, 85, 85) and its product with the mean (G, 85). They
        were made by one network with one habit, so together they count as one; those far from the present error (G, 85)
        lose weight."""
        groups = len(error)
        away = (readings.mean - error[group])[:, :72]
        strange = ((readings.precision[:, :72, :72] @ away[..., None])[..., 0] * away).sum(1) / 72
        weight = readings.trust / (1 + strange / self.noise.strange**2)
        weight = weight / _sum(weight, group, groups).clamp_min(1e-9)[group]
        precision = _sum(readings.precision * weight[:, None, None], group, groups)
        pulled = _sum((readings.precision @ readings.mean[..., None])[..., 0] * weight[:, None], group, groups)
        precision.diagonal(dim1=1, dim2=2)[:, 72:POSE] += SURE * readings.known[:, None]
        precision.diagonal(dim1=1, dim2=2)[:, POSE:] += FREE
        return precision, pulled

    # ---- Gauss-Newton

    def _solve(self, views: Views, start: PosedEstimate, readings: Readings) -> WorldBodies:
        group, groups = views.group, len(start.rotation)
        error = start.betas.new_zeros(groups, STATE)
        noise = torch.full_like(views.half, self.noise.begin * PIXEL)
        for step in range(self.noise.rounds):
            now = _moved(start, error)
            points, J = self._linearise(now, views)
            off = views.residuals((points + now.pelvis[:, None])[group])
            weight = self._weights(off, views, max(1.0, self.noise.patience / 2**step))
            precision, pulled = self._joint(readings, error, group)
            pull = J.transpose(1, 2) * (weight / noise[:, None].square()).repeat_interleave(2, 1)[:, None]
            wanted = off.flatten(1) + (J @ error[group][..., None])[..., 0]
            A = precision + _sum(pull @ J, group, groups)
            right = pulled + _sum((pull @ wanted[..., None])[..., 0], group, groups)
            error = torch.cholesky_solve(right[..., None], torch.linalg.cholesky_ex(A)[0])[..., 0]
            noise = self._noise(off, weight, views)
        now = _moved(start, error)
        left = (off.square().sum(-1) * weight / noise[:, None].square()).sum(1)
        prior = ((precision @ error[..., None])[..., 0] * error).sum(1) - 2 * (pulled * error).sum(1)
        energy = (_sum(left, group, groups) + prior) / 2
        return WorldBodies(now.rotation, now.betas, now.pelvis, energy, _marginal(A) - _marginal(precision))

    def _weights(self, off: Tensor, views: Views, patience: float) -> Tensor:
        """Weights (n, K) of the keypoints: their scores, less where they lie far from where the body is; with more
        `patience`, less so."""
        square = off.square().sum(-1)
        usual = _group_median(square, views.seen > 0, views.group)
        cut = (self.noise.unusual**2 * usual).clamp_min((self.noise.outlier * patience * PIXEL) ** 2)
        return views.seen * (1 + square / cut[views.group][:, None]).pow(-2)

    def _noise(self, off: Tensor, weight: Tensor, views: Views) -> Tensor:
        """Noise (n,) of a coordinate of each view's keypoints in half boxes, from what the body leaves over."""
        square = (weight * off.square().sum(-1)).sum(1) / (2 * weight.sum(1)).clamp_min(1e-9)
        return square.sqrt().clamp(self.noise.noise[0] * PIXEL, self.noise.noise[1] * PIXEL)

    def _linearise(self, now: PosedEstimate, views: Views) -> tuple[Tensor, Tensor]:
        """Points (G, K, 3) from the pelvis and the derivative (n, 2 K, 85) of what the views show, in half boxes."""
        points, lever, swell = self.linearized.linearise(now)
        J = in_space(lever, swell).unflatten(1, (-1, 3))  # (G, K, 3, 82)
        J = torch.cat([J, torch.eye(3).to(J).expand(*J.shape[:2], 3, 3)], -1)[views.group]
        xyz = (points + now.pelvis[:, None])[views.group] @ views.rotation.transpose(1, 2) + views.t[:, None]
        depth = xyz[..., 2].clamp_min(NEAREST)
        R = views.rotation[:, None]
        rows = (R[:, :, :2] - (xyz[..., :2] / depth[..., None])[..., None] * R[:, :, 2:]) / (
            depth * views.half[:, None]
        )[..., None, None]
        return points, (rows @ J).flatten(1, 2)


def _moved(start: PosedEstimate, error: Tensor) -> PosedEstimate:
    rotation = axis_angle_to_matrix(error[:, :72].unflatten(1, (24, 3))) @ start.rotation
    return PosedEstimate(rotation, start.betas + error[:, 72:POSE], start.pelvis + error[:, POSE:], start.half)


def _placed(views: Views, points: Tensor, groups: int) -> Tensor:
    """The pelvis (G, 3) that brings points (G, K, 3) nearest to all views' lines of sight: least absolute distances, by
    reweighting."""
    group = views.group
    ray = torch.nn.functional.pad(views.ray, (0, 1), value=1.0) @ views.rotation  # R^T d, in the world
    ray = ray / ray.norm(dim=-1, keepdim=True)
    center = -(views.t[:, None] @ views.rotation)  # (n, 1, 3)
    across = torch.eye(3).to(ray) - ray[..., :, None] * ray[..., None, :]
    goal = center - points[group]
    weight = views.seen
    for _ in range(8):
        A = _sum((across * weight[..., None, None]).sum(1), group, groups) + 1e-9 * torch.eye(3).to(ray)
        b = _sum(((across @ goal[..., None])[..., 0] * weight[..., None]).sum(1), group, groups)
        pelvis = torch.linalg.solve_ex(A, b)[0]
        miss = (across @ (pelvis[group][:, None] - goal)[..., None])[..., 0].norm(dim=-1)
        weight = views.seen / miss.clamp_min(0.02)
    return pelvis


def _marginal(precision: Tensor) -> Tensor:
    """The precision (G, 10, 10) of the betas with everything else left free, of precision (G, 85, 85)."""
    rest = [*range(72), *range(POSE, STATE)]
    cross = precision[:, rest, 72:POSE]
    return precision[:, 72:POSE, 72:POSE] - cross.transpose(1, 2) @ torch.linalg.solve(
        precision[:, rest][:, :, rest], cross
    )


def _most(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """The largest value (G,) of each group."""
    return value.new_zeros(groups).scatter_reduce(0, group, value, "amax")


def _sum(value: Tensor, group: Tensor, groups: int) -> Tensor:
    return value.new_zeros(groups, *value.shape[1:]).index_add_(0, group, value)


def _mean(value: Tensor, group: Tensor, groups: int) -> Tensor:
    count = _sum(torch.ones_like(group), group, groups).clamp_min(1)
    return _sum(value, group, groups) / count.view(-1, *[1] * (value.dim() - 1))


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The nearest rotations (..., 3, 3)."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ v)
    return torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ v


def _group_median(value: Tensor, there: Tensor, group: Tensor) -> Tensor:
    """Median (G,) of value (n, K) over all rows of a group, where it is there; 0 without any."""
    groups = int(group.max()) + 1
    key = group[:, None].expand_as(value)[there]
    value = value[there]
    order = torch.argsort(value)
    order = order[torch.argsort(key[order], stable=True)]
    count = _sum(torch.ones_like(key), key, groups)
    middle = count.cumsum(0) - count + (count - 1).clamp_min(0) // 2
    out = value.new_zeros(groups)
    some = count > 0
    out[some] = value[order[middle[some]]]
    return out
