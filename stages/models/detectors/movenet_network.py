"""MoveNet Thunder's network: where the 17 joints of the person in the middle of a 256 px crop are.

Google, MoveNet singlepose thunder, version 4 (TF Hub, Apache-2.0): a MobileNetV2 of 1.75 times the width (Sandler et
al., CVPR 2018) with a feature pyramid to a quarter of the crop's size, and CenterNet's heads (Zhou et al., "Objects as
points", 2019). Batch normalisation is folded into the weights; what picks joints from the heads stands in `movenet.py`.
"""

from __future__ import annotations

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
