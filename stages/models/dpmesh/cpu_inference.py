"""The same network, faster on a CPU: convolution weights pre-packed in oneDNN's layout, activations in place.

PyTorch reorders the weights of a convolution or linear layer at every call. For small feature maps (8 x 8, 4 x 4) that
costs as much as the multiplication; here it is done once, at the first call, and the original weights are freed.
Allocating a tensor of 33 MB costs more than the SiLU that fills it, hence in place. docs/dpmesh.md has the
measurements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALL = 8  # largest side of the feature maps for which packing pays
BATCH = 4  # the batch that weights are packed for; others give the same numbers


class PackedConv2d(nn.Module):
    """nn.Conv2d for inference: weights packed in oneDNN's layout for small feature maps, else the plain convolution.

    For large maps packing gains nothing, and oneDNN's sums are then up to ten times less exact (2e-6 for 3e-7).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv: nn.Conv2d | None = conv
        self.bias = conv.bias
        self.geometry = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            assert self.conv is not None
            if x.shape[-1] > SMALL:
                return self.conv(x)
            size = [BATCH, *x.shape[1:]]
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.conv.weight, *self.geometry, size)
            self.conv = None
        padding, stride, dilation, groups = self.geometry
        args: Any = (self.packed, self.bias, padding, stride, dilation, groups, "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, *args)


class PackedLinear(nn.Module):
    """nn.Linear for inference with weights packed in oneDNN's layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear: nn.Linear | None = linear
        self.bias = linear.bias
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            assert self.linear is not None
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.linear.weight, BATCH * x.numel() // x.shape[-1])
            self.linear = None
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def available() -> bool:
    """Whether this PyTorch has oneDNN and its weight-packing operators (they are not public and may move)."""
    needed = ("_reorder_convolution_weight", "_convolution_pointwise", "_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in needed)


def prepare(model: Any) -> Any:
    """Prepare a DPMesh on the CPU for inference only, in place; on other devices, or without oneDNN, do nothing.

    Gradients no longer flow through the diffusion networks, and their weights can no longer be read back.
    """
    if model.dtype != torch.float32 or model.unet.device.type != "cpu" or not available():
        return model
    for part in (model.vae, model.unet, model.controlnet):
        if part is not None:
            _replace(part)
    return model


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        # Exact types: PEFT's wrappers and diffusers' subclasses do more than multiply.
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            setattr(module, name, PackedConv2d(child))
        elif type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        elif type(child) is nn.SiLU:
            setattr(module, name, nn.SiLU(inplace=True))
        else:
            _replace(child)
