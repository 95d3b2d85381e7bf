"""What every augmentation of crops has in common. What is drawn, and for which crop, is each network's own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11


@dataclasses.dataclass
class Augmentation:
    """The augmentation of n crops. scale (n,) · angle (n,) rad · gains (n, 3) of the colours · mirrored (n,) bool."""

    scale: np.ndarray
    angle: np.ndarray
    gains: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def none(cls, n: int) -> Self:
        return cls(np.ones(n), np.zeros(n), np.ones((n, 3)), np.zeros(n, bool))

    def linear(self, factor: np.ndarray) -> np.ndarray:
        """(n, 2, 2): first mirrored, then rotated, as the bodies are, then scaled by `factor` (n,)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        linear = np.stack([c, -s, s, c], 1).reshape(-1, 2, 2) * factor[:, None, None]
        linear[:, :, 0] *= np.where(self.mirrored, -1, 1)[:, None]
        return linear

    def swap_sides(self, points: np.ndarray, order: np.ndarray) -> np.ndarray:
        """points (n, J, ...) of the crops, those of mirrored crops in `order`: mirroring exchanges left and right."""
        mirrored = self.mirrored.reshape(-1, *[1] * (points.ndim - 1))
        return np.where(mirrored, points[:, order], points)
