"""ScoreHMR's weights: the published `model-100.pt`, and the pose prior that comes with this package.

The published checkpoints are conditioned on PARE or ProHMR features, with or without shape; the embedded prior has no
condition, works on standardised poses and holds the covariance of the embedded recoverer's error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys
from stages.files.folders import packaged
from stages.models.scorehmr import schedule
from stages.models.scorehmr.denoiser import Denoiser
from stages.models.scorehmr.feature_statistics import Statistics
from stages.models.scorehmr.linearized_body import POSE_SIZE
from stages.models.scorehmr.sampler import Codec

EMBEDDED = packaged("data/prior.safetensors")
PREFIX = "ema.ema_model.model."
FIRST_NORM = f"{PREFIX}blocks.0.block.layer_norm1.weight"


@dataclass
class ScoreHmrWeights:
    """condition: "pare" or "prohmr", the features that the denoiser is conditioned on, '' for the embedded prior ·
    statistics: of those features · covariance (82, 82): of the error of an estimate, embedded prior alone."""

    denoiser: Denoiser
    codec: Codec
    condition: str = ""
    statistics: Statistics | None = None
    covariance: Tensor | None = None


def recognises(names: frozenset[str]) -> bool:
    return f"{PREFIX}final_mlp.weight" in names or {"mean", "std", "final_mlp.weight"} <= names


def condition_of(checkpoint: Checkpoint) -> str:
    """The features that the weights are conditioned on: "pare", "prohmr" or none ('')."""
    norm = checkpoint.tensors.get(FIRST_NORM)
    return "" if norm is None else "prohmr" if len(norm) == 144 + 2048 else "pare"


def read_weights(checkpoint: Checkpoint, stats: str | None, device: str) -> ScoreHmrWeights:
    """stats: file with the statistics of the features, if not beside the checkpoint. Raises AssetError."""
    return _embedded(checkpoint, device) if "mean" in checkpoint.tensors else _published(checkpoint, stats)


def _published(checkpoint: Checkpoint, stats: str | None) -> ScoreHmrWeights:
    """The `ema` weights of `model-100.pt`."""
    _check_schedule(checkpoint)
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint.tensors.items() if k.startswith(PREFIX)}
    if not weights:
        raise AssetError(
            f"{checkpoint.where} holds no {PREFIX}* weights", "give ScoreHMR's model-100.pt, or no --ckpt at all"
        )
    norm = weights.get(FIRST_NORM.removeprefix(PREFIX))
    if norm is None:
        raise AssetError(f"{checkpoint.where} lacks {FIRST_NORM}", "is the file whole?")
    betas_norm = weights.get("blocks_betas.0.block.layer_norm1.weight")
    denoiser = Denoiser(len(norm) - 144, 0 if betas_norm is None else len(betas_norm) - 10)
    check_keys(denoiser.state_dict(), weights, where=checkpoint.where)
    denoiser.load_state_dict(weights)
    condition = condition_of(checkpoint)
    codec = Codec() if betas_norm is None else _betas_codec(checkpoint)
    return ScoreHmrWeights(denoiser, codec, condition, Statistics.find(condition, checkpoint.path, stats))


def _embedded(checkpoint: Checkpoint, device: str) -> ScoreHmrWeights:
    tensors = {name: value.float() for name, value in checkpoint.tensors.items()}
    codec = Codec(tensors.pop("mean").to(device), tensors.pop("std").to(device))
    covariance = tensors.pop("error_covariance", torch.zeros(0))
    if covariance.shape != (POSE_SIZE, POSE_SIZE):
        raise AssetError(
            f"{checkpoint.where} has no error_covariance ({POSE_SIZE}, {POSE_SIZE})", "make it: hmr train prior"
        )
    if torch.linalg.cholesky_ex(covariance.double())[1]:
        raise AssetError(f"error_covariance of {checkpoint.where} is not positive definite", "is the file whole?")
    blocks = 1 + max((int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")), default=0)
    hidden = tensors.get("blocks.0.block.layer_norm2.weight", torch.zeros(1024))
    denoiser = Denoiser(0, hidden=len(hidden), blocks=blocks)
    check_keys(denoiser.state_dict(), tensors, where=checkpoint.where)
    denoiser.load_state_dict(tensors)
    return ScoreHmrWeights(denoiser, codec, covariance=covariance)


def _check_schedule(checkpoint: Checkpoint) -> None:
    """The schedule is computed here; a file that carries another was made for another sampler."""
    computed = torch.from_numpy(schedule.tables()["alphas_cumprod"])
    stored = checkpoint.tensors.get("ema.ema_model.alphas_cumprod")
    if stored is not None and (len(stored) != len(computed) or not torch.allclose(stored, computed, atol=1e-4)):
        raise AssetError(
            f"{checkpoint.where} was trained with another noise schedule", "only the cosine one of 1000 is known"
        )


def _betas_codec(checkpoint: Checkpoint) -> Codec:
    """Range of the betas from `betas_stats_eft_fits.npz` beside the checkpoint."""
    name = "betas_stats_eft_fits.npz"
    candidates: Iterable[Path] = (checkpoint.path.parent / name, checkpoint.path.parent.parent.parent / "stats" / name)
    path = next((p for p in candidates if p.exists()), None)
    if path is None:
        raise AssetError(f"{checkpoint.where} predicts shape and needs {name}", f"put {name} beside the checkpoint")
    with np.load(path, allow_pickle=False) as file:
        low, high = (torch.from_numpy(file[key].astype(np.float32)) for key in ("betas_min", "betas_max"))
    return Codec(betas_low=low, betas_high=high)
