"""DPMesh's regressor: features 2048 x 8 x 8 -> SMPL parameters, camera and 15 joints (after JOTR, Li et al. 2023).

A volume of 8 x 8 x 8 tokens is lifted from the features and refined; 3 parameter queries (or 51 with the pose codebook)
and 15 joint queries attend to image tokens and to the volume sampled where the joints are estimated to be. Layer names
are the published checkpoint's where a rename would say nothing more. Two habits of the reference are kept because its
weights were trained with them: the position embedding has one frequency, and each decoder layer receives the previous
layer's normalised output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, SIDE, JOINTS, DROPOUT = 256, 8, 8, 8, 15, 0.1


class EncoderLayer(nn.Module):
    """Post-norm self-attention; the position is added to queries and keys only."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q = x + position
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x, need_weights=False)[0]))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class DecoderLayer(nn.Module):
    """Post-norm self-attention, cross-attention and feed-forward."""

    def __init__(self, hidden: int = 2048) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor) -> Tensor:
        q = x + position
        x = self.norm1(x + self.dropout(self.self_attn(q, q, x, need_weights=False)[0]))
        k = memory + memory_position
        x = self.norm2(x + self.dropout(self.multihead_attn(x + position, k, memory, need_weights=False)[0]))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Encoder(nn.Module):
    """Two encoder layers and, for the volume, a final norm."""

    def __init__(self, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(hidden) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


class Cascade(nn.Module):
    """out_0 = L0(h_0), out_i = out_{i-1} + L_i([h_i, out_{i-1}]): one head over the four decoder layers."""

    def __init__(self, out: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH + (out if i else 0), out) for i in range(layers))

    def step(self, i: int, h: Tensor, before: Tensor | None) -> Tensor:
        if before is None:
            return self.layers[i](h)
        return before + self.layers[i](torch.cat([h, before], -1))

    def forward(self, taps: Tensor) -> Tensor:
        """taps (4, n, ..., 256) -> the last layer's (n, ..., out)."""
        out = None
        for i, h in enumerate(taps):
            out = self.step(i, h, out)
        assert out is not None
        return out


class Decoder(nn.Module):
    """Four layers with a shared output norm; joints are read out and looked up in the volume after each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.joint_img_regress = Cascade(3)
        self.fc_pos_3d = nn.Sequential(
            nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)
        )

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor, volume: Tensor, exponent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Taps (4, n, queries, 256) and joints (n, 15, 3) in [0, 1] of the crop; the last 15 queries are joints."""
        taps: list[Tensor] = []
        logits, joints = None, None
        keys, key_position = memory, memory_position
        for i, layer in enumerate(self.layers):
            x = self.norm(layer(x, position, keys, key_position))
            taps.append(x)
            logits = self.joint_img_regress.step(i, x[:, -JOINTS:], logits)
            joints = torch.sigmoid(logits)
            # The reference goes through the sigmoid and back, which cuts the logits at about +-11.5.
            logits = torch.log(joints.clamp(1e-5) / (1 - joints).clamp(1e-5))
            if i + 1 < len(self.layers):
                keys = torch.cat([memory, sample_volume(volume, joints, exponent)], 1)
                key_position = torch.cat([memory_position, self.fc_pos_3d(logits)], 1)
        assert joints is not None
        return torch.stack(taps), joints


def sample_volume(volume: Tensor, joints: Tensor, exponent: Tensor) -> Tensor:
    """Volume (n, 256, 8, 8, 8) at joints (n, 15, 3) x, y, z in [0, 1] -> (n, 15, 256), trilinear, zeros outside."""
    xyz = torch.cat([joints[..., :2], joints[..., 2:] ** exponent], -1) * 2 - 1
    sampled = F.grid_sample(volume, xyz[:, None, None].to(volume.dtype), align_corners=True)
    return sampled[:, :, 0, 0].transpose(1, 2)


def sine_position(device: Any = "cpu", side: int = SIDE, width: int = WIDTH) -> Tensor:
    """(side * side, 256): sin and cos of 2 pi (1..side) / side, alternating, y in the first half, x in the second."""
    angle = torch.arange(1, side + 1, dtype=torch.float32, device=device) / (side + 1e-6) * 2 * math.pi
    one = torch.stack([angle.sin(), angle.cos()], -1).repeat(1, width // 4)
    return torch.cat([one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)], -1).reshape(-1, width)


