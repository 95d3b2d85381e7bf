"""ResNet-50's convolutional part, with the parameter names of torchvision and of SimpleBaselines' pose network.

Several systems share this network: ProHMR's image vector (its mean over the map), PostoMETRO and FastMETRO.
He et al., "Deep Residual Learning for Image Recognition", with the stride in the 3 x 3 convolution.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

# FastMETRO keeps the network as a bare sequence, so its names are numbers.
SEQUENCE_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (stride here), 1 x 1 to four times the width; the shortcut is projected where the shape changes."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Images (n, 3, H, W), ImageNet-normalised, to a feature map (n, 2048, H/32, W/32); no pooling, no classifier."""

    def __init__(self, depths: tuple[int, int, int, int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = bottlenecks(64, 64, depths[0])
        self.layer2 = bottlenecks(256, 128, depths[1], stride=2)
        self.layer3 = bottlenecks(512, 256, depths[2], stride=2)
        self.layer4 = bottlenecks(1024, 512, depths[3], stride=2)
        self.channels = 2048

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def bottlenecks(channels: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` bottlenecks of one resolution, named 0, 1, ...; the first changes stride and channels."""
    rest = [Bottleneck(4 * width, width) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(channels, width, stride), *rest)


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Merge every batch norm into the convolution before it, in place (evaluation only; equal up to rounding).

    A pair is a convolution and the norm after it in a Sequential, or `convN` and `bnN` of one module: all networks here
    are built so. The norm becomes an identity, so the state dict is no longer the published one.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        pairs = [
            (f"conv{name[2:]}", name)
            for name, child in children
            if name.startswith("bn") and isinstance(child, nn.BatchNorm2d)
        ]
        if isinstance(parent, nn.Sequential):
            pairs += [
                (a, b)
                for (a, x), (b, y) in itertools.pairwise(children)
                if isinstance(x, nn.Conv2d) and isinstance(y, nn.BatchNorm2d)
            ]
        for conv, norm in pairs:
            before, after = parent.get_submodule(conv), parent.get_submodule(norm)
            assert isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
            setattr(parent, conv, nn.utils.fusion.fuse_conv_bn_eval(before, after))
            setattr(parent, norm, nn.Identity())
    return module
