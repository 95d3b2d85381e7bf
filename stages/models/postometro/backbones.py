"""The image backbones: ResNet-50, the last branch of the pose HRNet-W48, the classification HRNet-W64."""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.backbones.hrnet import HRNet
from stages.models.backbones.resnet import Bottleneck, ResNet

CHANNELS = {"resnet50": 2048, "hrnet_w48": 384, "hrnet_w64": 2048}


def build(name: str) -> nn.Module:
    """The backbone called `name`: images (n, 3, H, W) to (n, CHANNELS[name], H/32, W/32)."""
    return {"resnet50": ResNet, "hrnet_w48": PoseHRNet, "hrnet_w64": ClassificationHRNet}[name]()


class PoseHRNet(HRNet):
    """The pose HRNet, of which PostoMETRO takes the branch of lowest resolution alone: (n, 384, H/32, W/32)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__(width, outputs=(3,))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class ClassificationHRNet(HRNet):
    """HRNet with the head of the ImageNet classifier, before its pooling: (n, 2048, H/32, W/32)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.incre_modules = nn.ModuleList(nn.Sequential(Bottleneck(width << k, 32 << k)) for k in range(4))
        self.downsamp_modules = nn.ModuleList(step(128 << k, 256 << k, 3) for k in range(3))
        self.final_layer = step(1024, 2048, 1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        maps = super().forward(x)
        y = self.incre_modules[0](maps[0])
        for widen, halve, finer in zip(self.incre_modules[1:], self.downsamp_modules, maps[1:], strict=True):
            y = widen(finer) + halve(y)
        return self.final_layer(y)


def step(channels: int, out: int, kernel: int) -> nn.Sequential:
    """A convolution with bias (stride 2 if 3 x 3), batch norm, ReLU."""
    stride = 2 if kernel == 3 else 1
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2), nn.BatchNorm2d(out), nn.ReLU())
