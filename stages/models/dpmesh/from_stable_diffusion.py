"""A DPMesh to be trained, started from Stable Diffusion 1.5 and a ControlNet in local files.

Weights are loaded first and LoRA is wrapped around them second: the released training code once did it the other way,
not strictly, which left every wrapped matrix at its random start (docs/dpmesh.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys, read_checkpoint
from stages.models.dpmesh.checkpoint_names import SD, convert_names
from stages.models.dpmesh.network import Config, DPMesh
from stages.models.dpmesh.weights import RANK, add_lora

OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_stable_diffusion(
    stable_diffusion: Path, controlnet: Path | None = None, config: Config | None = None, *, rank: int = RANK
) -> DPMesh:
    """A model with Stable Diffusion's autoencoder and UNet (frozen, LoRA around the UNet), the rest trainable.

    stable_diffusion: a diffusers folder (unet/, vae/) or a single file with LDM names (v1-5-pruned.ckpt) ·
    controlnet: a folder or file, for example control_sd15_openpose.pth; without it, a copy of the UNet's encoder with
    silent outputs, as ControlNets start · config: architecture; its widths are taken from the files · rank 0: no LoRA.
    The first layer's new inputs (heatmaps) start at zero. Raises AssetError when a file lacks something.
    """
    parts = _parts(stable_diffusion)
    widths = {
        "width": parts["unet"]["conv_in.weight"].shape[0],
        "vae_width": parts["vae"]["encoder.conv_in.weight"].shape[0],
    }
    settings: dict[str, Any] = {
        f: getattr(config or Config(), f) for f in ("head", "condition", "join", "prompt", "regressor")
    }
    model = DPMesh(Config(**(settings | widths)))
    _load(model.vae, parts["vae"], stable_diffusion.name)
    _load(model.unet, parts["unet"], stable_diffusion.name)
    if model.controlnet is not None:
        started = _encoder_copy(model, parts["unet"]) if controlnet is None else _controlnet(controlnet)
        started["conv_in.weight"] = _widen(started["conv_in.weight"], model.controlnet.conv_in.weight.shape[1])
        _load(model.controlnet, started, (controlnet or stable_diffusion).name)
    model.vae.requires_grad_(False)
    model.unet.requires_grad_(False)
    if rank:
        add_lora(model, rank)
    return model


def _parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """{"unet": ..., "vae": ...} by diffusers' names."""
    if path.is_dir():
        return {part: _weights_in(path / part) for part in ("unet", "vae")}
    return _from_ldm(read_checkpoint(path), ("unet", "vae"))


def _from_ldm(checkpoint: Checkpoint, names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    tensors = {SD + name: t for name, t in checkpoint.without("state_dict.").items()}
    tensors = {
        n: t
        for n, t in tensors.items()
        if n.startswith(tuple(f"{SD}{p}." for p in ("model", "control_model", "first_stage_model")))
    }
    tensors = {n: t for n, t in tensors.items() if ".input_hint_block." not in n}
    converted, _ = convert_names(tensors, checkpoint.where)
    parts = {p: {n.removeprefix(f"{p}."): t for n, t in converted.items() if n.startswith(f"{p}.")} for p in names}
    if lacking := [part for part, tensors in parts.items() if not tensors]:
        raise AssetError(
            f"{checkpoint.where} holds no {' and no '.join(lacking)}", "is it a Stable Diffusion 1.5 file?"
        )
    return parts


def _weights_in(folder: Path) -> dict[str, Tensor]:
    """The weights of one part of a diffusers folder, by their own names."""
    names = [f"diffusion_pytorch_model{variant}.{end}" for end in ("safetensors", "bin") for variant in ("", ".fp16")]
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if file is None:
        raise AssetError(f"no weights in {folder}", f"a diffusers folder holds {names[0]} there")
    return {_modern(n): t for n, t in read_checkpoint(file).tensors.items()}


def _modern(name: str) -> str:
    """Names of old diffusers autoencoders."""
    return re.sub(r"(attentions\.0)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_VAE[m[2]]}.", name)


def _controlnet(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _weights_in(path)
    checkpoint = read_checkpoint(path)
    if "controlnet_mid_block.weight" in checkpoint.names:
        return dict(checkpoint.tensors)
    return _from_ldm(checkpoint, ("controlnet",))["controlnet"]


def _encoder_copy(model: DPMesh, unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert model.controlnet is not None
    needed = model.controlnet.state_dict()
    return {n: torch.zeros_like(t) if n.startswith("controlnet_") else unet[n].clone() for n, t in needed.items()}


def _widen(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for more inputs; the new ones start silent."""
    extra = torch.zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:], dtype=weight.dtype)
    return torch.cat([weight, extra], 1)


def _load(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    ignorable = ("conv_norm_out.", "conv_out.", "decoder.", "post_quant_conv.", "controlnet_cond_embedding.")
    needed = module.state_dict()
    check_keys(needed, tensors, where=where, ignorable=ignorable)
    module.load_state_dict({n: tensors[n].to(t.dtype) for n, t in needed.items()})
