"""A pose estimate weighed against its keypoints: the iterated Kalman update of the embedded prior.

An estimate is a noisy reading of the truth, but its noise is anything but white: depth is known badly, limbs err
together. The prior holds the covariance of that error, measured on people in motion, and the keypoints are taken in as
the maximum of the Gaussian posterior (Gauss-Newton = iterated Kalman update, Bell & Cathey 1993). As score guidance
it is the pseudo-inverse step (Song et al., "Pseudoinverse-guided diffusion", ICLR 2023) with a measured covariance in
place of a white one. Two things keep it from following bad keypoints: the noise of a person's keypoints is estimated
from what the pose cannot explain (residuals over degrees of freedom), and single outliers lose their weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.geometry.cameras import look_at
from stages.models.scorehmr.linearized_body import POSE, LinearizedBody, PosedEstimate, in_picture, in_space

PIXEL = 2 * 1.2 / 256  # a pixel of a 256 crop (box with a margin of 1.2) in half boxes
MIN_KEYPOINTS = 3  # keypoints; rows with fewer stay
NEAREST = 0.1  # m; somebody nearer than that, or behind the camera, is not where the estimate says
NOT_UPDATED = 1e30  # surprise of what stayed as it was: never the likeliest of several


@dataclass(frozen=True)
class NoiseModel:
    """What is believed of estimates and keypoints. px: pixels of a 256 crop. Chosen on subjects 08 and 11."""

    place: float = 0.04  # m that the points of an estimate may move for keypoints; keeps what is not seen in place
    usual: tuple[float, float] = (1.5, 3.0)  # px; keypoints of less or more noise may move them further or less far
    aside: float = 0.3  # spread of the pelvis in half boxes: free
    depth: float = 0.2  # of the logarithm of its depth: free
    noise: tuple[float, float] = (0.5, 10.0)  # px, least and most noise of a person's keypoints
    begin: float = 2.5  # px, before the first look at the residuals
    outlier: float = 10.0  # px, where a keypoint has lost three quarters of its weight,
    unusual: float = 3.0  # if that is more than so many times the person's median
    wrong: float = 5.0  # px; an estimate whose points are off by more (median) may move further in proportion,
    most: float = 4.0  # up to so many times
    rounds: int = 4


@dataclass
class UpdatedBodies:
    """scene: the likeliest; surprise (n,): half the squared error and residuals in units of their deviations, the
    negative logarithm of the posterior up to a constant."""

    scene: PosedEstimate
    surprise: Tensor


class KalmanUpdate:
    """`covariance` (82, 82) of the error of an estimate: 24 rotation vectors (rad, axes of a camera that looks at the
    person), 10 betas."""

    def __init__(self, covariance: Tensor, arms: LinearizedBody, trust: NoiseModel = NoiseModel()) -> None:
        self.arms, self.trust = arms, trust
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
        guess: Tensor | None = None,
        keep_shape: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pose (n, 144), betas (n, 10), transl (n, 3), keypoints (n, 25, 3) px with score 0 = unseen, K (n, 3, 3).

        -> better pose, betas and transl, and the surprise (n,). Rows with fewer than three keypoints stay. `guess`
        (n, 82): the error that is expected, else none (a sample of it makes the result a sample).
        """
        chain, seen = self.arms.chain, keypoints[..., 2].clamp_max(1)  # some detectors' scores have no bound
        tangent = (keypoints[..., :2] - K[:, None, :2, 2]) / K[:, None, [0, 1], [0, 1]]
        turn, half, xy = (v.movedim(-1, 0) for v in look_at(tangent.permute(2, 1, 0), seen.t()))
        able = ((seen > 0).sum(1) >= MIN_KEYPOINTS) & (half > 1e-4)
        world = chain.forward(pose, chain.rest(betas)).world[:, :, :3].permute(3, 0, 1, 2)
        pelvis = chain.rest(betas).joints[0].t() + transl
        scene = PosedEstimate(
            turn[:, None] @ world,
            betas,
            (turn @ pelvis[..., None])[..., 0],
            torch.where(able, half, torch.ones_like(half)),
        )
        found = self.weigh(scene, xy.transpose(1, 2), seen, guess=guess, keep_shape=keep_shape)
        rotation = turn[:, None].transpose(2, 3) @ found.scene.rotation
        local = rotation[:, chain.parent_index].transpose(2, 3) @ rotation
        local[:, 0] = rotation[:, 0]
        pelvis = (turn.transpose(1, 2) @ found.scene.pelvis[..., None])[..., 0]
        shape = betas if keep_shape else found.scene.betas
        better = (
            local[..., :2].transpose(-1, -2).flatten(1),
            shape,
            pelvis - chain.rest(shape).joints[0].t(),
            found.surprise[:, None],
        )
        able &= torch.isfinite(torch.cat(better, 1)).all(1)
        as_it_was = (pose, betas, transl, torch.full_like(better[3], NOT_UPDATED))
        out = [torch.where(able[:, None], new, old) for new, old in zip(better, as_it_was, strict=True)]
        return out[0], out[1], out[2], out[3][:, 0]

    def weigh(
        self, scene: PosedEstimate, xy: Tensor, seen: Tensor, *, guess: Tensor | None = None, keep_shape: bool = False
    ) -> UpdatedBodies:
        """The likeliest scene, given an estimate and keypoints xy (n, K, 2) in half boxes with scores seen (n, K)."""
        trust, there, kind = self.trust, (seen > 0)[..., None], xy.dtype
        scene, xy, seen = scene.to(torch.float64), xy.double(), seen.double()
        points, lever, swell = self.arms.linearise(scene)
        drawn, _ = in_picture(scene, points, lever, swell)
        lost = (_median_square(xy - drawn, there[..., 0]) > 1) | (scene.pelvis[:, 2] < NEAREST)
        placed = _placed(points, xy * scene.half[:, None, None], there, scene.pelvis)
        scene = dataclasses.replace(scene, pelvis=torch.where(lost[:, None], placed, scene.pelvis))
        drawn, _ = in_picture(scene, points, lever, swell)
        wrong = (_median_square(xy - drawn, there[..., 0]).sqrt() / (trust.wrong * PIXEL)).clamp(1, trust.most)
        error_prior, place_prior = self._priors(lever, swell, wrong, keep_shape)
        expected = xy.new_zeros(len(xy), POSE + 3)
        held = place_prior
        if guess is not None:  # a sample goes where the keypoints want it
            expected[:, :POSE], held = guess, torch.zeros_like(place_prior)
        noise = torch.full_like(expected[:, 0], trust.begin * PIXEL)
        error, spread, prior = expected, None, error_prior
        for _ in range(trust.rounds):
            now, last = scene.moved(error), error
            points, lever, swell = self.arms.linearise(now)
            drawn, J = in_picture(now, points, lever, swell)
            off = torch.where(there, xy - drawn, torch.zeros_like(xy))
            cut = (trust.unusual**2 * _median_square(off, there[..., 0])).clamp_min((trust.outlier * PIXEL) ** 2)
            bent = 1 / (1 + off.square().sum(-1) / cut[:, None])  # Geman-McClure
            weight = (seen * bent.square()).repeat_interleave(2, 1)
            off = off.flatten(1)
            if spread is not None:  # numbers seen less numbers fitted are left to tell the noise
                spent = POSE + 3 - (spread * prior).sum((1, 2))
                free = torch.maximum(weight.sum(1) - spent, 0.25 * weight.sum(1)).clamp_min(1e-9)
                noise = ((weight * off.square()).sum(1) / free).sqrt()
                noise = noise.clamp(trust.noise[0] * PIXEL, trust.noise[1] * PIXEL)
            low, high = (noise / (trust.usual[k] * PIXEL) for k in (0, 1))
            stiff = (low.clamp_max(1) * (high / wrong).clamp_min(1)) ** 4
            prior = error_prior + stiff[:, None, None] * held
            pull = J.transpose(1, 2) * (weight / noise[:, None].square())[:, None]
            spread = torch.cholesky_inverse(torch.linalg.cholesky_ex(prior + pull @ J)[0])
            wanted = off + (J @ (error - expected)[..., None])[..., 0]
            error = expected + (spread @ (pull @ wanted[..., None]))[..., 0]
        left = off - (J @ (error - last)[..., None])[..., 0]
        surprise = (((error_prior + stiff[:, None, None] * place_prior) @ error[..., None])[..., 0] * error).sum(1)
        surprise = (surprise + (weight * (left / noise[:, None]).square()).sum(1)) / 2
        return UpdatedBodies(scene.moved(error).to(kind), surprise.to(kind))

    def _priors(self, lever: Tensor, swell: Tensor, wrong: Tensor, keep_shape: bool) -> tuple[Tensor, Tensor]:
        """Precisions (n, 85, 85) of the error: as measured, and of the points about their middle; for an estimate that
        is `wrong` (n,) times worse than usual."""
        trust, n, K = self.trust, len(lever), lever.shape[1]
        G = in_space(lever, swell)
        G = torch.nn.functional.pad(G - G.unflatten(1, (K, 3)).mean(1).repeat(1, K, 1), (0, 3))
        G = G / (trust.place * wrong)[:, None, None]
        error = G.new_zeros(n, POSE + 3, POSE + 3)
        error[:, :POSE, :POSE] = self.precision / wrong.square()[:, None, None]
        if keep_shape:
            error.diagonal(dim1=1, dim2=2)[:, 72:POSE] = 1e12
        for at, spread in ((POSE, trust.aside), (POSE + 1, trust.aside), (POSE + 2, trust.depth)):
            error[:, at, at] = 1 / spread**2
        return error, G.transpose(1, 2) @ G


