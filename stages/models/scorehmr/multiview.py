"""One body for all cameras that see a person: the Kalman update of weigh.py in the world frame of a calibrated rig.

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

from stages.human.gaze import look_at
from stages.human.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.models.scorehmr.arms import POSE, Arms, Scene, in_space
from stages.models.scorehmr.weigh import FEWEST, PIXEL

STATE = POSE + 3  # rotation vectors of 24 bones, betas, pelvis in the world
NEAREST = 0.1  # m before a camera
SURE = 1e12  # precision of what is known


@dataclass(frozen=True)
class MultiviewNoise:
    """What is believed of several views. px: pixels of a 256 crop of the person."""

    noise: tuple[float, float] = (0.5, 10.0)  # px, least and most noise of a view's keypoints
    outlier: float = 6.0  # px, where a keypoint has lost three quarters of its weight,
    unusual: float = 3.0  # if that is more than so many times the median over the person's views
    repeated: float = 0.5  # estimates of several views share errors: V of them count as V ** repeated
    strange: float = 2.0  # an estimate so many deviations from the others has lost half of its weight
    rounds: int = 6


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


class MultiviewUpdate:
    """`covariance` (82, 82) of the error of an estimate, as in weigh.Weigher."""

    def __init__(self, covariance: Tensor, arms: Arms, noise: MultiviewNoise = MultiviewNoise()) -> None:
        self.arms, self.noise = arms, noise
        self.precision = torch.linalg.inv(covariance.double())

    def __call__(
        self,
        rotation: Tensor,
        betas: Tensor,
        pelvis: Tensor,
        keypoints: Tensor,
        K: Tensor,
        R: Tensor,
        t: Tensor,
        group: Tensor,
        *,
        keep_shape: bool = False,
    ) -> WorldBodies:
        """rotation (n, 24, 3, 3) of the bones in each camera, betas (n, 10), pelvis (n, 3) in each camera, keypoints
        (n, 25, 3) px with score 0 = unseen, K, R (n, 3, 3), t (n, 3), group (n,) numbers from 0 -> G bodies."""
        kind = rotation.dtype
        tangent = (keypoints[..., :2] - K[:, None, :2, 2]) / K[:, None, [0, 1], [0, 1]]
        seen = keypoints[..., 2].clamp_max(1)
        look, half, _ = (v.movedim(-1, 0).double() for v in look_at(tangent.permute(2, 1, 0), seen.t()))
        tangent = torch.where(seen[..., None] > 0, tangent, torch.zeros_like(tangent))
        seen = torch.where((half > 1e-4)[:, None], seen, torch.zeros_like(seen))
        views = Views(R.double(), t.double(), tangent.double(), seen.double(), half.clamp_min(1e-4), group)
        readings = R.double().transpose(1, 2)[:, None] @ rotation.double()
        start = self._start(views, readings, betas.double(), pelvis.double())
        prior = self._readings(views, look, readings, start.rotation, keep_shape)
        found = self._solve(views, start, prior)
        return WorldBodies(*(getattr(found, f.name).to(kind) for f in dataclasses.fields(found)))

    # ---- the beginning

    def _start(self, views: Views, readings: Tensor, betas: Tensor, pelvis: Tensor) -> Scene:
        """Of every view's own body and their mean, the one whose points lie nearest to all views' keypoints."""
        group, groups = views.group, int(views.group.max()) + 1
        count = torch.zeros(groups, dtype=torch.long, device=group.device).index_add_(0, group, torch.ones_like(group))
        place = torch.arange(len(group), device=group.device)
        order = torch.argsort(group, stable=True)
        first = count.cumsum(0) - count
        place[order] = torch.arange(len(group), device=group.device) - first.repeat_interleave(count)
        mean_betas = _mean(betas, group, groups)
        best = Scene(_project(_mean(readings, group, groups)), mean_betas, betas.new_zeros(groups, 3), betas.new_ones(groups))
        lowest = None
        for k in range(-1, int(count.max())):
            rotation = best.rotation if k < 0 else best.rotation.clone()
            if k >= 0:
                mine = order[(first + k).clamp_max(len(order) - 1)]
                rotation = torch.where((count > k)[:, None, None, None], readings[mine], rotation)
            scene = Scene(rotation, mean_betas, best.pelvis, best.half)
            points = self.arms.linearise(scene)[0]
            scene.pelvis = _placed(views, points, groups)
            off = views.residuals((points + scene.pelvis[:, None])[group]).norm(dim=-1) / PIXEL
            cost = _sum((off.clamp_max(5 * self.noise.outlier) * views.seen).sum(1), group, groups)
            if lowest is None:
                best, lowest = scene, cost
            else:
                better = cost < lowest
                lowest = torch.where(better, cost, lowest)
                best = Scene(
                    torch.where(better[:, None, None, None], scene.rotation, best.rotation), mean_betas,
                    torch.where(better[:, None], scene.pelvis, best.pelvis), best.half,
                )  # fmt: skip
        return best

    def _readings(
        self, views: Views, look: Tensor, readings: Tensor, start: Tensor, keep_shape: bool
    ) -> tuple[Tensor, Tensor]:
        """The views' estimates as one Gaussian about the start (G, 24, 3, 3): precision (G, 85, 85) and its product with
        the mean (G, 85)."""
        group, groups = views.group, len(start)
        off = matrix_to_axis_angle(readings @ start[group].transpose(-1, -2)).flatten(1)
        mean = torch.nn.functional.pad(off, (0, STATE - 72))
        M = look @ views.rotation
        P = self.precision
        bones = P[:72, :72].view(24, 3, 24, 3)
        turned = torch.einsum("nab,iajc,ncd->nibjd", M, bones, M).reshape(len(M), 72, 72)
        cross = torch.einsum("nab,iak->nibk", M, P[:72, 72:].view(24, 3, 10)).reshape(len(M), 72, 10)
        precision = off.new_zeros(len(M), STATE, STATE)
        precision[:, :72, :72], precision[:, :72, 72:POSE] = turned, cross
        precision[:, 72:POSE, :72], precision[:, 72:POSE, 72:POSE] = cross.transpose(1, 2), P[72:, 72:]
        weight = (views.seen > 0).sum(1).to(off)
        most = torch.zeros(groups).to(off).index_reduce_(0, group, weight, "amax").clamp_min(1)
        weight = (weight / most[group]).square()
        total = _sum(weight, group, groups).clamp_min(1e-6)
        share = weight * (total ** (self.noise.repeated - 1))[group]
        joint = _sum(precision * share[:, None, None], group, groups)
        pulled = _sum((precision @ mean[..., None])[..., 0] * share[:, None], group, groups)
        if keep_shape:
            joint[:, range(72, POSE), range(72, POSE)] += SURE
        return joint, pulled

    # ---- Gauss-Newton

    def _solve(self, views: Views, start: Scene, prior: tuple[Tensor, Tensor]) -> WorldBodies:
        precision, pulled = prior
        group, groups = views.group, len(start.rotation)
        error = start.betas.new_zeros(groups, STATE)
        noise = torch.full_like(views.half, 2.5 * PIXEL)
        for _ in range(self.noise.rounds):
            now = _moved(start, error)
            points, J = self._linearise(now, views)
            off = views.residuals((points + now.pelvis[:, None])[group])
            weight = self._weights(off, views)
            flat, w = off.flatten(1), (weight / noise[:, None].square()).repeat_interleave(2, 1)
            pull = J.transpose(1, 2) * w[:, None]
            data = _sum(pull @ J, group, groups)
            wanted = flat + (J @ error[group][..., None])[..., 0]
            A = precision + data
            A.diagonal(dim1=1, dim2=2)[:, POSE:] += 1e-6
            right = pulled + _sum((pull @ wanted[..., None])[..., 0], group, groups)
            factor = torch.linalg.cholesky_ex(A)[0]
            error = torch.cholesky_solve(right[..., None], factor)[..., 0]
            noise = self._noise(off, weight, views)
        now = _moved(start, error)
        energy = (off.square().sum(-1) * weight / noise[:, None].square()).sum(1)
        return WorldBodies(now.rotation, now.betas, now.pelvis, _sum(energy, group, groups) / 2, _marginal(A, precision))

    def _weights(self, off: Tensor, views: Views) -> Tensor:
        """Weights (n, K) of the keypoints: their scores, less where they lie far from where the body is."""
        square = off.square().sum(-1)
        usual = _group_median(square, views.seen > 0, views.group)
        cut = (self.noise.unusual**2 * usual).clamp_min((self.noise.outlier * PIXEL) ** 2)
        return views.seen * (1 + square / cut[views.group][:, None]).pow(-2)

    def _noise(self, off: Tensor, weight: Tensor, views: Views) -> Tensor:
        """Noise (n,) of a coordinate of each view's keypoints in half boxes, from what the body leaves over."""
        square = (weight * off.square().sum(-1)).sum(1) / (2 * weight.sum(1)).clamp_min(1e-9)
        return square.sqrt().clamp(self.noise.noise[0] * PIXEL, self.noise.noise[1] * PIXEL)

    def _linearise(self, now: Scene, views: Views) -> tuple[Tensor, Tensor]:
        """Points (G, K, 3) from the pelvis and the derivative (n, 2 K, 85) of what the views show, in half boxes."""
        points, lever, swell = self.arms.linearise(now)
        J = in_space(lever, swell).unflatten(1, (-1, 3))  # (G, K, 3, 82)
        J = torch.cat([J, torch.eye(3).to(J).expand(*J.shape[:2], 3, 3)], -1)[views.group]
        xyz = (points + now.pelvis[:, None])[views.group] @ views.rotation.transpose(1, 2) + views.t[:, None]
        depth = xyz[..., 2].clamp_min(NEAREST)
        R = views.rotation[:, None]
        rows = (R[:, :, :2] - (xyz[..., :2] / depth[..., None])[..., None] * R[:, :, 2:]) / (
            depth * views.half[:, None]
        )[..., None, None]
        return points, (rows @ J).flatten(1, 2)


