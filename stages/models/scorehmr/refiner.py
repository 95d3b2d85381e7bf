"""ScoreHMR as a network over rows: estimates and evidence in, refined SMPL parameters out.

Knows two families of weights: the published checkpoints (conditioned on PARE or ProHMR features, with or without shape)
and the embedded pose prior (no condition, standardised poses). Which one decides what happens:

* published: the guided loop; squared full-picture pixels times (1000 / longer side of the picture)^2, 5000 px focal
  length unless the camera is known, translation by Adam;
* embedded: every row is weighed against its keypoints (weigh.py), in the picture's own camera; tracks and views then go
  through the loop, with residuals relative to the size of the person and the translation solved at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys, read_checkpoint
from stages.files.folders import packaged
from stages.geometry.rotations import matrix_to_rot6d_columns, rot6d_columns_to_matrix
from stages.models.base import EstimateBatch, RefinedBatch, Refiner
from stages.models.scorehmr import schedule
from stages.models.scorehmr.body25 import HIPS, chain_of
from stages.models.scorehmr.denoiser import Denoiser
from stages.models.scorehmr.feature_statistics import Statistics
from stages.models.scorehmr.gradient_fit import fit
from stages.models.scorehmr.guidance import Guidance, SmoothTerm, ViewTerm
from stages.models.scorehmr.kalman_update import KalmanUpdate
from stages.models.scorehmr.keypoint_term import KeypointTerm, Observed
from stages.models.scorehmr.linearized_body import POSE, LinearizedBody
from stages.models.scorehmr.multiview import MultiviewUpdate, SharedShape, ViewBatch
from stages.models.scorehmr.sampler import Codec, SamplingPlan, guided_sampling
from stages.models.scorehmr.translation_smoothing import smooth_translations
from stages.smpl.body import Body

EMBEDDED = packaged("data/prior.safetensors")
REFERENCE_FOCAL = 5000.0  # px, of the published checkpoints, whatever the picture
PREFIX = "ema.ema_model.model."


@dataclass(frozen=True)
class ScoreHmrSettings:
    """What a run does. `plan` and weights: see Plan and Guidance; `method` score or fit; the rest by name."""

    plan: SamplingPlan
    w_keypoints: float
    w_smooth: float = 30.0
    w_views: float = 0.005
    method: str = "score"
    fit_steps: int = 60
    fit_prior: float = 0.0
    use_hips: bool = True
    replace: bool = False
    hypotheses: int = 1
    spread: int = 200  # noise index up to which further hypotheses are blurred


class ScoreHmrRefiner(Refiner):
    """`condition`: "" (embedded prior), "pare" or "prohmr": the features it needs."""

    name, licence, batch_size = "scorehmr", "MIT", 128

    def __init__(
        self,
        denoiser: Denoiser,
        body: Body,
        codec: Codec,
        condition: str = "",
        statistics: Statistics | None = None,
        device: str = "cpu",
        covariance: Tensor | None = None,
    ) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False).to(device)
        self.body, self.codec, self.condition, self.statistics = body, codec, condition, statistics
        self.chain, self.schedule, self.device = chain_of(body), schedule.Schedule.cosine(), device
        linearized = LinearizedBody(self.chain)
        self.weigher = None if covariance is None else KalmanUpdate(covariance.to(device), linearized)
        self.multiview = MultiviewUpdate(linearized, self.weigher)

    # ---- weights

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return f"{PREFIX}final_mlp.weight" in names or {"mean", "std", "final_mlp.weight"} <= names

    @classmethod
    def conditioned_on(cls, checkpoint: Checkpoint) -> str:
        """Which features the weights need: "pare", "prohmr" or none ("")."""
        norm = checkpoint.tensors.get(f"{PREFIX}blocks.0.block.layer_norm1.weight")
        return "" if norm is None else "prohmr" if len(norm) == 144 + 2048 else "pare"

    @classmethod
    def load(
        cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body, stats: str | None = None
    ) -> ScoreHmrRefiner:
        """From a published `model-100.pt` (its `ema` weights), or the embedded prior without a checkpoint.

        `stats`: the statistics file of the features, if not beside the checkpoint. Raises AssetError.
        """
        checkpoint = checkpoint or read_checkpoint(EMBEDDED)
        tensors = dict(checkpoint.tensors)
        if "mean" in tensors:
            return cls._embedded(checkpoint, tensors, body, device)
        _check_schedule(checkpoint)
        weights = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
        if not weights:
            raise AssetError(
                f"{checkpoint.where} holds no {PREFIX}* weights", "give ScoreHMR's model-100.pt, or no --ckpt at all"
            )
        inputs = weights.get("blocks.0.block.layer_norm1.weight")
        if inputs is None:
            raise AssetError(
                f"{checkpoint.where} lacks {PREFIX}blocks.0.block.layer_norm1.weight", "is the file whole?"
            )
        betas = weights.get("blocks_betas.0.block.layer_norm1.weight")
        size = len(inputs) - 144
        net = Denoiser(size, 0 if betas is None else len(betas) - 10)
        check_keys(net.state_dict(), weights, where=checkpoint.where)
        net.load_state_dict(weights)
        kind = cls.conditioned_on(checkpoint)
        codec = Codec() if betas is None else _betas_codec(checkpoint)
        made = cls(net, body, codec, kind, Statistics.find(kind, checkpoint.path, stats), device)
        return made

    @classmethod
    def _embedded(cls, checkpoint: Checkpoint, tensors: dict[str, Tensor], body: Body, device: str) -> ScoreHmrRefiner:
        tensors = {name: value.float() for name, value in tensors.items()}
        codec = Codec(tensors.pop("mean").to(device), tensors.pop("std").to(device))
        covariance = tensors.pop("error_covariance", torch.zeros(0))
        if covariance.shape != (POSE, POSE):
            raise AssetError(f"{checkpoint.where} has no error_covariance ({POSE}, {POSE})", "make it: hmr train prior")
        if torch.linalg.cholesky_ex(covariance.double())[1]:
            raise AssetError(f"error_covariance of {checkpoint.where} is not positive definite", "is the file whole?")
        blocks = 1 + max((int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")), default=0)
        hidden = tensors.get("blocks.0.block.layer_norm2.weight", torch.zeros(1024))
        net = Denoiser(0, hidden=len(hidden), blocks=blocks)
        check_keys(net.state_dict(), tensors, where=checkpoint.where)
        net.load_state_dict(tensors)
        return cls(net, body, codec, device=device, covariance=covariance)

    @property
    def published(self) -> bool:
        return bool(self.condition)

    def preset(self, name: str, *, alone: bool = True) -> ScoreHmrSettings:
        """`paper` (step 2), `fast` (step 10), `default`: what suits the weights. `alone`: neither tracks nor views, or
        views of a rig whose places are known, which share one body without the loop."""
        if self.published:
            return ScoreHmrSettings(SamplingPlan(step=10 if name == "fast" else 2), w_keypoints=0.003)
        own = dataclasses.replace(EMBEDDED_PLAN, loops=0) if alone else EMBEDDED_PLAN
        return ScoreHmrSettings(
            {"paper": SamplingPlan(), "fast": SamplingPlan(step=10)}.get(name, own), w_keypoints=EMBEDDED_WEIGHT
        )

    # ---- running

    @torch.no_grad()
    def __call__(self, seen: EstimateBatch, settings: ScoreHmrSettings) -> RefinedBatch:
        """Refine n rows. Rows do not influence each other but through `linked` and `group`."""
        seen = seen.each(lambda v: v.to(self.device))
        if settings.hypotheses > 1:
            return self._several(seen, settings)
        return self._run(matrix_to_rot6d_columns(seen.rotmat).flatten(1), seen, settings)

    def _run(
        self, pose: Tensor, seen: EstimateBatch, settings: ScoreHmrSettings, guess: Tensor | None = None
    ) -> RefinedBatch:
        before = self._error(matrix_to_rot6d_columns(seen.rotmat).flatten(1), seen.betas, seen.transl, seen)
        energy = before
        if self.weigher is not None and settings.method == "score" and seen.t is None:
            shared = seen.linked is not None or seen.group is not None
            pose, betas, transl, energy = self.weigher(
                pose, seen.betas, seen.transl, self._used(seen, settings), seen.K, guess=guess, keep_shape=shared
            )
            seen = dataclasses.replace(seen, betas=betas, transl=transl)
        guidance, scene = self._guidance(seen, settings)
        x0, betas, transl = pose, seen.betas, scene.transl
        if settings.method == "fit":
            for x0, transl in fit(pose, guidance, settings.fit_steps, prior=settings.fit_prior):  # noqa: B007
                pass
        elif settings.plan.loops:
            x = self.codec.encode(pose, seen.betas)
            eps = self.denoiser.condition(self._conditions(seen), settings.plan.times)
            out = guided_sampling(eps, self.schedule, x, guidance, settings.plan, self.codec)
            x0, made = self.codec.decode(out.x0)
            betas = seen.betas if made is None else made
            transl = scene.transl if out.transl is None else out.transl
        if self.published and guidance.keypoints is not None:
            energy = guidance.losses.get("keypoints", energy)
        transl = self._back_to_scene(x0, betas, transl, scene, seen, settings)
        if seen.linked is not None and guidance.keypoints is not None and not self.published:
            transl = smooth_translations(guidance.keypoints.information(x0), transl, seen.linked)
        if seen.t is not None:
            update = self.multiview if settings.method == "score" else MultiviewUpdate(self.multiview.linearized, None)
            placed = dataclasses.replace(seen, betas=betas, transl=transl)
            x0, betas, transl, energy = update(self._views(x0, placed, settings))
        rotmat = rot6d_columns_to_matrix(x0.view(-1, 24, 6))
        return RefinedBatch(
            rotmat, betas, transl, torch.stack([before, self._error(x0, betas, transl, seen)], -1), energy
        )

    @torch.no_grad()
    def shape(self, seen: EstimateBatch, settings: ScoreHmrSettings) -> SharedShape:
        """What the moments of one person in several views say of its betas."""
        seen = seen.each(lambda v: v.to(self.device))
        return self.multiview.shape(self._views(matrix_to_rot6d_columns(seen.rotmat).flatten(1), seen, settings))

    def _views(self, pose: Tensor, seen: EstimateBatch, settings: ScoreHmrSettings) -> ViewBatch:
        assert seen.turn is not None and seen.t is not None and seen.group is not None and seen.known_shape is not None
        R = seen.turn.transpose(1, 2)
        used = self._used(seen, settings)
        return ViewBatch(pose, seen.betas, seen.transl, used, seen.K, R, seen.t, seen.group, seen.known_shape)

    def _several(self, seen: EstimateBatch, settings: ScoreHmrSettings) -> RefinedBatch:
        """Refine the estimate and `hypotheses - 1` poses that the prior draws around it: the likeliest, and all."""
        pose = matrix_to_rot6d_columns(seen.rotmat).flatten(1)
        made = [self._run(pose, seen, settings)]
        for k in range(1, settings.hypotheses):
            made.append(self._run(*self._drawn(pose, seen, settings, k)))
        names = ("rotmat", "betas", "transl", "error", "energy")
        stacked: dict[str, Any] = {name: torch.stack([getattr(m, name) for m in made], 1) for name in names}
        rows, best = torch.arange(len(pose), device=pose.device), stacked["energy"].argmin(1)
        chosen: dict[str, Any] = {name: value[rows, best] for name, value in stacked.items()}
        return RefinedBatch(**chosen, hypotheses=RefinedBatch(**stacked))

    def _drawn(self, pose: Tensor, seen: EstimateBatch, settings: ScoreHmrSettings, k: int) -> tuple[Any, ...]:
        """What _run is given for the k-th hypothesis: the same noise for a row whatever its batch."""
        if self.weigher is not None:  # an error drawn from the measured covariance
            noise = _noise(seen.seed, k, POSE).to(self.weigher.factor)
            return pose, seen, settings, noise @ self.weigher.factor.t()
        times = schedule.down(settings.spread, 10)
        eps = self.denoiser.condition(self._conditions(seen), times)
        x = self.codec.encode(pose, seen.betas)
        noise = _noise(seen.seed, k, x.shape[1]).to(x)
        x = self.schedule.add_noise(x, noise, torch.full((len(x),), settings.spread, device=x.device))
        for t in times:
            guess = eps(x, t)
            x = self.schedule.move(self.schedule.x0(x, guess, t), guess, max(t - 10, 0))
        return self.codec.decode(x)[0], seen, settings

    def _conditions(self, seen: EstimateBatch) -> Tensor:
        if not self.published:
            return seen.rotmat.new_zeros(len(seen.rotmat), 0)
        if seen.features is None or self.statistics is None:
            raise AssetError(
                f"this checkpoint is conditioned on {self.condition} features", "make them: hmr features --model pare"
            )
        mean, std = self.statistics.mean.to(self.device), self.statistics.std.to(self.device)
        return ((seen.features - mean) / std)[:, : self.denoiser.condition_size + self.denoiser.betas_condition]

    def _guidance(self, seen: EstimateBatch, settings: ScoreHmrSettings) -> tuple[Guidance, EstimateBatch]:
        """The terms of this run, and the evidence in the camera that the weights were made for."""
        scene = self._reference_camera(seen)
        guidance = Guidance(
            w_keypoints=settings.w_keypoints,
            w_views=settings.w_views if self.published else settings.w_views * EMBEDDED_VIEWS,
            w_smooth=settings.w_smooth if self.published else settings.w_smooth * EMBEDDED_SMOOTH,
            replace=settings.replace,
            damped=not self.published,
        )
        if seen.linked is not None:
            guidance.smooth = SmoothTerm(seen.linked)
        if seen.group is not None:
            guidance.views = ViewTerm(seen.group, int(seen.group.max()) + 1, seen.turn)
        guidance.keypoints = KeypointTerm(
            self.chain, self._observed(scene, self._used(scene, settings)[..., 2]), seen.betas, scene.transl,
            camera="adam" if self.published else "solve",
        )  # fmt: skip
        return guidance, scene

    def _used(self, seen: EstimateBatch, settings: ScoreHmrSettings) -> Tensor:
        """The keypoints (n, 25, 3), without hips if they are not wanted."""
        if settings.use_hips:
            return seen.keypoints
        keypoints = seen.keypoints.clone()
        keypoints[:, HIPS, 2] = 0
        return keypoints

    def _observed(self, scene: EstimateBatch, confidence: Tensor) -> Observed:
        xy = scene.keypoints[..., :2]
        if self.published:
            sigma, weight = torch.full_like(scene.size[:, 0], 100.0), 1000 / scene.size.amax(1)
        else:
            side = _side(xy, confidence)
            sigma, weight = EMBEDDED_SIGMA * side, 2 / side
        focal, center = scene.K[:, [0, 1], [0, 1]], scene.K[:, :2, 2]
        return Observed(xy, confidence, focal, center, sigma, weight)

    def _reference_camera(self, seen: EstimateBatch) -> EstimateBatch:
        """Rows without measured intrinsics get the published 5000 px and the middle of the picture (w/2, h/2)."""
        if not self.published:
            return seen
        guess = ~seen.known
        K = seen.K.clone()
        K[guess, 0, 0] = K[guess, 1, 1] = REFERENCE_FOCAL
        K[guess, :2, 2] = seen.size[guess] / 2
        # The same place in the picture at the same size: depth scales with the focal length.
        z = seen.transl[:, 2] * K[:, 0, 0] / seen.K[:, 0, 0]
        focal, old = K[:, [0, 1], [0, 1]], seen.K[:, [0, 1], [0, 1]]
        place = seen.transl[:, :2] / seen.transl[:, 2:] * old + seen.K[:, :2, 2]
        transl = torch.cat([(place - K[:, :2, 2]) / focal * z[:, None], z[:, None]], -1)
        return dataclasses.replace(seen, K=K, transl=torch.where(guess[:, None], transl, seen.transl))

    def _back_to_scene(
        self,
        x0: Tensor,
        betas: Tensor,
        transl: Tensor,
        scene: EstimateBatch,
        seen: EstimateBatch,
        settings: ScoreHmrSettings,
    ) -> Tensor:
        """The translation in the rows' own cameras: rescaled, then solved for the points seen."""
        if scene is seen:
            return transl
        moved = ~seen.known
        z = transl[:, 2] * seen.K[:, 0, 0] / scene.K[:, 0, 0]
        place = transl[:, :2] / transl[:, 2:] * scene.K[:, [0, 1], [0, 1]] + scene.K[:, :2, 2]
        xy = (place - seen.K[:, :2, 2]) / seen.K[:, [0, 1], [0, 1]] * z[:, None]
        begin = torch.where(moved[:, None], torch.cat([xy, z[:, None]], -1), transl)
        observed = self._observed(seen, self._used(seen, settings)[..., 2])
        term = KeypointTerm(self.chain, observed, betas, begin, camera="solve")
        term.solve_camera(x0, rounds=3)
        return torch.where(moved[:, None], term.transl.t(), transl)

    def _error(self, pose: Tensor, betas: Tensor, transl: Tensor, seen: EstimateBatch) -> Tensor:
        """Mean distance (n,) in pixels between the seen points and the body's; 0 where nothing is seen."""
        points = self.chain.forward(pose, self.chain.rest(betas)).points.permute(2, 0, 1) + transl[:, None]
        focal, center = seen.K[:, None, [0, 1], [0, 1]], seen.K[:, None, :2, 2]
        away = points[..., :2] / points[..., 2:].clamp_min(0.05) * focal + center - seen.keypoints[..., :2]
        there = (seen.keypoints[..., 2] > 0).to(away.dtype)
        return (away.norm(dim=-1) * there).sum(1) / there.sum(1).clamp_min(1)


