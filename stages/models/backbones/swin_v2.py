"""Swin Transformer V2 as PCT publishes it (base, large, huge), for images of 256 x 256.

Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution": post-norm residuals, scaled cosine attention,
log-spaced continuous position bias. All norms use eps 1e-6. Names are those of PCT's files; the two saved buffers
(`relative_coords_table`, `relative_position_index`) follow from the sizes and are computed here.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = {"base": (2, 2, 18, 2), "large": (2, 2, 18, 2), "huge": (2, 2, 42, 2)}
WIDTHS = {"base": 128, "large": 192, "huge": 256}
HEAD = 32  # channels a head, in every size
GRIDS = (64, 32, 16, 8)
WINDOWS = (16, 16, 16, 8)
PRETRAINED_WINDOWS = (12, 12, 12, 6)  # the position table is spaced by these, not by the windows in use
EPS = 1e-6
MAX_LOG_SCALE = math.log(100.0)


class SwinV2(nn.Module):
    """Images (n, 3, 256, 256), ImageNet-normalised RGB, to a map (n, 8 width, 8, 8).

    `prepare()` computes once the terms that do not depend on the image (position bias, shift masks, scales) and makes
    attention fused. Without it, or after `train()`, everything is computed at each call in the published order.
    """

    def __init__(self, width: int = 128, depths: tuple[int, ...] = DEPTHS["base"]) -> None:
        super().__init__()
        self.channels = 8 * width
        self.patch_embed = PatchEmbedding(width)
        self.layers = nn.ModuleList(SwinStage(width << k, depth, k) for k, depth in enumerate(depths))
        self.norm3 = nn.LayerNorm(8 * width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for stage in self.layers:
            x = stage(x)
        return self.norm3(x).transpose(1, 2).unflatten(2, (GRIDS[3], GRIDS[3]))

    @torch.no_grad()
    def prepare(self) -> SwinV2:
        """Cache all image-independent terms of attention for evaluation."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.prepare()
        return self

    def train(self, mode: bool = True) -> SwinV2:
        if mode:
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.cached = None
        return super().train(mode)


