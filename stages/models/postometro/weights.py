"""Tensors of a published file -> the network: names and shapes alone determine which one it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stages.errors import AssetError
from stages.models.backbones.resnet import SEQUENCE_NAMES
from stages.models.pct import weights as pct_weights
from stages.models.pct.network import PCT
from stages.models.postometro.network import FastMetro, PostoMetro

SIZES = {1: "S", 2: "M", 3: "L"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The architecture in a file. counts: intermediate and coarse vertices · pct: Swin width, depths, and whether
    guided."""

    backbone: str
    depth: int
    counts: tuple[int, int]
    regressor: bool
    pct: tuple[int, tuple[int, ...], bool] | None

    @property
    def name(self) -> str:
        """ "PostoMETRO-L, ResNet-50, PCT Swin-V2 large"."""
        family = "PostoMETRO" if self.pct else "FastMETRO"
        backbone = {"resnet50": "ResNet-50", "hrnet_w48": "HRNet-W48", "hrnet_w64": "HRNet-W64"}[self.backbone]
        swin = f", PCT Swin-V2 {swin_size(self.pct[0])}" if self.pct else ""
        head = ", SMPL regressor" if self.regressor else ""
        return f"{family}-{SIZES.get(self.depth, self.depth)}, {backbone}{swin}{head}"


def swin_size(width: int) -> str:
    """ "base", "large", "huge", or the width itself."""
    return {192: "large", 128: "base", 256: "huge"}.get(width, f"of width {width}")


def is_mesh_network(names: Iterable[str], pose_tokens: bool) -> bool:
    """Whether tensor names (wrappers and all) are PostoMETRO's (`pose_tokens`) or FastMETRO's."""
    bare = {pct_weights.unwrapped(name) for name in names}
    mesh = {"cam_token_embed.weight", "vertex_token_embed.weight", "xyz_regressor.weight"} <= bare
    return mesh and ("dim_reduce_enc_pct.weight" in bare) == pose_tokens


def read_layout(shapes: Mapping[str, tuple[int, ...]], where: str = "the checkpoint") -> Layout:
    """The sizes that names and shapes of a mesh network's tensors imply."""
    try:
        depth = 1 + max(int(n.split(".")[3]) for n in shapes if n.startswith("transformer_1.encoder.layers."))
        if "backbone.stage4.0.branches.0.0.conv1.weight" in shapes:
            backbone = f"hrnet_w{shapes['backbone.stage4.0.branches.0.0.conv1.weight'][0]}"
        else:
            backbone = "resnet50"
        return Layout(
            backbone,
            depth,
            shapes["coarse2intermediate_upsample.weight"],  # type: ignore[arg-type]
            any(n.startswith("smpl_parameter_regressor.") for n in shapes),
            pct_weights.read_layout(shapes, "pct.") if "dim_reduce_enc_pct.weight" in shapes else None,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise AssetError(
            f"{where} begins as a FastMETRO or PostoMETRO file but lacks {error}", "is it cut or of another version?"
        ) from error


def bare_network(layout: Layout, where: str = "the checkpoint") -> FastMetro:
    """The network of a layout, parameters not initialised on the "meta" device, without body."""
    if layout.backbone not in ("resnet50", "hrnet_w48", "hrnet_w64"):
        raise AssetError(f"{where} has the image backbone {layout.backbone}, which no published network has")
    with torch.device("meta"):
        if layout.pct is None:
            return FastMetro(layout.backbone, layout.depth, layout.counts, layout.regressor)
        width, depths, guided = layout.pct
        branch = PCT(width, depths, guided)
        return PostoMetro(layout.backbone, layout.depth, layout.counts, layout.regressor, pct=branch)


def load_mesh_network(tensors: Mapping[str, Tensor], where: str = "the checkpoint") -> tuple[FastMetro, Layout]:
    """The network that unwrapped tensors are of, with them as its parameters. `set_body` must follow."""
    tensors = renamed(tensors)
    layout = read_layout({name: tuple(t.shape) for name, t in tensors.items()}, where)
    unused = ["backbone.final_layer."] if layout.backbone == "hrnet_w48" else ["backbone.classifier."]
    if layout.backbone == "hrnet_w48":
        unused += [f"backbone.stage4.2.fuse_layers.{k}." for k in range(3)]
    return pct_weights.fill(bare_network(layout, where), tensors, where, unused), layout


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FastMETRO's numbered ResNet-50 under the names that PostoMETRO uses."""
    if "backbone.0.weight" not in tensors:
        return dict(tensors)
    result = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "backbone":
            parts[1] = SEQUENCE_NAMES.get(parts[1], parts[1])
        result[".".join(parts)] = tensor
    return result
