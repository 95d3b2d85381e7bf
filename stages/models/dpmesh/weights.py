"""Loading DPMesh: checkpoints in three forms, LoRA folded in or kept apart, and Stable Diffusion 1.5 as a start.

The forms, distinguished by their names: the published one (see `checkpoint_names`), this package's (written by `hmr
convert` and the trainer), and this package's with LoRA separate. SMPL arrays inside a published checkpoint serve this
process only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import AssetError, UsageError
from stages.files.checkpoints import AGAIN, Checkpoint, check_finite, check_keys
from stages.models.dpmesh.checkpoint_names import LICENCE, check_body, convert_names, published
from stages.models.dpmesh.diffusion import GROUPS
from stages.models.dpmesh.network import Config, DPMesh

RANK = 64
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]


def config_of(tensors: Mapping[str, Tensor], where: str) -> Config:
    """The architecture that tensors with this package's names belong to."""

    def size(name: str, axis: int) -> int:
        """Of a convolution's weight: axis 0 outputs, 1 inputs."""
        if name not in tensors:
            raise AssetError(f"{where} lacks {name}", "hmr checkpoint FILE says what it holds")
        if tensors[name].ndim != 4:
            raise AssetError(f"{where}: {name} is no convolution but {tuple(tensors[name].shape)}", AGAIN)
        return tensors[name].shape[axis]

    width, vae_width = size("unet.conv_in.weight", 0), size("vae.encoder.conv_in.weight", 0)
    for part, channels in (("UNet", width), ("autoencoder", vae_width)):
        if channels % GROUPS or not 0 < channels <= 4096:
            raise AssetError(
                f"{where}: a {part} of width {channels}", f"{GROUPS}, {2 * GROUPS}, ...; Stable Diffusion 1.5 has 320"
            )
    added = "condition_in.weight" in tensors
    maps = 0
    if "controlnet.conv_in.weight" in tensors:
        maps = size("condition_in.weight", 1) if added else size("controlnet.conv_in.weight", 1) - 4
    conditions = {0: "none", 3: "skeleton", 30: "heatmaps"}
    if maps not in conditions:
        raise AssetError(
            f"{where}: its ControlNet takes {maps} maps of joints", "DPMesh's takes 30, or 3 of a skeleton"
        )
    try:
        return Config(
            width=width,
            vae_width=vae_width,
            head="codebook" if "pose_head.codebook" in tensors else "vposer",
            condition=conditions[maps],
            join="add" if added else "concatenate",
            prompt="prompt.weight" in tensors,
            regressor="linear" if "regressor.fc1.weight" in tensors else "transformer",
        )
    except ValueError as error:
        raise AssetError(f"{where}: {error}", "hmr checkpoint FILE says what it holds") from error


def uniform(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The diffusion networks in one type, regressor and pose head in float32, because rounding there changes the body.

    dtype: None keeps half precision where the UNet has it; everything else becomes float32.
    """
    if dtype is None:
        dtype = tensors["unet.conv_in.weight"].dtype
        dtype = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    return {
        n: t.to(torch.float32 if n.startswith(("regressor.", "pose_head.")) else dtype) if t.is_floating_point() else t
        for n, t in tensors.items()
    }


def fold_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + B A for every pair, so that inference pays nothing for LoRA; exact to rounding."""
    result = {n: t for n, t in tensors.items() if ".lora_A." not in n and ".lora_B." not in n}
    for name, down in tensors.items():
        if ".lora_A." in name:
            base, up = name.replace(".lora_A.", "."), tensors[name.replace(".lora_A.", ".lora_B.")]
            result[base] = (tensors[base].float() + up.float() @ down.float()).to(tensors[base].dtype)
    return result


def add_lora(model: DPMesh, rank: int = RANK) -> None:
    """Wrap the UNet's attention projections and GEGLU inputs (144 layers) by PEFT's LoRA, scale 1.

    Load weights first: names change here, and a later load that is not strict would leave wrapped layers random.
    """
    from peft import LoraConfig

    model.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))


def load(checkpoint: Checkpoint, *, fold: bool = True) -> tuple[DPMesh, dict[str, Tensor]]:
    """The network of a checkpoint, in evaluation mode on the CPU, and the SMPL arrays it carries (maybe none).

    `fold`: LoRA into the weights (inference). Otherwise LoRA stays apart, as PEFT adapters (training).
    Raises AssetError naming what is missing, foreign or not finite.
    """
    where = checkpoint.where
    tensors, bodies = read(checkpoint)
    config = config_of(tensors, where)
    ranks = check_lora(tensors, where)
    check_body(bodies, where)
    if fold:
        tensors = fold_lora(tensors)
    with meta():
        model = DPMesh(config)
    if ranks and not fold:
        add_lora(model, max(ranks))
        tensors = {peft_name(n, tensors): t for n, t in tensors.items()}
    # `compact` has checked every weight already; reading them all again would be most of the loading time.
    check_keys(model.state_dict(), tensors, where=where, finite=checkpoint.metadata.get("finite") != "checked")
    assign(model, uniform(tensors))
    return model.eval(), bodies


