"""Statistics of image features: the denoiser was trained on (f - mean) / std."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.errors import AssetError

# The names inside the published files, in the order of the features.
NAMES = {"pare": ("pose_feats", "cam_shape_feats"), "prohmr": ("",)}
FILES = {"pare": "pare_feat_stats.npz", "prohmr": "prohmr_feat_stats.npz"}


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation (C,) of one kind of feature; called on features (n, C) it standardises them."""

    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray | Tensor]) -> dict[str, Statistics]:
        """Every kind of feature whose statistics `arrays` hold, by its name."""
        statistics = {}
        for kind, parts in NAMES.items():
            stems = [f"{part}_" if part else "" for part in parts]
            if all(f"{stem}{what}" in arrays for stem in stems for what in ("mean", "std")):
                mean_and_std = [
                    torch.cat([torch.as_tensor(arrays[stem + what]).float().flatten() for stem in stems])
                    for what in ("mean", "std")
                ]
                statistics[kind] = cls(*mean_and_std)
        return statistics

    @classmethod
    def read(cls, kind: str, path: Path) -> Statistics:
        """From a published statistics file. Raises AssetError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                statistics = cls.from_arrays(dict(file))
        except (OSError, ValueError, EOFError) as error:
            raise AssetError(
                f"{path} cannot be read as feature statistics: {error}", f"expected {FILES[kind]}"
            ) from error
        if kind not in statistics:
            raise AssetError(f"{path} holds no statistics of {kind} features", f"expected {FILES[kind]}")
        return statistics[kind]

    @classmethod
    def find(cls, kind: str, checkpoint: Path, stats: str | None = None) -> Statistics:
        """From the file `stats`, else the published name beside the checkpoint or in the release's stats folder."""
        candidates = [checkpoint.parent / FILES[kind], checkpoint.parent.parent.parent / "stats" / FILES[kind]]
        path = Path(stats) if stats else next((p for p in candidates if p.exists()), None)
        if path is None or not path.exists():
            raise AssetError(
                f"{kind} features must be standardised, and {stats or FILES[kind]} is not there",
                f"put {FILES[kind]} of the ScoreHMR release beside the checkpoint, or name it by --stats FILE",
            )
        return cls.read(kind, path)
