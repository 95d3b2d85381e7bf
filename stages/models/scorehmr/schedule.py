"""The cosine noise schedule and the two deterministic (DDIM) moves over it.

Source: Nichol & Dhariwal 2021, eq. 17 (schedule); Song et al. 2021, eq. 12 with eta = 0 (moves); ScoreHMR's mixture of
roundings. Tables are built in float64 and rounded once: a float32 product is off by 1e-4 in the final pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STEPS = 1000


def tables(steps: int = STEPS) -> dict[str, np.ndarray]:
    """The 13 float32 tables of `steps` entries that a published checkpoint carries, by their names in the file."""
    u = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = np.clip(1 - f[1:] / f[:-1], 0, 0.999)
    alphas = 1 - betas
    product = np.cumprod(alphas)
    before = np.concatenate([[1.0], product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    result = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(product),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - product),
        "log_one_minus_alphas_cumprod": np.log(1 - product),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / product),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / product - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - product),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - product),
        "p2_loss_weight": np.ones(steps),
    }
    return {name: table.astype(np.float32) for name, table in result.items()}


@dataclass(frozen=True)
class Schedule:
    """The scalars that the loop needs, as Python floats holding float32 values.

    `keep`, `noise`: sqrt(a), sqrt(1 - a) taken in float32 from the float32 table (the moves use these);
    `recip`, `recipm1`, `sigma`: sqrt(1/a), sqrt(1/a - 1), sqrt(1 - a) rounded from float64 (x0 and guidance use these),
    and so is `mean`, sqrt(a), for training.
    At small t the two kinds differ by up to 3e-4 relative; the reference mixes them, so do we.
    """

    keep: list[float]
    noise: list[float]
    mean: list[float]
    recip: list[float]
    recipm1: list[float]
    sigma: list[float]

    @classmethod
    def cosine(cls) -> Schedule:
        result = tables()
        a = result["alphas_cumprod"]
        return cls(
            keep=np.sqrt(a).tolist(),
            noise=np.sqrt(np.float32(1) - a).tolist(),
            mean=result["sqrt_alphas_cumprod"].tolist(),
            recip=result["sqrt_recip_alphas_cumprod"].tolist(),
            recipm1=result["sqrt_recipm1_alphas_cumprod"].tolist(),
            sigma=result["sqrt_one_minus_alphas_cumprod"].tolist(),
        )

    def x0(self, x: Tensor, eps: Tensor, t: int) -> Tensor:
        """The one-step estimate of the clean vector from the latent x (n, D) and the noise eps (n, D) at index t."""
        return torch.sub(x * self.recip[t], eps, alpha=self.recipm1[t])

    def move(self, x0: Tensor, eps: Tensor, to: int) -> Tensor:
        """The latent at index `to`, up or down, on the line that x0 and eps (n, D) span."""
        return torch.add(x0 * self.keep[to], eps, alpha=self.noise[to])

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Forward diffusion: rows x0, noise (n, D) at the rows' own indices t (n,)."""
        a = torch.tensor(self.mean, device=x0.device)[t, None]
        s = torch.tensor(self.sigma, device=x0.device)[t, None]
        return a * x0 + s * noise


def down(start: int, step: int) -> list[int]:
    """start, start - step, ..., step: the indices of one guided sampling pass."""
    return list(range(start, 0, -step))
