"""ScoreHMR as a refiner: estimates and evidence in, refined SMPL parameters out.

There are two families of weights (weights.py), and they decide what happens to a row:

* published: the guided loop; squared residuals in pixels of the whole image times (1000 / longer side of the image)^2,
  5000 px focal length unless the camera is known, translation by Adam;
* embedded prior: every row is first updated by its keypoints (kalman_update.py), in the image's own camera; tracks and
  views then go through the loop, with residuals relative to the size of the person and the translation solved at every
  step; views of a rig with known positions share one body instead (multiview.py).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stages.errors import AssetError, UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint
from stages.geometry.rotations import matrix_to_rot6d_columns, rot6d_columns_to_matrix
from stages.models.base import REFINER_OPTIONS, EstimateBatch, RefinedBatch, Refiner
from stages.models.scorehmr import schedule
from stages.models.scorehmr.body25 import HIPS, chain_of
from stages.models.scorehmr.gradient_fit import fit
from stages.models.scorehmr.guidance import Guidance, SmoothTerm, ViewTerm
from stages.models.scorehmr.kalman_update import NOT_UPDATED, KalmanUpdate
from stages.models.scorehmr.keypoint_term import KeypointTerm, Observed
from stages.models.scorehmr.linearized_body import POSE_SIZE, LinearizedBody
from stages.models.scorehmr.multiview import MultiviewUpdate, SharedShape, ViewBatch
from stages.models.scorehmr.sampler import guided_sampling
from stages.models.scorehmr.settings import ScoreHmrSettings, preset, settings_of
from stages.models.scorehmr.translation_smoothing import smooth_translations
from stages.models.scorehmr.weights import EMBEDDED, ScoreHmrWeights, read_weights, recognises
from stages.params import RefineParams
from stages.smpl.body import Body

REFERENCE_FOCAL = 5000.0  # px, of the published checkpoints, whatever the image
# Of the embedded prior: robust scale of a residual as a share of the person's size, and factors of the weights.
EMBEDDED_SIGMA = 0.2
EMBEDDED_SMOOTH = 1000.0
EMBEDDED_VIEWS = 100.0


class ScoreHmrRefiner(Refiner):
    """condition: the features of the published weights, "pare" or "prohmr"; '' for the embedded prior."""

    name, licence, batch_size = "scorehmr", "MIT", 128
    modes, options = ("frame", "views", "video"), REFINER_OPTIONS

    def __init__(self, weights: ScoreHmrWeights, body: Body, device: str = "cpu") -> None:
        self.denoiser = weights.denoiser.eval().requires_grad_(False).to(device)
        self.codec, self.condition, self.statistics = weights.codec, weights.condition, weights.statistics
        self.body, self.device = body, device
        self.chain, self.schedule = chain_of(body), schedule.Schedule.cosine()
        linearized = LinearizedBody(self.chain)
        covariance = weights.covariance
        self.kalman_update = None if covariance is None else KalmanUpdate(covariance.to(device), linearized)
        self.multiview = MultiviewUpdate(linearized, self.kalman_update)

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return recognises(names)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body, stats: str | None = None
    ) -> ScoreHmrRefiner:
        """From a published `model-100.pt` or a pose prior; without a checkpoint, the embedded prior."""
        if checkpoint is None and not EMBEDDED.exists():
            raise AssetError(
                "the embedded pose prior is not in this installation", "give --ckpt FILE, or: hmr train prior"
            )
        checkpoint = checkpoint or read_checkpoint(EMBEDDED)
        refiner = cls(read_weights(checkpoint, stats, device), body, device)
        refiner.sha256, refiner.licence = checkpoint.sha256, checkpoint.licence
        return refiner

    @property
    def published(self) -> bool:
        return bool(self.condition)

    # ---- what a run needs

    def features(self, params: RefineParams) -> str:
        return self.condition if params.method == "score" else ""

    def check_inputs(self, params: RefineParams, columns: frozenset[str]) -> None:
        super().check_inputs(params, columns)
        has_loop = self.features(params) or params.mode != "frame" or params.preset != "default" or params.loops
        if params.keypoint_weight and not has_loop:
            text = "--keypoint-weight is of the diffusion loop, which the embedded prior does not need for single rows"
            raise UsageError(text, "add --loops 10 to run it as well, or leave it out")

    def settings(self, params: RefineParams) -> ScoreHmrSettings:
        return settings_of(params, published=self.published)

    def preset(self, name: str) -> ScoreHmrSettings:
        """The settings of `--preset`, everything else at its default."""
        return preset(name, published=self.published)

    # ---- running

    @torch.no_grad()
    def __call__(self, estimates: EstimateBatch, settings: ScoreHmrSettings) -> RefinedBatch:
        estimates = estimates.map(lambda v: v.to(self.device))
        if settings.hypotheses > 1:
            return self._hypotheses(estimates, settings)
        return self._refine(matrix_to_rot6d_columns(estimates.rotmat).flatten(1), estimates, settings)

    @torch.no_grad()
    def shared_betas(self, moments: Iterable[EstimateBatch], settings: ScoreHmrSettings) -> Tensor | None:
        """By the embedded prior: the keypoints of all moments, and the estimates as one reading."""
        if self.published:
            return None
        return functools.reduce(operator.add, (self._shape(batch, settings) for batch in moments)).betas()

    def _shape(self, estimates: EstimateBatch, settings: ScoreHmrSettings) -> SharedShape:
        estimates = estimates.map(lambda v: v.to(self.device))
        pose = matrix_to_rot6d_columns(estimates.rotmat).flatten(1)
        return self.multiview.shape(self._views(pose, estimates, settings))

    def _refine(
        self, pose: Tensor, estimates: EstimateBatch, settings: ScoreHmrSettings, expected: Tensor | None = None
    ) -> RefinedBatch:
        """pose (n, 144): where to start. expected (n, 82): the error that the Kalman update expects of the estimate."""
        before = self.keypoint_error(
            matrix_to_rot6d_columns(estimates.rotmat).flatten(1), estimates.betas, estimates.transl, estimates
        )
        energy = before
        in_views = estimates.t_world_to_camera is not None  # of known position: they share one body
        in_group = estimates.consecutive is not None or estimates.group is not None
        plan = settings.plan if in_group and not in_views else settings.single_plan
        if self.kalman_update is not None and settings.method == "score" and not in_views:
            pose, betas, transl, energy = self.kalman_update(
                pose, estimates.betas, estimates.transl, self._keypoints(estimates, settings), estimates.K,
                expected=expected, keep_shape=in_group,
            )  # fmt: skip
            estimates = dataclasses.replace(estimates, betas=betas, transl=transl)
        reference = self.in_reference_camera(estimates)
        guidance, term = self.guidance_for(reference, settings)
        x0, betas, transl = pose, estimates.betas, reference.transl
        if settings.method == "fit":
            for x0, transl in fit(pose, guidance, settings.fit_steps, prior=settings.fit_prior):  # noqa: B007
                pass
        elif plan.loops:
            x = self.codec.encode(pose, estimates.betas)
            eps = self.denoiser.condition(self._conditions(estimates), plan.times)
            sampled = guided_sampling(eps, self.schedule, x, guidance, plan, self.codec)
            x0, decoded = self.codec.decode(sampled.x0)
            betas = estimates.betas if decoded is None else decoded
            transl = reference.transl if sampled.transl is None else sampled.transl
        if self.published:
            energy = guidance.losses.get("keypoints", energy)
        transl = self._from_reference_camera(x0, betas, transl, reference, estimates, settings)
        if estimates.consecutive is not None and not self.published:
            transl = smooth_translations(term.information(x0), transl, estimates.consecutive)
        if in_views:
            update = self.multiview if settings.method == "score" else MultiviewUpdate(self.multiview.linearized, None)
            estimates_in_views = dataclasses.replace(estimates, betas=betas, transl=transl)
            x0, betas, transl, energy = update(self._views(x0, estimates_in_views, settings))
        error = torch.stack([before, self.keypoint_error(x0, betas, transl, estimates)], -1)
        rotmat = rot6d_columns_to_matrix(x0.view(-1, 24, 6))
        refined = None if plan.loops else energy < NOT_UPDATED  # the loop refines what the update had to leave
        return RefinedBatch(rotmat, betas, transl, error, energy, refined)

    def _views(self, pose: Tensor, estimates: EstimateBatch, settings: ScoreHmrSettings) -> ViewBatch:
        R, t = estimates.R_camera_to_world, estimates.t_world_to_camera
        assert R is not None and t is not None
        assert estimates.group is not None and estimates.betas_known is not None
        return ViewBatch(
            pose, estimates.betas, estimates.transl, self._keypoints(estimates, settings), estimates.K,
            R.transpose(1, 2), t, estimates.group, estimates.betas_known,
        )  # fmt: skip

    # ---- several hypotheses

    def _hypotheses(self, estimates: EstimateBatch, settings: ScoreHmrSettings) -> RefinedBatch:
        """Refine the estimate and `hypotheses - 1` poses that the prior draws around it: the likeliest, and all."""
        pose = matrix_to_rot6d_columns(estimates.rotmat).flatten(1)
        results = [self._refine(pose, estimates, settings)]
        for k in range(1, settings.hypotheses):
            results.append(self._sample(pose, estimates, settings, k))
        names = ("rotmat", "betas", "transl", "error", "energy")
        stacked: dict[str, Any] = {name: torch.stack([getattr(r, name) for r in results], 1) for name in names}
        rows, best = torch.arange(len(pose), device=pose.device), stacked["energy"].argmin(1)
        likeliest: dict[str, Any] = {name: value[rows, best] for name, value in stacked.items()}
        refined = None
        if all(r.refined is not None for r in results):
            refined = likeliest["energy"] < NOT_UPDATED
        return RefinedBatch(**likeliest, refined=refined, hypotheses=RefinedBatch(**stacked))

    def _sample(self, pose: Tensor, estimates: EstimateBatch, settings: ScoreHmrSettings, k: int) -> RefinedBatch:
        """The k-th hypothesis, drawn with the same noise for a row whatever its batch."""
        if self.kalman_update is not None:  # an error drawn from the measured covariance
            factor = self.kalman_update.factor
            noise = _noise(estimates.seed, k, POSE_SIZE).to(factor)
            return self._refine(pose, estimates, settings, noise @ factor.t())
        times = schedule.down(settings.spread, 10)
        eps = self.denoiser.condition(self._conditions(estimates), times)
        x = self.codec.encode(pose, estimates.betas)
        noise = _noise(estimates.seed, k, x.shape[1]).to(x)
        x = self.schedule.add_noise(x, noise, torch.full((len(x),), settings.spread, device=x.device))
        for t in times:
            predicted = eps(x, t)
            x = self.schedule.move(self.schedule.x0(x, predicted, t), predicted, max(t - 10, 0))
        return self._refine(self.codec.decode(x)[0], estimates, settings)

    # ---- evidence

    def _conditions(self, estimates: EstimateBatch) -> Tensor:
        """What the denoiser is conditioned on (n, C): standardised features; C = 0 for the embedded prior."""
        if not self.published:
            return estimates.rotmat.new_zeros(len(estimates.rotmat), 0)
        if estimates.features is None or self.statistics is None:
            raise AssetError(
                f"this checkpoint is conditioned on {self.condition} features", "make them: hmr features --model pare"
            )
        mean, std = self.statistics.mean.to(self.device), self.statistics.std.to(self.device)
        return ((estimates.features - mean) / std)[:, : self.denoiser.condition_size + self.denoiser.betas_condition]

    def guidance_for(self, reference: EstimateBatch, settings: ScoreHmrSettings) -> tuple[Guidance, KeypointTerm]:
        """The terms of this run, and the one of the keypoints."""
        guidance = Guidance(
            w_keypoints=settings.w_keypoints,
            w_views=settings.w_views if self.published else settings.w_views * EMBEDDED_VIEWS,
            w_smooth=settings.w_smooth if self.published else settings.w_smooth * EMBEDDED_SMOOTH,
            replace=settings.replace,
            damped=not self.published,
        )
        if reference.consecutive is not None:
            guidance.smooth = SmoothTerm(reference.consecutive)
        if reference.group is not None:
            groups = int(reference.group.max()) + 1
            guidance.views = ViewTerm(reference.group, groups, reference.R_camera_to_world)
        observed = self._observed(reference, self._keypoints(reference, settings)[..., 2])
        camera = "adam" if self.published else "solve"
        guidance.keypoints = KeypointTerm(self.chain, observed, reference.betas, reference.transl, camera=camera)
        return guidance, guidance.keypoints

    def _keypoints(self, estimates: EstimateBatch, settings: ScoreHmrSettings) -> Tensor:
        """The keypoints (n, 25, 3), with confidence 0 for the hips if these are not used."""
        if settings.use_hips:
            return estimates.keypoints
        keypoints = estimates.keypoints.clone()
        keypoints[:, HIPS, 2] = 0
        return keypoints

    def _observed(self, estimates: EstimateBatch, confidence: Tensor) -> Observed:
        xy = estimates.keypoints[..., :2]
        if self.published:
            sigma, weight = torch.full_like(estimates.size[:, 0], 100.0), 1000 / estimates.size.amax(1)
        else:
            side = _longer_side(xy, confidence)
            sigma, weight = EMBEDDED_SIGMA * side, 2 / side
        focal, center = estimates.K[:, [0, 1], [0, 1]], estimates.K[:, :2, 2]
        return Observed(xy, confidence, focal, center, sigma, weight)

    # ---- the camera that the weights were made for

    def in_reference_camera(self, estimates: EstimateBatch) -> EstimateBatch:
        """Rows without measured intrinsics get the published 5000 px and the middle of the image (w/2, h/2)."""
        if not self.published:
            return estimates
        default = ~estimates.K_known
        K = estimates.K.clone()
        K[default, 0, 0] = K[default, 1, 1] = REFERENCE_FOCAL
        K[default, :2, 2] = estimates.size[default] / 2
        # The same position in the image at the same size: depth scales with the focal length.
        z = estimates.transl[:, 2] * K[:, 0, 0] / estimates.K[:, 0, 0]
        focal, old_focal = K[:, [0, 1], [0, 1]], estimates.K[:, [0, 1], [0, 1]]
        in_image = estimates.transl[:, :2] / estimates.transl[:, 2:] * old_focal + estimates.K[:, :2, 2]
        transl = torch.cat([(in_image - K[:, :2, 2]) / focal * z[:, None], z[:, None]], -1)
        return dataclasses.replace(estimates, K=K, transl=torch.where(default[:, None], transl, estimates.transl))

    def _from_reference_camera(
        self,
        x0: Tensor,
        betas: Tensor,
        transl: Tensor,
        reference: EstimateBatch,
        estimates: EstimateBatch,
        settings: ScoreHmrSettings,
    ) -> Tensor:
        """The translation (n, 3) m in the rows' own cameras: rescaled, then solved for the visible keypoints."""
        if reference is estimates:
            return transl
        default = ~estimates.K_known
        z = transl[:, 2] * estimates.K[:, 0, 0] / reference.K[:, 0, 0]
        in_image = transl[:, :2] / transl[:, 2:] * reference.K[:, [0, 1], [0, 1]] + reference.K[:, :2, 2]
        xy = (in_image - estimates.K[:, :2, 2]) / estimates.K[:, [0, 1], [0, 1]] * z[:, None]
        start = torch.where(default[:, None], torch.cat([xy, z[:, None]], -1), transl)
        observed = self._observed(estimates, self._keypoints(estimates, settings)[..., 2])
        term = KeypointTerm(self.chain, observed, betas, start, camera="solve")
        term.solve_camera(x0, rounds=3)
        return torch.where(default[:, None], term.transl.t(), transl)

    def keypoint_error(self, pose: Tensor, betas: Tensor, transl: Tensor, estimates: EstimateBatch) -> Tensor:
        """Mean distance (n,) px between the visible keypoints and the body's; 0 where none is visible."""
        points = self.chain.forward(pose, self.chain.rest(betas)).points.permute(2, 0, 1) + transl[:, None]
        focal, center = estimates.K[:, None, [0, 1], [0, 1]], estimates.K[:, None, :2, 2]
        offset = points[..., :2] / points[..., 2:].clamp_min(0.05) * focal + center - estimates.keypoints[..., :2]
        visible = (estimates.keypoints[..., 2] > 0).to(offset.dtype)
        return (offset.norm(dim=-1) * visible).sum(1) / visible.sum(1).clamp_min(1)


def _longer_side(xy: Tensor, confidence: Tensor) -> Tensor:
    """Longer side (n,) in pixels of the box of the keypoints with confidence; 1 where there is none."""
    visible = (confidence > 0)[..., None]
    high = torch.where(visible, xy, xy.new_tensor(-torch.inf)).amax(1)
    low = torch.where(visible, xy, xy.new_tensor(torch.inf)).amin(1)
    side = (high - low).amax(1)
    return torch.where(torch.isfinite(side), side, torch.ones_like(side)).clamp_min(1)


def _noise(seed: Tensor, hypothesis: int, size: int) -> Tensor:
    """Noise (n, size) of the rows' hypotheses: the same whatever the batch."""
    generators = (torch.Generator().manual_seed(1_000_003 * row + hypothesis) for row in seed.tolist())
    return torch.stack([torch.randn(size, generator=g) for g in generators])
