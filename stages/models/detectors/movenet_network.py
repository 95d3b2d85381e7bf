"""MoveNet Thunder's network: where the 17 joints of the person in the middle of a 256 px crop are.

Google, MoveNet singlepose thunder, version 4 (TF Hub, Apache-2.0): a MobileNetV2 of 1.75 times the width (Sandler et
al., CVPR 2018) with a feature pyramid to a quarter of the crop's size, and CenterNet's heads (Zhou et al., "Objects as
points", 2019). Batch normalisation is folded into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.detectors.convolution import Conv2d, depthwise

SIZE = 256  # px, side of the crop
STRIDE = 4  # crop pixels per cell of the heads
HEADS = {"heatmap": 17, "center": 1, "regress": 34, "offset": 34}
# Channels out and stride of the 17 inverted residuals; the first has no expansion.
BLOCKS = (
    *((32, 1), (40, 2), (40, 1), (56, 2), (56, 1), (56, 1), (112, 2), (112, 1), (112, 1), (112, 1)),
    *((168, 1), (168, 1), (168, 1), (280, 2), (280, 1), (280, 1), (560, 1)),
)
TAPS = (2, 5, 9)  # blocks whose outputs the pyramid takes, at strides 4, 8, 16
PRIOR = 1.8  # cells, of Thunder's own graph: how far a joint may lie from where the centre expects it
BESIDE = 0.1  # of the box's longer side: how far joints may lie outside the box (standard deviation)


class InvertedResidual(nn.Module):
    """Expansion by 6, depthwise convolution, projection; the input is added where the shape allows it."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = Conv2d(channels_in, hidden, activation="relu6") if expansion > 1 else nn.Identity()
        self.depthwise = depthwise(hidden, stride, activation="relu6")
        self.project = Conv2d(hidden, channels_out)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return out.add_(x) if self.adds else out


def separable(channels_in: int, channels_out: int) -> nn.Sequential:
    """A depthwise and a 1 x 1 convolution, ReLU."""
    return nn.Sequential(depthwise(channels_in, bias=False), Conv2d(channels_in, channels_out, activation="relu"))


class MoveNet(nn.Module):
    """Crops (n, 3, 256, 256), RGB, -1..1 -> the heads (n, channels, 64, 64) by name.

    heatmap: logit that joint j is at the cell · center: logit that a person's middle is there · regress: cells from a
    person's middle to joint j, (y, x) of each joint in turn · offset: cells from the cell to joint j in it, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2d(3, 56, 4, 2, activation="relu6")
        channels = [56, *(out for out, _ in BLOCKS)]
        self.blocks = nn.ModuleList(
            InvertedResidual(channels[k], out, stride, 6 if k else 1) for k, (out, stride) in enumerate(BLOCKS)
        )
        self.last = Conv2d(channels[-1], 1280, activation="relu6")
        self.lateral = nn.ModuleList(Conv2d(a, b) for a, b in zip((40, 56, 112, 1280), (24, 32, 64, 64), strict=True))
        self.pyramid = nn.ModuleList([separable(64, 32), separable(32, 24), separable(24, 24)])
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(*separable(24, 96), Conv2d(96, count)) for name, count in HEADS.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        taps = []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k in TAPS:
                taps.append(x)
        x = self.lateral[3](self.last(x))
        for k, mix in zip((2, 1, 0), self.pyramid, strict=True):
            x = mix(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) + self.lateral[k](taps[k]))
        return {name: head(x) for name, head in self.heads.items()}


def decode(heads: Mapping[str, Tensor], box: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (n, 17, 2) x, y in cells from the crop's corner and their scores (n, 17) of the person in box (n, 4).

    As at the end of Thunder's graph (the centre: the best cell near the crop's middle; a joint: the best cell near
    where the centre expects it), but the middle is the box's, and what lies outside the box counts less.
    """
    height, width = heads["center"].shape[2:]
    y = torch.arange(height, device=box.device, dtype=box.dtype)[:, None]
    x = torch.arange(width, device=box.device, dtype=box.dtype)
    left, top, right, bottom = box[:, :, None, None].unbind(1)
    outside = ((left - x).clamp(min=0) + (x - right).clamp(min=0)) ** 2
    outside = outside + ((top - y).clamp(min=0) + (y - bottom).clamp(min=0)) ** 2
    longer = torch.maximum(right - left, bottom - top)
    inside = torch.exp(-outside / (2 * (BESIDE * longer) ** 2))

    near = inside / (torch.hypot(y - (top + bottom) / 2, x - (left + right) / 2) + PRIOR)
    center = (heads["center"][:, 0].sigmoid() * near).flatten(1).argmax(1)
    regress = heads["regress"].unflatten(1, (-1, 2))
    expected = _at(regress, center[:, None].expand(-1, regress.shape[1]))
    expected = expected + torch.stack([center // width, center % width], 1)[:, None]

    score = heads["heatmap"].sigmoid()
    away = torch.hypot(y - expected[..., 0, None, None], x - expected[..., 1, None, None])
    best = (score * inside[:, None] / (away + PRIOR)).flatten(2).argmax(2)
    offset = _at(heads["offset"].unflatten(1, (-1, 2)), best)
    xy = torch.stack([best % width + offset[..., 1], best // width + offset[..., 0]], -1)
    return xy, score.flatten(2).gather(2, best[..., None])[..., 0]


def _at(maps: Tensor, cell: Tensor) -> Tensor:
    """Values (n, J, 2) of maps (n, J, 2, H, W) at one cell (n, J) for each joint."""
    return maps.flatten(3).gather(3, cell[..., None, None].expand(-1, -1, 2, 1))[..., 0]