class TransformerRegressor(nn.Module):
    """The published regressor. `pose_size`: 32 numbers of VPoser's latent, or 2048 classes with `pose_tokens` = 48."""

    def __init__(self, pose_size: int = 32, pose_tokens: int = 0) -> None:
        super().__init__()
        self.pose_tokens = pose_tokens
        queries = pose_tokens + 3
        self.conv2d_to_3d = nn.Conv2d(2048, WIDTH * DEPTH, 1)
        self.conv_3d_coord = nn.Sequential(nn.Conv3d(WIDTH + 3, WIDTH, 1))
        self.refine_3d = Encoder(1024, norm=True)
        self.volume_position = nn.Parameter(torch.zeros(DEPTH * SIDE * SIDE, WIDTH))
        self.exponent = nn.Parameter(torch.ones(()))
        self.down_linear = nn.Conv2d(2048, WIDTH, 1)
        self.encoder = Encoder(2048, norm=False)
        self.decoder = Decoder()
        self.parameter_content, self.joint_content = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.parameter_position = nn.Parameter(torch.randn(queries, WIDTH))
        self.joint_position = nn.Parameter(torch.randn(JOINTS, WIDTH))
        self.root, self.pose, self.shape, self.camera = Cascade(6), Cascade(pose_size), Cascade(10), Cascade(3)

    def depth_exponent(self) -> Tensor:
        return self.exponent.reshape(()).clamp(1, 20)

    def volume(self, features: Tensor) -> Tensor:
        """Features (n, 2048, 8, 8) -> the refined volume (n, 256, 8, 8, 8), channels, depth, height, width."""
        x = self.conv2d_to_3d(features).unflatten(1, (WIDTH, DEPTH))
        steps = torch.arange(DEPTH, device=x.device, dtype=x.dtype) / DEPTH
        z, y, x_ = torch.meshgrid(steps ** self.depth_exponent().to(x.dtype), steps, steps, indexing="ij")
        coordinates = torch.stack([z, y, x_]).expand(len(x), -1, -1, -1, -1)
        x = self.conv_3d_coord(torch.cat([x, coordinates], 1))
        x = self.refine_3d(x.flatten(2).transpose(1, 2), self.volume_position)
        return x.transpose(1, 2).unflatten(2, (DEPTH, SIDE, SIDE))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (n, 2048, 8, 8) -> tokens (4, n, queries, 256), joint_img (n, 15, 3) and the four parameters."""
        n = len(features)
        volume = self.volume(features)
        position = sine_position(features.device).to(features.dtype).expand(n, -1, -1)
        memory = self.encoder(self.down_linear(features).flatten(2).transpose(1, 2), position)
        contents = (self.parameter_content.expand_as(self.parameter_position), self.joint_content.expand(JOINTS, -1))
        content = torch.cat(contents).expand(n, -1, -1)
        query = torch.cat([self.parameter_position, self.joint_position]).expand(n, -1, -1)
        taps, joints = self.decoder(content, query, memory, position, volume, self.depth_exponent())
        tokens = taps[:, :, :-JOINTS]
        k = self.pose_tokens
        return {
            "volume": volume,
            "tokens": tokens,
            "joint_img": joints,
            "root6d": self.root(tokens[:, :, k]),
            "pose": self.pose(tokens[:, :, :k] if k else tokens[:, :, 0]),
            "betas": self.shape(tokens[:, :, k + 1]),
            "camera": self.camera(tokens[:, :, k + 2]),
        }


class LinearRegressor(nn.Module):
    """Ablation of the paper's Table 7: pooled features, recurrent linear layers (Kanazawa et al., CVPR 2018).

    No joints in the image are predicted, so training has no `joint_img` terms.
    """

    def __init__(self, pose_size: int = 32, pose_tokens: int = 0, hidden: int = 1024, rounds: int = 3) -> None:
        super().__init__()
        self.rounds, self.pose_shape = rounds, (pose_tokens, pose_size) if pose_tokens else (pose_size,)
        self.sizes = [6, math.prod(self.pose_shape), 10, 3]
        total = sum(self.sizes)
        self.start = nn.Parameter(torch.zeros(total))
        self.fc1, self.fc2 = nn.Linear(2048 + total, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, total)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():  # the upright root, so that Gram-Schmidt starts from a rotation
            self.start[:6] = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        pooled = features.mean((2, 3))
        state = self.start.expand(len(pooled), -1)
        for _ in range(self.rounds):
            x = self.dropout(F.relu(self.fc1(torch.cat([pooled, state], -1))))
            state = state + self.out(self.dropout(F.relu(self.fc2(x))))
        root, pose, betas, camera = state.split(self.sizes, -1)
        return {"root6d": root, "pose": pose.unflatten(-1, self.pose_shape), "betas": betas, "camera": camera}