def _median_square(off: Tensor, there: Tensor) -> Tensor:
    """Median (n,) of the squared lengths of off (n, K, 2) over the points that are there (n, K); 0 without any."""
    square = torch.where(there, off.square().sum(-1), torch.nan)
    return square.nanmedian(1).values.nan_to_num()


def _placed(points: Tensor, ray: Tensor, there: Tensor, pelvis: Tensor) -> Tensor:
    """The pelvis (n, 3) that brings points (n, K, 3) closest to their lines of sight, tangents ray (n, K, 2), where
    they are there (n, K, 1): linear least squares. Rows for which that is not before the camera keep their `pelvis`."""
    on = there.to(points)
    off = (ray * points[..., 2:] - points[..., :2]) * on  # x + X = u (z + Z)
    A = points.new_zeros(len(points), 3, 3)
    A[:, 0, 0] = A[:, 1, 1] = on.sum((1, 2))
    A[:, 2, :2] = A[:, :2, 2] = -(ray * on).sum(1)
    A[:, 2, 2] = (ray.square() * on).sum((1, 2))
    b = torch.cat([off.sum(1), -(ray * off).sum((1, 2))[:, None]], 1)
    found = torch.linalg.solve_ex(A, b)[0]
    return torch.where((found[:, 2:] > NEAREST) & torch.isfinite(found).all(1, keepdim=True), found, pelvis)
