"""NanoDet's network: person boxes at three strides.

RangiLyu, NanoDet (https://github.com/RangiLyu/nanodet, Apache-2.0), the variant NanoDet-g: a CSP backbone of plain
3 x 3 convolutions, a path aggregation network (Liu et al., CVPR 2018) of 1 x 1 convolutions and a head that shares
nothing between the strides. Batch normalisation is folded into the weights. Of COCO's 80 classes only person is kept.
A side of the box is a distribution over 11 bins (Li et al., "Generalized Focal Loss", NeurIPS 2020, equation 5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.detectors.convolution import Conv2d

STRIDES = (8, 16, 32)
BINS = 11
# BGR, as the network was trained.
MEAN = (103.53, 116.28, 123.675)
STD = (57.375, 57.12, 58.395)


def conv(channels_in: int, channels_out: int, stride: int = 1) -> Conv2d:
    """A 3 x 3 convolution that keeps the size (or halves it), and LeakyReLU."""
    return Conv2d(channels_in, channels_out, 3, stride, activation="leaky_relu")


class Pair(nn.Module):
    """Two convolutions to half the channels, the second after the first; both results side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels // 2), conv(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return torch.cat([self.second(first), first], 1)


class Stage(nn.Module):
    """A cross stage partial block (Wang et al., CVPRW 2020): twice the channels, 1/stride the size."""

    def __init__(self, channels: int, pairs: int, stride: int) -> None:
        super().__init__()
        self.enter = conv(channels, channels, stride)
        self.pairs = nn.Sequential(*(Pair(channels) for _ in range(pairs)))
        self.leave = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return torch.cat([self.leave(self.pairs(x)), x], 1)


class NanoDet(nn.Module):
    """Images (n, 3, H, W), sides multiples of 32, BGR, normalised by MEAN and STD -> what each cell says.

    forward gives score (n, c), 0..1, of a person and the four sides (n, c, 4), left, top, right, bottom, in px from the
    cell's centre (`cells`), cells of all strides one after the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, 2)
        self.stages = nn.ModuleList([Stage(32, 1, 1), Stage(64, 2, 2), Stage(128, 2, 2), Stage(256, 3, 2)])
        self.lateral = nn.ModuleList([Conv2d(channels, 128, 1) for channels in (128, 256, 512)])
        self.heads = nn.ModuleList([nn.Sequential(conv(128, 128), Conv2d(128, 1 + 4 * BINS, 1)) for _ in STRIDES])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stages[0](F.max_pool2d(self.stem(x), 3, 2, 1))
        levels = []
        for stage, lateral in zip(self.stages[1:], self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for k in (1, 0):
            levels[k] = levels[k] + _resize(levels[k + 1], levels[k])
        for k in (1, 2):
            levels[k] = levels[k] + _resize(levels[k - 1], levels[k])
        said = [head(level).flatten(2).transpose(1, 2) for head, level in zip(self.heads, levels, strict=True)]
        score = torch.cat([each[..., 0].sigmoid() for each in said], 1)
        bins = torch.arange(BINS, dtype=x.dtype, device=x.device)
        sides = [
            stride * (each[..., 1:].unflatten(-1, (4, BINS)).softmax(-1) @ bins)
            for stride, each in zip(STRIDES, said, strict=True)
        ]
        return score, torch.cat(sides, 1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def cells(height: int, width: int) -> Tensor:
    """Centres (c, 2) x, y of the cells of an image, in px from its upper left corner."""
    centers = []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        centers.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
    return torch.cat(centers)