# Units of the embedded prior, whose poses are standardised and whose residuals are relative to the person's size.
# Chosen on subjects that are neither trained on nor tested on. Low noise indices in small steps: inversion and sampling
# in large ones do not cancel, and the recoverer's estimate is better than that error.
EMBEDDED_PLAN = SamplingPlan(loops=14, start=20, step=2)
EMBEDDED_WEIGHT = 2e4
EMBEDDED_SIGMA = 0.2
EMBEDDED_SMOOTH = 1000.0
EMBEDDED_VIEWS = 100.0


def _side(xy: Tensor, confidence: Tensor) -> Tensor:
    """Longer side (n,) in pixels of the box of the points with confidence; 1 where there is none."""
    there = (confidence > 0)[..., None]
    high = torch.where(there, xy, xy.new_tensor(-torch.inf)).amax(1)
    low = torch.where(there, xy, xy.new_tensor(torch.inf)).amin(1)
    side = (high - low).amax(1)
    return torch.where(torch.isfinite(side), side, torch.ones_like(side)).clamp_min(1)


def _noise(seed: Tensor, which: int, size: int) -> Tensor:
    """Noise (n, size) of the rows' hypotheses: the same whatever the batch."""
    generators = (torch.Generator().manual_seed(1_000_003 * row + which) for row in seed.tolist())
    return torch.stack([torch.randn(size, generator=g) for g in generators])


