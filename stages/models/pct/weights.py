"""Tensors of a PCT file -> the network: names and shapes determine its sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from stages.files.checkpoints import check_keys
from stages.models.pct.network import PCT

# Names in PCT files that no network here holds: computed buffers, and the Swin that guided the tokenizer.
UNUSED = ("relative_coords_table", "relative_position_index", "extra_backbone.")
# Wrappers and parallel prefixes that occur in these projects' code.
PREFIXES = ("state_dict.", "model_state_dict.", "model.", "module.")
Network = TypeVar("Network", bound=nn.Module)


def read_layout(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> tuple[int, tuple[int, ...], bool]:
    """(Swin width, depths, guided) of a PCT file from its tensors' names and shapes. KeyError if it is not one."""
    width = shapes[f"{prefix}backbone.patch_embed.proj.weight"][0]
    blocks = [
        name.removeprefix(f"{prefix}backbone.layers.").split(".")
        for name in shapes
        if name.startswith(f"{prefix}backbone.layers.")
    ]
    depths = tuple(1 + max(int(b[2]) for b in blocks if b[0] == str(k) and b[1] == "blocks") for k in range(4))
    return width, depths, f"{prefix}keypoint_head.tokenizer.start_img_embed.weight" in shapes


def is_pct(names: Iterable[str]) -> bool:
    """Whether tensor names are those of PCT's pose model (Swin and classifier)."""
    return {"backbone.patch_embed.proj.weight", "keypoint_head.cls_pred_layer.weight"} <= {unwrapped(n) for n in names}


def unwrapped(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def load_pct(tensors: Mapping[str, Tensor], where: str = "the checkpoint") -> PCT:
    """PCT's pose model from unwrapped tensors."""
    with torch.device("meta"):
        network = PCT(*read_layout({name: tuple(t.shape) for name, t in tensors.items()}))
    return fill(network, tensors, where, ["optimizer."])


def fill(network: Network, tensors: Mapping[str, Tensor], where: str, unused: Iterable[str] = ()) -> Network:
    """Put tensors into a network made on the "meta" device, without a copy. Names must fit but for what is unused."""
    counters = "num_batches_tracked"  # of batch norms: no weights, and written in different shapes
    needed = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(counters)}
    skip = tuple(unused)
    used = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if not name.startswith(skip) and not any(part in name for part in (*UNUSED, counters))
    }
    check_keys(needed, used, where=where)
    network.load_state_dict(used, strict=False, assign=True)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return network.eval()
