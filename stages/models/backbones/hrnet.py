"""HRNet's four-branch trunk, with the published parameter names: width 32 (PARE), 48 (PostoMETRO), 64 (FastMETRO).

Several systems share this network; what they put on top (PARE's upsampling, FastMETRO's classification head) is in
their folders. Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition": modules 1, 4, 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stages.models.backbones.resnet import bottlenecks

MODULES = (1, 4, 3)
BLOCKS = 4


class HRNet(nn.Module):
    """Images (n, 3, H, W) to maps of `width` x 1, 2, 4, 8 channels at 1/4, 1/8, 1/16, 1/32.

    `outputs`: the branches that are returned. The last fusion computes and holds only those, so a published file has
    names under `stage4.2.fuse_layers.` that a smaller choice does not use.
    """

    def __init__(self, width: int = 32, outputs: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.width, self.outputs = width, tuple(outputs)
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = bottlenecks(64, 64, 4)
        # transitionK: from the branches before stage K + 1 to its branches; only what changes has a module.
        self.transition1 = nn.ModuleDict(
            {"0": convolution(256, widths[0]), "1": nn.Sequential(convolution(256, widths[1], 2))}
        )
        self.transition2 = nn.ModuleDict({"2": nn.Sequential(convolution(widths[1], widths[2], 2))})
        self.transition3 = nn.ModuleDict({"3": nn.Sequential(convolution(widths[2], widths[3], 2))})
        self.stage2 = stage(widths[:2], MODULES[0])
        self.stage3 = stage(widths[:3], MODULES[1])
        self.stage4 = stage(widths, MODULES[2], self.outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of `outputs`, in that order."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        maps = self.stage2([self.transition1["0"](x), self.transition1["1"](x)])
        maps = self.stage3([*maps, self.transition2["2"](maps[-1])])
        return self.stage4([*maps, self.transition3["3"](maps[-1])])


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a shortcut, at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Exchange(nn.Module):
    """One HRNet module: four basic blocks on every branch, then each of `outputs` is the sum of all branches,
    resampled."""

    def __init__(self, widths: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w) for _ in range(BLOCKS))) for w in widths)
        self.fuse_layers = nn.ModuleDict(
            {
                str(i): nn.ModuleDict({str(j): resample(widths, j, i) for j in range(len(widths)) if j != i})
                for i in self.outputs
            }
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i in self.outputs:
            terms = [x if j == i else self.fuse_layers.get_submodule(f"{i}.{j}")(x) for j, x in enumerate(maps)]
            fused.append(self.relu(sum(terms[1:], start=terms[0])))
        return fused


def stage(widths: Sequence[int], count: int, outputs: Sequence[int] | None = None) -> nn.Sequential:
    """`count` modules over the same branches; only the last may leave out outputs."""
    every = range(len(widths))
    return nn.Sequential(
        *(Exchange(widths, every if outputs is None or k < count - 1 else outputs) for k in range(count))
    )


def convolution(channels: int, out: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """3 x 3 convolution, batch norm and, unless `relu` is False, ReLU."""
    parts: list[nn.Module] = [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


def resample(widths: Sequence[int], source: int, target: int) -> nn.Sequential:
    """Branch `source` at the width and resolution of branch `target`: nearest upsampling, or stride-2 convolutions."""
    if source > target:
        up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(
            nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]), up
        )
    steps = target - source
    down = [convolution(widths[source], widths[source], 2) for _ in range(steps - 1)]
    return nn.Sequential(*down, convolution(widths[source], widths[target], 2, relu=False))
