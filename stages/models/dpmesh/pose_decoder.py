"""From network numbers to rotations: DPMesh's root rotation, VPoser's decoder and the paper's pose codebook.

The published checkpoints decode a 32-number VPoser latent; the paper describes 48 tokens over a codebook of 2048
(section 3.4). Both end in axis-angle by the rules of torchgeometry, which also define what happens to matrices that are
no rotations; which is why they are written out here and not taken from `stages.geometry.rotations`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gram_schmidt(x: Tensor, *, batch_of_three_quirk: bool = False) -> Tensor:
    """6 numbers (n, 6), a 3 x 2 matrix row by row, -> matrices (n, 3, 3).

    `batch_of_three_quirk`: the reference's cross product takes the first axis of length 3, so in a batch of exactly
    three people it mixes them. Only for reproducing its 3DPW-Crowd number (1923 rows = 160 x 12 + 3).
    """
    a, b = x.reshape(-1, 3, 2).unbind(-1)
    first = F.normalize(a, dim=-1)
    second = F.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    axis = 0 if batch_of_three_quirk and len(x) == 3 else -1
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=axis)], -1)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(n, 3, 3) -> (n, 3) by torchgeometry's branches (Shepperd's method, unnormalised); NaN becomes 0."""
    m = matrix
    m00, m11, m22 = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    # Differences give the sine part, sums the products of two quaternion components.
    dx, dy, dz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    sxy, sxz, syz = m[:, 1, 0] + m[:, 0, 1], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    tx, ty, tz, tw = 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22, 1 + m00 + m11 + m22
    choices = torch.stack([dx, tx, sxy, sxz, dy, sxy, ty, syz, dz, sxz, syz, tz, tw, dx, dy, dz], -1).unflatten(
        -1, (4, 4)
    )
    low = m22 < 1e-6
    choice = torch.where(low, torch.where(m00 > m11, 0, 1), torch.where(m00 < -m11, 2, 3))
    row = torch.arange(len(m), device=m.device)
    square = torch.stack([tx, ty, tz, tw], -1)[row, choice][:, None]
    # Only a matrix that is no rotation has square <= 0, which is the reference's NaN. The untaken side of a square
    # root or quotient must be harmless too, or its gradient is NaN.
    usable = square > 0
    w, xyz = (0.5 * choices[row, choice] / torch.where(usable, square, 1).sqrt()).split([1, 3], -1)
    square_sine = (xyz * xyz).sum(-1, keepdim=True)
    rotated = square_sine > 0
    sine = torch.where(rotated, square_sine, 1).sqrt()
    angle = 2 * torch.where(w < 0, torch.atan2(-sine, -w), torch.atan2(sine, w))
    return torch.where(usable, xyz * torch.where(rotated, angle / sine, 2.0), 0.0)


class VPoserDecoder(nn.Module):
    """VPoser v1's decoder (Pavlakos et al., CVPR 2019): latent (n, 32) -> 21 joint rotations."""

    def __init__(self, latent: int = 32, width: int = 512) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(latent, width), nn.Linear(width, width)
        self.out = nn.Linear(width, 21 * 6)

    def matrices(self, latent: Tensor) -> Tensor:
        """(n, 32) -> (n, 21, 3, 3)."""
        x = F.leaky_relu(self.fc1(latent), 0.2)
        x = F.leaky_relu(self.fc2(x), 0.2)
        return gram_schmidt(self.out(x).reshape(-1, 6)).reshape(-1, 21, 3, 3)

    def forward(self, latent: Tensor) -> Tensor:
        """(n, 32) -> body pose (n, 69), axis-angle of SMPL joints 1 to 23; the hands are straight."""
        pose = matrix_to_axis_angle(self.matrices(latent).flatten(0, 1)).reshape(len(latent), 63)
        return F.pad(pose, (0, 6))


class MixerBlock(nn.Module):
    """x + tokens' branch + channels' branch, both of layer-normalised x (as the released code does it)."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layernorm1, self.layernorm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.MLP_token, self.MLP_channel = _Branch(tokens, 64), _Branch(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.MLP_token(self.layernorm1(x).transpose(1, 2)).transpose(1, 2)
        return x + tokens + self.MLP_channel(self.layernorm2(x + tokens))


class _Branch(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # Index 2 and 4 are the reference's dropouts of rate 0; they fix the names of the layers.
        self.ff = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class PoseCodebook(nn.Module):
    """The paper's VQ-VAE of poses (section 3.4): 48 tokens, a codebook of 2048 x 256, 23 joints as 9 numbers each."""

    codebook: Tensor

    def __init__(self, tokens: int = 48, codes: int = 2048, width: int = 256) -> None:
        super().__init__()
        self.tokens, self.codes = tokens, codes
        self.register_buffer("codebook", torch.zeros(codes, width))
        self.register_buffer("ema_cluster_size", torch.zeros(codes))
        self.register_buffer("ema_w", torch.zeros(codes, width))
        self.start_embed = nn.Linear(9, 512)
        self.encoder = nn.ModuleList(MixerBlock(23, 512, 512) for _ in range(4))
        self.encoder_layer_norm = nn.LayerNorm(512)
        self.token_mlp, self.feature_embed = nn.Linear(23, tokens), nn.Linear(512, width)
        self.decoder_token_mlp, self.decoder_start = nn.Linear(tokens, 23), nn.Linear(width, 32)
        self.decoder = nn.ModuleList([MixerBlock(23, 32, 64)])
        self.decoder_layer_norm = nn.LayerNorm(32)
        self.recover_embed = nn.Linear(32, 9)

    def encode(self, matrices: Tensor) -> Tensor:
        """Rotations (n, 23, 9) -> continuous tokens (n, 48, 256)."""
        x = self.start_embed(matrices)
        for block in self.encoder:
            x = block(x)
        x = self.token_mlp(self.encoder_layer_norm(x).transpose(1, 2)).transpose(1, 2)
        return self.feature_embed(x)

    def indices(self, matrices: Tensor) -> Tensor:
        """Rotations (n, 23, 9) -> the nearest codes (n, 48)."""
        return torch.cdist(self.encode(matrices), self.codebook).argmin(-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (n, 48, 256) -> 9 numbers for each of 23 joints (n, 23, 9), close to rotations but not exactly."""
        x = self.decoder_start(self.decoder_token_mlp(tokens.transpose(1, 2)).transpose(1, 2))
        for block in self.decoder:
            x = block(x)
        return self.recover_embed(self.decoder_layer_norm(x))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Code numbers (n, 48) -> (n, 23, 9)."""
        return self.decode(self.codebook[indices])

    def decode_weights(self, weights: Tensor) -> Tensor:
        """Class weights (n, 48, 2048) that sum to 1 -> (n, 23, 9); soft, as the released code assigns."""
        return self.decode(weights @ self.codebook)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (n, 48, 2048) -> body pose (n, 69), axis-angle, without orthonormalising (as released)."""
        matrices = self.decode_weights(logits.softmax(-1)).reshape(-1, 3, 3)
        return matrix_to_axis_angle(matrices).reshape(len(logits), 69)
