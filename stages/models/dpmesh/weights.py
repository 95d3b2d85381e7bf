"""DPMesh checkpoints: names, what is used of them, LoRA, and Stable Diffusion 1.5 as a start.

Three forms are read, told apart by their names: the published one (LDM and `lora` library names, with or without the
`module.` prefix and its aliases), ours (this package's module names, written by `hmr convert` and the trainer), and
ours with LoRA separate. SMPL arrays inside a published checkpoint become a Body for this process and are never written.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.checkpoints import Checkpoint, check_keys, same
from stages.errors import AssetError
from stages.models.dpmesh.network import Config, DPMesh

NAME, RANK = "dpmesh", 64
LICENCE = (
    "DPMesh weights (EternalEvan/DPMesh) over Stable Diffusion 1.5 (CreativeML OpenRAIL-M) and VPoser (non-commercial)"
)
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]
ALIASES = (
    ("backbone.unet.unet.", "backbone.sd_model."),
    ("backbone.encoder_vq.", "backbone.sd_model.first_stage_model."),
)
SMPL = "human_model_layer."
SD = "backbone.sd_model."
# In the file but unused at inference: the text model, the noise schedule, output layers, VPoser's encoder.
UNUSED = (
    *(f"{SD}{part}." for part in ("cond_stage_model", "model_ema", "model.diffusion_model.out")),
    *(f"{SD}first_stage_model.{part}." for part in ("post_quant_conv", "decoder", "loss")),
    "vposer.vposer.bodyprior_enc_",
)
SCHEDULE = re.compile(r"backbone\.sd_model\.(betas|logvar|(alphas|sqrt|log|posterior)_[a-z0-9_]+)$")
RENAME = (
    ("backbone.outmodules.0.", "merge.from32."),
    ("backbone.outmodules.1.", "merge.from16."),
    ("backbone.outmodules.2.", "merge.out."),
    ("kp_lifting.", "prompt."),
    ("vposer.vposer.bodyprior_dec_", "pose_head."),
    ("vqvae.", "pose_head."),
    ("transformer.encoder.", "regressor.encoder."),
    ("transformer.decoder.joint_img_regress.", "regressor.decoder.joint_img_regress.layers."),
    ("transformer.decoder.", "regressor.decoder."),
    ("transformer.smpl_tgt", "regressor.parameter_content"),
    ("transformer.kp_tgt", "regressor.joint_content"),
    ("cascade_root_pose_out.", "regressor.root.layers."),
    ("cascade_pose_out.", "regressor.pose.layers."),
    ("cascade_shaoe_out.", "regressor.shape.layers."),
    ("cascade_cam_out.", "regressor.camera.layers."),
    ("spose_shape_cam_param", "regressor.parameter_position"),
    ("query.weight", "regressor.joint_position"),
    ("pos_embed_1d.pos_table", "regressor.volume_position"),
    ("exponent", "regressor.exponent"),
    ("conv2d_to_3d.", "regressor.conv2d_to_3d."),
    ("conv_3d_coord.", "regressor.conv_3d_coord."),
    ("refine_3d.", "regressor.refine_3d."),
    ("down_linear.", "regressor.down_linear."),
)


def recognises(names: frozenset[str]) -> bool:
    """Published names (any prefix) or ours."""
    return any("sd_model.first_stage_model." in n or n.endswith("outmodules.2.0.weight") for n in names) or (
        "merge.out.0.weight" in names and "unet.conv_in.weight" in names
    )


def published(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Canonical published names without `module.`; aliases folded in. Raises AssetError where two copies differ."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for prefix in ("state_dict.", "module."):
            name = name.removeprefix(prefix)
        for alias, canonical in ALIASES:
            if name.startswith(alias):
                name = canonical + name.removeprefix(alias)
        if name in found and not same(found[name], tensor):
            raise AssetError(
                f"{where}: the copies of {name} differ", "a file saved from DPMesh holds the same tensor twice"
            )
        found[name] = tensor
    return found


def convert_names(found: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Published names -> this package's (LoRA as `X.lora_A.weight`, `X.lora_B.weight`), and the SMPL arrays apart."""
    from diffusers.loaders import single_file_utils as ldm

    used = {n: t for n, t in found.items() if not n.startswith(UNUSED) and not SCHEDULE.match(n)}
    bodies = {n.removeprefix(SMPL): t for n, t in used.items() if n.startswith(SMPL)}
    diffusion = {n.removeprefix(SD): t for n, t in used.items() if n.startswith(SD)}
    result: dict[str, Tensor] = {}
    config = {"layers_per_block": 2}
    four = {"down_block_types": range(4), "up_block_types": range(4)}
    parts = {
        "unet": ("model.", ldm.convert_ldm_unet_checkpoint, config),
        "controlnet": ("control_model.", ldm.convert_controlnet_checkpoint, config),
        "vae": ("first_stage_model.", ldm.convert_ldm_vae_checkpoint, four),
    }
    for part, (prefix, convert, settings) in parts.items():
        tensors = {n: t for n, t in diffusion.items() if n.startswith(prefix)}
        if tensors:
            try:
                converted = convert(tensors, config=settings)
            except KeyError as error:
                raise AssetError(f"{where}: the {part} lacks {error.args[0]}", "is the file complete?") from error
            result |= {f"{part}.{lora_name(n)}": t for n, t in converted.items() if t is not None}
            # The converters pass over what they do not know; a foreign layer must not vanish.
            if len(converted) < len(tensors):
                lost = len(tensors) - len(converted)
                raise AssetError(
                    f"{where}: {lost} tensors of the {part} have no place in Stable Diffusion 1.5", "is it SD 1.5?"
                )
    for name, tensor in used.items():
        if not name.startswith((SMPL, SD)):
            result[next((new + name.removeprefix(old) for old, new in RENAME if name.startswith(old)), name)] = tensor
    if "regressor.exponent" in result:
        result["regressor.exponent"] = result["regressor.exponent"].reshape(())
    return result, bodies


def lora_name(name: str) -> str:
    """cloneofsimo/lora's names to PEFT's: lora_down is A, lora_up is B, the wrapped layer loses its `.linear`."""
    name = name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
    return re.sub(r"\.(to_q|to_k|to_v|to_out\.0|proj)\.linear\.", r".\1.", name)


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
    check_keys(model.state_dict(), tensors, where=where)
    assign(model, tensors)
    return model.eval(), bodies


def read(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors by this package's names, and the SMPL arrays, from any of the three forms."""
    if "merge.out.0.weight" in checkpoint.names:
        return dict(checkpoint.tensors), {}
    return convert_names(published(checkpoint.tensors, checkpoint.where), checkpoint.where)


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


def body_arrays(bodies: Mapping[str, Tensor]) -> dict[str, Any]:
    """smplpytorch's names to those of `stages.human.body.Body.from_arrays`; {} when the file carries no SMPL."""
    if "th_v_template" not in bodies:
        return {}
    from stages.human.joints import SMPL_PARENTS

    return {
        "v_template": bodies["th_v_template"].reshape(-1, 3).numpy(),
        "shapedirs": bodies["th_shapedirs"].numpy(),
        "posedirs": bodies["th_posedirs"].numpy(),
        "J_regressor": bodies["th_J_regressor"].numpy(),
        "weights": bodies["th_weights"].numpy(),
        "faces": bodies["th_faces"].numpy(),
        "parents": SMPL_PARENTS,
    }