class PatchEmbedding(nn.Module):
    """4 x 4 patches to `width` channels, normalised: (n, 3, H, W) to (n, width, H/4, W/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SwinStage(nn.Module):
    """The blocks of one resolution, (n, grid^2, channels) to the same shape, and, but for the last, a halved grid."""

    def __init__(self, channels: int, depth: int, level: int) -> None:
        super().__init__()
        # One window that covers the grid cannot be shifted.
        shift = WINDOWS[level] // 2 if WINDOWS[level] < GRIDS[level] else 0
        self.blocks = nn.ModuleList(SwinBlock(channels, level, shift if k % 2 else 0) for k in range(depth))
        self.downsample = PatchMerging(channels, GRIDS[level]) if level < 3 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class SwinBlock(nn.Module):
    """x + norm(attention(x)), then x + norm(mlp(x)): the norms are on the branches, after them."""

    def __init__(self, channels: int, level: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, EPS)
        self.attn = WindowAttention(channels, level, shift)
        self.norm2 = nn.LayerNorm(channels, EPS)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class MLP(nn.Module):
    """Linear to four times the width, exact GELU, linear back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchMerging(nn.Module):
    """2 x 2 neighbours to one token of twice the channels: (0,0), (1,0), (0,1), (1,1) joined, linear, then norm."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        n, _, c = x.shape
        half = self.grid // 2
        x = x.view(n, half, 2, half, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(n, half * half, 4 * c)
        return self.norm(self.reduction(x))


class WindowAttention(nn.Module):
    """Cosine attention within windows of the grid, shifted by `shift`: (n, grid^2, channels) to the same shape."""

    def __init__(self, channels: int, level: int, shift: int) -> None:
        super().__init__()
        self.level, self.shift, self.heads = level, shift, channels // HEAD
        self.logit_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(10.0)))
        self.rpe_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, self.heads, bias=False))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, channels)
        self.cached: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        n, _, c = x.shape
        bias, scale, qkv_bias = self.cached or self.terms()
        window, grid = WINDOWS[self.level], GRIDS[self.level]
        if window < grid:
            x = to_windows(x.view(n, grid, grid, c), window, self.shift)
        qkv = F.linear(x, self.qkv.weight, qkv_bias).view(-1, window * window, 3, self.heads, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        # A mask for each window: put windows beside heads, so that images share it.
        q, k, v = (t.reshape(n, -1, *t.shape[2:]) for t in (q, k, v)) if bias.shape[0] > 1 else (q, k, v)
        scale, bias = scale.repeat(bias.shape[0], 1, 1), bias.flatten(0, 1)
        if self.cached:
            out = F.scaled_dot_product_attention(q * scale, k, v, bias[None], scale=1.0)
        else:
            # The published order of operations: where attention is sharp (scale 100), another order's rounding grows
            # to some 1e-4 of the map over the layers.
            out = torch.softmax(q @ k.transpose(-1, -2) * scale + bias, dim=-1) @ v
        out = self.proj(out.reshape(-1, self.heads, window * window, HEAD).transpose(1, 2).flatten(2))
        if window < grid:
            out = from_windows(out, grid, window, self.shift).view(n, grid * grid, c)
        return out

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image-independent terms: bias (1 or windows, heads, w^2, w^2), scale (heads, 1, 1), qkv bias (3c,)."""
        window, grid = WINDOWS[self.level], GRIDS[self.level]
        table = log_offsets(window, PRETRAINED_WINDOWS[self.level]).to(self.qkv.weight)
        values = 16 * torch.sigmoid(self.rpe_mlp(table))  # (2w - 1)^2, heads
        index = offset_index(window).to(values.device)
        bias = values[index].permute(2, 0, 1)[None]
        if self.shift:
            bias = bias + shift_mask(grid, window, self.shift).to(bias)[:, None]
        scale = self.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        return bias, scale, torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])

    def prepare(self) -> None:
        self.cached = tuple(t.detach().contiguous() for t in self.terms())  # type: ignore[assignment]


def to_windows(x: Tensor, window: int, shift: int) -> Tensor:
    """(n, grid, grid, c), rolled up and left by `shift`, to (n windows, window^2, c)."""
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    n, grid, _, c = x.shape
    count = grid // window
    x = x.view(n, count, window, count, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


def from_windows(x: Tensor, grid: int, window: int, shift: int) -> Tensor:
    """The inverse of `to_windows`: (n, grid, grid, c)."""
    count = grid // window
    x = x.view(-1, count, count, window, window, x.shape[-1]).transpose(2, 3).reshape(-1, grid, grid, x.shape[-1])
    return x.roll((shift, shift), (1, 2)) if shift else x


@functools.cache
@torch.inference_mode(False)  # cached for inference and training alike
def log_offsets(window: int, pretrained: int) -> Tensor:
    """((2w - 1)^2, 2) log-spaced (row, column) offsets of query minus key.

    sign(o) log2(|o| + 1) / 3 with o = 8 offset / (pretrained - 1).
    """
    offset = torch.arange(1 - window, window, dtype=torch.float32) * 8 / (pretrained - 1)
    spaced = offset.sign() * torch.log2(offset.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(spaced, spaced, indexing="ij"), dim=-1).flatten(0, 1)


@functools.cache
@torch.inference_mode(False)
def offset_index(window: int) -> Tensor:
    """(w^2, w^2): the row of `log_offsets` for each query and key of a window."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down, right = row[:, None] - row + window - 1, column[:, None] - column + window - 1
    return down * (2 * window - 1) + right


@functools.cache
@torch.inference_mode(False)
def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """(windows, w^2, w^2): -100 between tokens that the roll brought together from opposite edges, else 0."""
    cell = torch.arange(grid)
    part = (cell >= grid - window).int() + (cell >= grid - shift).int()
    region = (3 * part[:, None] + part).view(1, grid, grid, 1)
    region = to_windows(region, window, 0).squeeze(-1)
    return torch.where(region[:, :, None] == region[:, None], 0.0, -100.0)