def _moved(start: Scene, error: Tensor) -> Scene:
    rotation = axis_angle_to_matrix(error[:, :72].unflatten(1, (24, 3))) @ start.rotation
    return Scene(rotation, start.betas + error[:, 72:POSE], start.pelvis + error[:, POSE:], start.half)


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


def _marginal(A: Tensor, prior: Tensor) -> Tensor:
    """What the keypoints say about the betas: information (G, 10, 10) with everything else left free."""

    def schur(M: Tensor) -> Tensor:
        shape = slice(72, POSE)
        rest = [*range(72), *range(POSE, STATE)]
        return M[:, shape, shape] - M[:, shape][:, :, rest] @ torch.linalg.solve(M[:, rest][:, :, rest], M[:, rest, shape])

    prior = prior.clone()
    prior.diagonal(dim1=1, dim2=2)[:, POSE:] += 1e-6
    return schur(A) - schur(prior)


def _sum(value: Tensor, group: Tensor, groups: int) -> Tensor:
    return value.new_zeros(groups, *value.shape[1:]).index_add_(0, group, value)


def _mean(value: Tensor, group: Tensor, groups: int) -> Tensor:
    count = _sum(torch.ones_like(group), group, groups).clamp_min(1)
    return _sum(value, group, groups) / count.view(-1, *[1] * (value.dim() - 1))


def _project(matrix: Tensor) -> Tensor:
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
