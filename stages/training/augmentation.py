"""What every augmentation of crops has in common; what is drawn, and which crop it changes, is the network's own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11


@dataclasses.dataclass
class Augmentation:
    """What augmentation does to n crops. scale (n,) · angle (n,) rad · gains (n, 3) · mirrored (n,) bool."""

    scale: np.ndarray
    angle: np.ndarray
    gains: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def none(cls, n: int) -> Self:
        return cls(np.ones(n), np.zeros(n), np.ones((n, 3)), np.zeros(n, bool))

    def linear(self, factor: np.ndarray) -> np.ndarray:
        """(n, 2, 2): first mirrored, then turned, as the bodies are, then enlarged by `factor` (n,)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        linear = np.stack([c, -s, s, c], 1).reshape(-1, 2, 2) * factor[:, None, None]
        linear[:, :, 0] *= np.where(self.mirrored, -1, 1)[:, None]
        return linear

    def named(self, points: np.ndarray, order: np.ndarray) -> np.ndarray:
        """points (n, J, ...) of the crops with `order` for the mirrored ones: mirroring moves left to right."""
        mirrored = self.mirrored.reshape(-1, *[1] * (points.ndim - 1))
        return np.where(mirrored, points[:, order], points)
