"""FastMETRO's transformer (Cho et al., ECCV 2022), which PostoMETRO extends by pose tokens, with the published names.

An encoder over camera, image and pose tokens; a decoder whose queries are 14 joints and the coarse mesh's vertices.
Pre-norm, as in DETR. Positions are sines, added to queries and keys of the image tokens alone. Tensors are
(n, tokens, width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8


class MultiHeadAttention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention`, fused, without the attention weights."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.dropout = dropout
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (n, q, width), key and value (n, k, width); `mask` (q, k) is True where a query may attend to a key."""
        return self.attend(self.project(query, 0), key, value, mask)

    def project(self, x: Tensor, index: int) -> Tensor:
        """The projection of x as queries (0), keys (1) or values (2): (n, heads, tokens, width / heads)."""
        weight, bias = self.in_proj_weight.chunk(3)[index], self.in_proj_bias.chunk(3)[index]
        return F.linear(x, weight, bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(self, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rest, from queries that are projected already."""
        keys, values = self.project(key, 1), self.project(value, 2)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class FastMetroEncoderLayer(nn.Module):
    """Self-attention and two linears, each on a normed copy, added back."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, dropout)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x (n, tokens, width), position (tokens, width)."""
        y = self.norm1(x)
        with_position = y + position
        x = x + self.dropout(self.self_attn(with_position, with_position, y))
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm2(x))))))


class FastMetroDecoderLayer(nn.Module):
    """Masked self-attention of the queries, cross-attention to the memory, two linears."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, dropout)
        self.multihead_attn = MultiHeadAttention(width, dropout)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """x (n, queries, width) · memory (n, tokens, width) · keys: memory with positions · mask: Transformer's."""
        return self.attend_to_memory(*self.attend_to_queries(x, mask), memory, keys)

    def attend_to_queries(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The part that needs the queries alone: x after self-attention, and its projection for the cross-attention."""
        y = self.norm1(x)
        x = x + self.dropout(self.self_attn(y, y, y, mask))
        return x, self.multihead_attn.project(self.norm2(x), 0)

    def attend_to_memory(self, x: Tensor, queries: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        """The part that needs the memory: cross-attention and the linears."""
        x = x + self.dropout(self.multihead_attn.attend(queries, keys, memory))
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm3(x))))))


class TransformerLayers(nn.Module):
    """The layers of an encoder or decoder and the norm after them."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(layers)


class Transformer(nn.Module):
    """One of the two stages."""

    def __init__(self, width: int, depth: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = TransformerLayers([FastMetroEncoderLayer(width, hidden, dropout) for _ in range(depth)], width)
        self.decoder = TransformerLayers([FastMetroDecoderLayer(width, hidden, dropout) for _ in range(depth)], width)
        self.first: tuple[Tensor, Tensor] | None = None

    def forward(
        self, camera: Tensor, image: Tensor, pose: Tensor | None, queries: Tensor, position: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: camera (n, width), memory (n, tokens, width), queries (n, queries, width), all after their norm.

        camera (n, 1, width) · image (n, tokens, width) · pose (n, 34, width) or None · queries (1 or n, queries, width)
        · position (cells, width) of the first `cells` image tokens · mask (queries, queries), True = may attend.
        """
        tokens = [camera, image] if pose is None else [camera, image, pose]
        x = torch.cat(tokens, dim=1)
        positions = F.pad(position, (0, 0, 1, x.shape[1] - 1 - len(position)))
        for layer in self.encoder.layers:
            x = layer(x, positions)
        x = self.encoder.norm(x)
        memory = x[:, 1:]
        keys = memory + positions[1:]
        first, *rest = self.decoder.layers
        assert isinstance(first, FastMetroDecoderLayer)
        if self.training:  # dropout differs from image to image
            queries = queries.expand(len(x), -1, -1)
        # A single row of queries is the same for every image: one pass over it, or none once it is prepared.
        cached = self.first if len(queries) == 1 else None
        y, projected = (t.expand(len(x), *t.shape[1:]) for t in cached or first.attend_to_queries(queries, mask))
        y = first.attend_to_memory(y, projected, memory, keys)
        for layer in rest:
            y = layer(y, memory, keys, mask)
        return x[:, 0], memory, self.decoder.norm(y)

    def prepare(self, queries: Tensor, mask: Tensor) -> None:
        """Cache the first decoder layer's part that needs only the learned queries (1, queries, width)."""
        self.first = tuple(t.detach().contiguous() for t in self.decoder.layers[0].attend_to_queries(queries, mask))  # type: ignore


def sine_positions(width: int, grid: int) -> Tensor:
    """(grid^2, width) sine positions of a grid's cells, rows first: y in the first half, x in the second (DETR)."""
    position = torch.arange(1, grid + 1, dtype=torch.float32) / (grid + 1e-6) * 2 * math.pi
    index = torch.arange(width // 2)
    frequency = 10000 ** (2 * (index // 2) / (width // 2))
    angle = position[:, None] / frequency
    wave = torch.where(index % 2 == 0, angle.sin(), angle.cos())  # grid, width / 2
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def attention_mask(adjacency: Tensor, joints: int) -> Tensor:
    """(joints + V, joints + V) bool, True = may look: joints attend to all and all to joints,
    vertices among each other to their neighbours.

    adjacency (V, V) bool of the coarse mesh; a vertex always attends to itself.
    """
    count = len(adjacency)
    mask = torch.ones(joints + count, joints + count, dtype=torch.bool)
    mask[joints:, joints:] = adjacency | torch.eye(count, dtype=torch.bool)
    return mask
