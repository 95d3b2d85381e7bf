"""The tensor names of DPMesh checkpoints, and their conversion to the names used here.

Published names come from three libraries (LDM, cloneofsimo/lora, the authors' own modules) under a `module.` prefix,
most of them under two or three aliases. Nothing here needs diffusers until names are converted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.errors import AssetError
from stages.files.checkpoints import AGAIN, check_finite, check_keys, same

LICENCE = (
    "DPMesh weights (EternalEvan/DPMesh) over Stable Diffusion 1.5 (CreativeML OpenRAIL-M) and VPoser (non-commercial)"
)
ALIASES = (
    ("backbone.unet.unet.", "backbone.sd_model."),
    ("backbone.encoder_vq.", "backbone.sd_model.first_stage_model."),
)
SMPL = "human_model_layer."
SD = "backbone.sd_model."
# In the file, but unused at inference: the text model, the noise schedule, output layers, VPoser's encoder.
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
    """Canonical published names without `module.`; aliases folded in. Raises AssetError where two copies differ.

    In the file of a training, what lies beside `state_dict` (the optimiser, its counters) is no part of the network.
    """
    canonical_tensors: dict[str, Tensor] = {}
    wrapped = any(name.startswith("state_dict.") for name in tensors)
    for name, tensor in tensors.items():
        if wrapped and not name.startswith("state_dict."):
            continue
        for prefix in ("state_dict.", "module."):
            name = name.removeprefix(prefix)
        for alias, canonical in ALIASES:
            if name.startswith(alias):
                name = canonical + name.removeprefix(alias)
        if name in canonical_tensors and not same(canonical_tensors[name], tensor):
            raise AssetError(
                f"{where}: the copies of {name} differ", "a file saved from DPMesh holds the same tensor twice"
            )
        canonical_tensors[name] = tensor
    return canonical_tensors


def convert_names(published_tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Published names -> this package's (LoRA as `X.lora_A.weight`, `X.lora_B.weight`), and the SMPL arrays apart."""
    from diffusers.loaders import single_file_utils as ldm

    used = {n: t for n, t in published_tensors.items() if not n.startswith(UNUSED) and not SCHEDULE.match(n)}
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
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                lacks = f"lacks {error.args[0]}" if isinstance(error, KeyError) else "is not Stable Diffusion 1.5's"
                raise AssetError(f"{where}: the {part} {lacks}", "is the file complete?") from error
            result |= {f"{part}.{lora_name(n)}": t for n, t in converted.items() if t is not None}
            # The converters ignore names that they do not know; a foreign layer must not vanish.
            if len(converted) < len(tensors):
                lost = len(tensors) - len(converted)
                raise AssetError(
                    f"{where}: {lost} tensors of the {part} do not occur in Stable Diffusion 1.5", "is it SD 1.5?"
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


def check_body(bodies: Mapping[str, Tensor], where: str) -> None:
    """Raise AssetError unless the SMPL arrays of a file are all there, fit each other and are finite, or all absent."""
    if not bodies:
        return
    vertices = bodies["th_v_template"].numel() // 3 if "th_v_template" in bodies else 6890
    shapes = {
        "th_v_template": (1, vertices, 3),
        "th_shapedirs": (vertices, 3, 10),
        "th_posedirs": (vertices, 3, 207),
        "th_J_regressor": (24, vertices),
        "th_weights": (vertices, 24),
    }
    needed = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    count = bodies["th_faces"].shape[0] if "th_faces" in bodies and bodies["th_faces"].ndim else 0
    needed["th_faces"] = torch.empty(count, 3, dtype=torch.long, device="meta")
    check_keys(needed, bodies, where=f"{where}: its SMPL body", ignorable=("",))
    check_finite(bodies, where=f"{where}: its SMPL body")
    faces = bodies["th_faces"]
    if faces.is_floating_point() or (faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < vertices):
        raise AssetError(f"{where}: its SMPL body has faces between vertices that it does not have", AGAIN)


def body_arrays(bodies: Mapping[str, Tensor]) -> dict[str, Any]:
    """smplpytorch's names to those of `stages.smpl.body.Body.from_arrays`; {} when the file carries no SMPL."""
    if not bodies:
        return {}
    from stages.keypoints.joint_sets import SMPL_PARENTS

    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    arrays: dict[str, Any] = {name: bodies[f"th_{name}"].float().numpy() for name in names}
    arrays["v_template"] = arrays["v_template"].reshape(-1, 3)
    return arrays | {"faces": bodies["th_faces"].numpy(), "parents": SMPL_PARENTS}
