"""The normalisation of ImageNet's classifiers, which every image backbone here was pretrained with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Of RGB values from 0 to 255, as torchvision and mmpose publish them: (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


def imagenet_normalised(crops: np.ndarray) -> Tensor:
    """RGB crops (n, H, W, 3), 0 to 255 -> normalised (n, 3, H, W) float32."""
    return torch.from_numpy((crops - MEAN) / STD).permute(0, 3, 1, 2).contiguous()