def _check_schedule(checkpoint: Checkpoint) -> None:
    """The schedule is computed here; a file that carries another was made for another sampler."""
    own = schedule.tables()["alphas_cumprod"]
    stored = checkpoint.tensors.get("ema.ema_model.alphas_cumprod")
    if stored is not None and (len(stored) != len(own) or not torch.allclose(stored, torch.from_numpy(own), atol=1e-4)):
        raise AssetError(
            f"{checkpoint.where} was trained with another noise schedule", "only the cosine one of 1000 is known"
        )


def _betas_codec(checkpoint: Checkpoint) -> Codec:
    """Range of the betas from `betas_stats_eft_fits.npz` beside the checkpoint."""
    import numpy as np

    name = "betas_stats_eft_fits.npz"
    near: Iterable[Path] = (checkpoint.path.parent / name, checkpoint.path.parent.parent.parent / "stats" / name)
    path = next((p for p in near if p.exists()), None)
    if path is None:
        raise AssetError(f"{checkpoint.where} predicts shape and needs {name}", f"put {name} beside the checkpoint")
    with np.load(path, allow_pickle=False) as file:
        low, high = (torch.from_numpy(file[key].astype(np.float32)) for key in ("betas_min", "betas_max"))
    return Codec(betas_low=low, betas_high=high)
