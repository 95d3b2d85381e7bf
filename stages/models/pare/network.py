"""PARE's image features: HRNet-W32, and features averaged under part attention.

Written from the description in Kocabas et al., "PARE: Part Attention Regressor for 3D Human Body Estimation", 2021,
sections 3.2 and 3.3 (its code is under a non-commercial licence and was not used). ScoreHMR's prior reads only the two
pooled features, so the regressor that follows in the published file is not built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.backbones.hrnet import HRNet

PARTS = 24
POSE_CHANNELS, SHAPE_CHANNELS = 128, 64


class Backbone(HRNet):
    """Images (n, 3, 224, 224), normalised, to (n, 480, 56, 56): the finest branch and the others, upsampled."""

    def __init__(self) -> None:
        super().__init__(32)
        self.upsample_stage_2 = _upsample(64, 1)
        self.upsample_stage_3 = _upsample(128, 2)
        self.upsample_stage_4 = _upsample(256, 3)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        one, two, three, four = super().forward(x)
        parts = [one, self.upsample_stage_2(two), self.upsample_stage_3(three), self.upsample_stage_4(four)]
        return torch.cat(parts, 1)


class Head(nn.Module):
    """(n, 480, 56, 56) to pose features (n, 128, 24) and camera and shape features (n, 64, 24), one column a part."""

    def __init__(self) -> None:
        super().__init__()
        self.keypoint_deconv_layers = _branch()
        self.smpl_deconv_layers = _branch()
        self.keypoint_final_layer = nn.Conv2d(POSE_CHANNELS, PARTS + 1, 1)  # map 0 is the background
        self.smpl_final_layer = nn.Conv2d(POSE_CHANNELS, SHAPE_CHANNELS, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.keypoint_final_layer(self.keypoint_deconv_layers(features))[:, 1:]
        attention = F.softmax(maps.flatten(2), dim=-1).transpose(1, 2)  # (n, pixels, 24)
        pose = self.smpl_deconv_layers(features)
        shape = self.smpl_final_layer(pose)
        return pose.flatten(2) @ attention, shape.flatten(2) @ attention


class Pare(nn.Module):
    """Backbone and head under their published names (`model.` taken off)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(images))


def _upsample(channels: int, times: int) -> nn.Sequential:
    """Doubles the resolution `times` times: bilinear on outermost pixel centres, 3 x 3 convolution, norm, ReLU."""
    parts: list[nn.Module] = []
    for _ in range(times):
        parts += [
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts)


def _branch() -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels in (480, POSE_CHANNELS):
        parts += [nn.Conv2d(channels, POSE_CHANNELS, 3, 1, 1, bias=False), nn.BatchNorm2d(POSE_CHANNELS), nn.ReLU(True)]
    return nn.Sequential(*parts)
