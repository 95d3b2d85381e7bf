"""Loading DPMesh: checkpoints in three forms, LoRA folded in or kept apart, and Stable Diffusion 1.5 as a start.

The forms, told apart by their names: the published one (see `names`), this package's (written by `hmr convert` and the
trainer), and this package's with LoRA separate. SMPL arrays inside a published checkpoint serve this process only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.checkpoints import Checkpoint, check_finite, check_keys
from stages.errors import AssetError
from stages.models.dpmesh.names import LICENCE, convert_names, published
from stages.models.dpmesh.network import Config, DPMesh

RANK = 64
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]


def config_of(tensors: Mapping[str, Tensor], where: str) -> Config:
    """The architecture that tensors with this package's names belong to."""
    try:
        conditioned = "controlnet.conv_in.weight" in tensors
        added = "condition_in.weight" in tensors
        channels = 0
        if conditioned:
            channels = (
                tensors["condition_in.weight"].shape[1] if added else tensors["controlnet.conv_in.weight"].shape[1] - 4
            )
        return Config(
            width=tensors["unet.conv_in.weight"].shape[0],
            vae_width=tensors["vae.encoder.conv_in.weight"].shape[0],
            head="codebook" if "pose_head.codebook" in tensors else "vposer",
            condition={0: "none", 3: "skeleton"}.get(channels, "heatmaps"),
            join="add" if added else "concatenate",
            prompt="prompt.weight" in tensors,
            regressor="linear" if "regressor.fc1.weight" in tensors else "transformer",
        )
    except KeyError as error:
        raise AssetError(f"{where} lacks {error.args[0]}", "hmr checkpoint FILE says what it holds") from error


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
    ranks = {t.shape[0] for n, t in tensors.items() if ".lora_A." in n}
    config = config_of(tensors, where)
    check_lora(tensors, where)
    if fold:
        tensors = fold_lora(tensors)
    with meta():
        model = DPMesh(config)
    if ranks and not fold:
        add_lora(model, max(ranks))
        tensors = {peft_name(n, tensors): t for n, t in tensors.items()}
    # `compact` has looked at every weight already; reading them all again would be most of the loading time.
    check_keys(model.state_dict(), tensors, where=where, finite=checkpoint.metadata.get("finite") != "checked")
    assign(model, tensors)
    return model.eval(), bodies


def compact(checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of `hmr convert`, by this package's names and without what inference does not use, and its header.

    `dtype` is that of the diffusion networks; the regressor and the pose head (16 of 1303 million numbers) stay in
    float32, where bodies would see the rounding. Raises AssetError like `load`.
    """
    tensors, _ = read(checkpoint)
    where = checkpoint.where
    config = config_of(tensors, where)
    check_lora(tensors, where)
    folded = fold_lora(tensors)
    with meta():
        model = DPMesh(config)
    check_keys(model.state_dict(), folded, where=where)
    precise = ("regressor.", "pose_head.")
    chosen = folded if fold else tensors
    header = {
        "model": "dpmesh",
        "licence": LICENCE if checkpoint.licence == "unknown" else checkpoint.licence,
        "source": where,
        "source_sha256": checkpoint.sha256,
        "lora": "folded" if fold or len(folded) == len(tensors) else "separate",
        "dtype": str(dtype).removeprefix("torch."),
        "names": "hmr 1",
        "finite": "checked",
    }
    made = {n: t.to(torch.float32 if n.startswith(precise) else dtype) for n, t in chosen.items()}
    check_finite(made, where=f"{where} in {header['dtype']}")  # half precision ends at 65504
    return made, header


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a DPMesh file holds: the architecture, its parts in millions of numbers, LoRA, and its SMPL arrays."""
    tensors, bodies = read(checkpoint)
    config = config_of(tensors, checkpoint.where)
    ranks = {t.shape[0] for n, t in tensors.items() if ".lora_A." in n}
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        parts[name.split(".")[0]] = parts.get(name.split(".")[0], 0) + tensor.numel()
    with meta():
        model = DPMesh(config)
    check_lora(tensors, checkpoint.where)
    check_keys(model.state_dict(), fold_lora(tensors) if ranks else tensors, where=checkpoint.where, finite=False)
    return {
        "architecture": dataclasses.asdict(config),
        "millions": {part: round(count / 1e6, 2) for part, count in sorted(parts.items())},
        "lora": f"rank {max(ranks)}, {sum('.lora_A.' in n for n in tensors)} layers" if ranks else "none or folded",
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


def check_lora(tensors: Mapping[str, Tensor], where: str) -> None:
    """Every LoRA pair must be whole and fit its layer; folding would otherwise fail in the middle."""
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        up, base = tensors.get(name.replace(".lora_A.", ".lora_B.")), tensors.get(name.replace(".lora_A.", "."))
        if up is None or base is None or base.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
            raise AssetError(
                f"{where}: the LoRA pair of {name.split('.lora_A.')[0]} is not whole", "is the file complete?"
            )


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