def compact(checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `hmr convert`, by this package's names and without what inference does not use, and its header.

    `dtype` is that of the diffusion networks; the regressor and the pose head (16 of 1303 million numbers) stay in
    float32. Raises AssetError like `load`, UsageError when LoRA should be apart and is not.
    """
    tensors, bodies = read(checkpoint)
    where = checkpoint.where
    config = config_of(tensors, where)
    ranks = check_lora(tensors, where)
    check_body(bodies, where)
    before = checkpoint.metadata
    if before.get("lora") == "folded" and not fold:
        raise UsageError(
            f"{where} has LoRA folded in, which cannot be undone", "convert the file that it was made from"
        )
    folded = fold_lora(tensors)
    with meta():
        model = DPMesh(config)
    check_keys(model.state_dict(), folded, where=where)
    header = {
        "model": "dpmesh",
        "licence": LICENCE if checkpoint.licence == "unknown" else checkpoint.licence,
        "source": before.get("source", where),
        "source_sha256": before.get("source_sha256", checkpoint.sha256),
        "architecture": json.dumps(dataclasses.asdict(config)),
        "lora": "separate" if ranks and not fold else "folded",
        "lora_layers": str(len(ranks)) if ranks else before.get("lora_layers", "unknown"),
        "lora_rank": str(max(ranks)) if ranks else before.get("lora_rank", "unknown"),
        "dtype": str(dtype).removeprefix("torch."),
        "names": "hmr 1",
        "finite": "checked",
    }
    result = uniform(folded if fold else tensors, dtype)
    check_finite(result, where=f"{where} in {header['dtype']}")  # half precision ends at 65504
    return result, header


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a DPMesh file holds: the architecture, its parts in millions of numbers, LoRA, and its SMPL arrays."""
    tensors, bodies = read(checkpoint)
    config = config_of(tensors, checkpoint.where)
    ranks = check_lora(tensors, checkpoint.where)
    check_body(bodies, checkpoint.where)
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        parts[name.split(".")[0]] = parts.get(name.split(".")[0], 0) + tensor.numel()
    with meta():
        model = DPMesh(config)
    check_keys(model.state_dict(), fold_lora(tensors) if ranks else tensors, where=checkpoint.where, finite=False)
    rank, layers = (checkpoint.metadata.get(f"lora_{n}", "unknown") for n in ("rank", "layers"))
    folded = f"folded (rank {rank}, {layers} layers)" if checkpoint.metadata.get("lora") == "folded" else "none"
    return {
        "architecture": dataclasses.asdict(config),
        "millions": {part: round(count / 1e6, 2) for part, count in sorted(parts.items())},
        "lora": f"rank {max(ranks)}, {len(ranks)} layers" if ranks else folded,
        "precision": str(tensors["unet.conv_in.weight"].dtype).removeprefix("torch."),
        "smpl_arrays": sorted(bodies),
        "form": "hmr" if "merge.out.0.weight" in checkpoint.names else "published",
    }


def read(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors by this package's names, and the SMPL arrays, from any of the three forms."""
    if "merge.out.0.weight" in checkpoint.names:
        return dict(checkpoint.tensors), {}
    tensors = published(checkpoint.tensors, checkpoint.where)
    wrapped = [name for name in tensors if name.endswith(".linear.weight")]
    bare = [name for name in wrapped if name.replace(".linear.weight", ".lora_down.weight") not in tensors]
    lacks = [] if any("control_model." in name for name in tensors) else ["its ControlNet (control_model.*)"]
    lacks += [f"LoRA of {len(bare) or 'all'} layers"] if bare or not wrapped else []
    if lacks and any("diffusion_model." in name for name in tensors):  # without them it would still run, and be wrong
        raise AssetError(f"{checkpoint.where} lacks {' and '.join(lacks)}", "every published DPMesh file has both")
    return convert_names(tensors, checkpoint.where)


def check_lora(tensors: Mapping[str, Tensor], where: str) -> list[int]:
    """The rank of each LoRA pair. AssetError unless all are whole and fit their layers; folding would fail midway."""
    ranks = []
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        up, base = tensors.get(name.replace(".lora_A.", ".lora_B.")), tensors.get(name.replace(".lora_A.", "."))
        pair = up is not None and base is not None and up.ndim == down.ndim == base.ndim == 2
        if not pair or base.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:  # type: ignore[union-attr]
            raise AssetError(
                f"{where}: the LoRA pair of {name.split('.lora_A.')[0]} is not whole", "is the file complete?"
            )
        ranks.append(down.shape[0])
    return ranks


def peft_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    """`X.lora_A.weight` -> `X.lora_A.default.weight`; `X.weight` of a wrapped layer -> `X.base_layer.weight`."""
    name = re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", name)
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.base_layer.{leaf}" if f"{stem}.lora_A.weight" in tensors else name


def own_names(model: DPMesh) -> dict[str, Tensor]:
    """A model's tensors by this package's names, whether LoRA is wrapped around it or not: what the trainer saves."""
    return {n.replace(".base_layer.", ".").replace(".default.", "."): t.detach() for n, t in model.state_dict().items()}


@contextlib.contextmanager
def meta() -> Iterator[None]:
    """Modules built here have no memory until weights are assigned."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model built on `meta` these tensors as its parameters, without a copy."""
    model.load_state_dict(dict(tensors), assign=True)
