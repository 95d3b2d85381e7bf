"""The convolution of the embedded detector's networks: with its activation, and packed for inference on a CPU.

PyTorch reorders a convolution's weights at every call and writes its output twice, once before and once after the
activation. Packed, the weights are in oneDNN's order once and for all and the activation is applied in the same pass;
Thunder takes half the time (docs/detectors.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# name -> what oneDNN calls it, with its numbers
ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    "": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "leaky_relu": ("leaky_relu", [0.1], ""),
}


class Conv2d(nn.Conv2d):
    """A convolution and one of ACTIVATIONS. Kernels of 3 and 4 px are padded by one pixel on each side.

    A kernel of 4 px whose first row and column are 0 does what TensorFlow's padding does with 3 px where the size is
    halved: one row and column after the last, none before the first.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1,
        bias: bool = True, activation: str = "",
    ) -> None:  # fmt: skip
        super().__init__(channels_in, channels_out, kernel, stride, int(kernel > 1), groups=groups, bias=bias)
        self.activation = activation
        self.packs, self.packed = False, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.packs:
            geometry: Any = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
            if not len(self.packed):  # the best order depends on the size of the picture
                self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, list(x.shape))
            act: Any = ACTIVATIONS[self.activation]
            return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *geometry, *act)
        x = super().forward(x)
        if self.activation == "relu":
            return F.relu(x, inplace=True)
        if self.activation == "relu6":
            return F.relu6(x, inplace=True)
        return F.leaky_relu(x, 0.1, inplace=True) if self.activation else x


def depthwise(channels: int, stride: int = 1, *, bias: bool = True, activation: str = "") -> Conv2d:
    """A 3 x 3 convolution of each channel by itself, padded as TensorFlow does."""
    return Conv2d(channels, channels, stride + 2, stride, groups=channels, bias=bias, activation=activation)


def for_inference(network: nn.Module, device: str) -> nn.Module:
    """The network on a device, without gradients; on a CPU with oneDNN its convolutions are packed."""
    network = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu" and _available():
        for module in network.modules():
            if isinstance(module, Conv2d):
                module.packs = True
    return network


def _available() -> bool:
    """Whether this PyTorch has oneDNN and the operators (they are not public and may move)."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
