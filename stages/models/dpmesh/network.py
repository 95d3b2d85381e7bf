"""DPMesh (Zhu et al., "DPMesh: Exploiting Diffusion Prior for Occluded Human Mesh Recovery", CVPR 2024): the network.

crop (n, 3, 256, 256) in [0, 1], joints (n, 30, 2) in heatmap pixels (32 x 32) and their mask -> features, SMPL
parameters, camera. Joints are in the order of joint_sets.SETS["dpmesh30"]. The body is not part of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from stages.geometry.heatmaps import gaussian_heatmaps
from stages.keypoints.joint_sets import SETS, bones
from stages.models.dpmesh.diffusion import CropEncoder, Merge, control_maps, make_controlnet, make_unet, unet_taps
from stages.models.dpmesh.inputs import CROP, HEAT, SIGMA
from stages.models.dpmesh.pose_decoder import PoseCodebook, VPoserDecoder, gram_schmidt, matrix_to_axis_angle
from stages.models.dpmesh.regressor import LinearRegressor, TransformerRegressor

TOKENS = 30
BONES = bones(SETS["dpmesh30"])


@dataclasses.dataclass(frozen=True)
class Config:
    """Choices of architecture. The defaults are the published checkpoints'; the rest are the paper's ablations.

    width, vae_width: channels of the first block (Stable Diffusion 1.5: 320 and 128). head: "vposer" (published) or
    "codebook" (the paper's 48 tokens). condition: input of the ControlNet beside the latent: "heatmaps" or "skeleton"
    (3 maps of limbs: left, right, middle), or "none" (no ControlNet). Table 4's rows are (none, no prompt), (heatmaps,
    no prompt) and (heatmaps, prompt). join: "concatenate" with the latent, or "add" to it through a 1 x 1 convolution
    (Table 6). prompt: joint coordinates as prompt; otherwise 30 learned tokens that know nothing of the person.
    regressor: "transformer" or "linear" (Table 7).
    """

    width: int = 320
    vae_width: int = 128
    head: str = "vposer"
    condition: str = "heatmaps"
    join: str = "concatenate"
    prompt: bool = True
    regressor: str = "transformer"

    def __post_init__(self) -> None:
        choices = {
            "head": ("vposer", "codebook"),
            "condition": ("heatmaps", "skeleton", "none"),
            "join": ("concatenate", "add"),
            "regressor": ("transformer", "linear"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: one of {', '.join(allowed)}")
        if (self.head, self.regressor) == ("codebook", "linear"):
            raise ValueError("the linear regressor has no 48 pose tokens; use head='vposer'")


class DPMesh(nn.Module):
    """See the module docstring. Sub-modules: vae, unet, controlnet, merge, prompt, regressor, pose_head."""

    def __init__(self, config: Config = Config(), *, unet: Any = None, controlnet: Any = None) -> None:
        super().__init__()
        self.config = config
        self.vae = CropEncoder(config.vae_width)
        self.unet = unet or make_unet(config.width)
        maps = {"heatmaps": TOKENS, "skeleton": 3, "none": 0}[config.condition]
        added = config.join == "add"
        self.controlnet = (
            (controlnet or make_controlnet(config.width, channels=4 + maps * (not added))) if maps else None
        )
        self.condition_in = nn.Conv2d(maps, 4, 1) if maps and added else None
        self.prompt = nn.Linear(2, 768) if config.prompt else None
        self.blind_prompt = None if config.prompt else nn.Parameter(torch.randn(TOKENS, 768))
        self.merge = Merge(config.width, TOKENS)
        codebook = config.head == "codebook"
        sizes = (2048, 48) if codebook else (32, 0)
        self.regressor: nn.Module = (TransformerRegressor if config.regressor == "transformer" else LinearRegressor)(
            *sizes
        )
        self.pose_head: nn.Module = PoseCodebook() if codebook else VPoserDecoder()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.merge.parameters()).dtype

    def latent(self, image: Tensor) -> Tensor:
        """Crop (n, 3, 256, 256) in [0, 1] -> (n, 4, 32, 32). Depends on nothing else, so it can be kept."""
        return self.vae(image)

    def context(self, joints: Tensor) -> Tensor:
        """Prompt tokens (n, 30, 768). Joints that are not visible are in it, at the point that (0, 0) of the image
        falls on."""
        if self.prompt is None:
            assert self.blind_prompt is not None
            return self.blind_prompt.expand(len(joints), -1, -1)
        return self.prompt((joints / HEAT).to(self.prompt.weight.dtype))

    def condition(self, joints: Tensor, mask: Tensor) -> Tensor:
        """The condition of the ControlNet beside the latent: (n, 30 or 3, 32, 32)."""
        if self.config.condition == "skeleton":
            return skeleton_maps(joints, mask)
        return gaussian_heatmaps(joints, mask, (HEAT, HEAT), SIGMA)

    def control(self, latent: Tensor, context: Tensor, condition: Tensor) -> list[Tensor] | None:
        if self.controlnet is None:
            return None
        if self.condition_in is not None:
            return control_maps(self.controlnet, latent + self.condition_in(condition), context)
        return control_maps(self.controlnet, torch.cat([latent, condition], 1), context)

    def maps(self, latent: Tensor, context: Tensor, control: list[Tensor] | None) -> dict[str, Tensor]:
        """map32, map16, map8, map4 (attention maps appended to 16 and 8) and attn16, attn8 (n, 30, side, side)."""
        taps, attention = unet_taps(self.unet, latent, context, control)
        return {
            "map32": taps[32],
            "map16": torch.cat([taps[16], attention[16]], 1),
            "map8": torch.cat([taps[8], attention[8]], 1),
            "map4": taps[4],
            "attn16": attention[16],
            "attn8": attention[8],
        }

    def features(
        self, latent: Tensor, joints: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """latent, joints (n, 30, 2) heatmap pixels, mask (n, 30) bool -> maps and merged (n, 2048, 8, 8).

        `condition`: precomputed heatmaps, instead of those of `joints` and `mask`.
        """
        # Strides decide which kernels run, so a latent from a file must have those of a computed one.
        latent = latent.to(self.dtype).contiguous()
        context = self.context(joints)
        if condition is None:
            condition = self.condition(joints, mask)
        maps = self.maps(latent, context, self.control(latent, context, condition.to(latent.dtype)))
        maps["merged"] = self.merge(maps["map32"], maps["map16"], maps["map8"], maps["map4"])
        return maps

    def regress(self, features: Tensor, *, batch_of_three_quirk: bool = False) -> dict[str, Tensor]:
        """Features (n, 2048, 8, 8) -> the regressor's outputs and global_orient (n, 3), body_pose (n, 23, 3)."""
        # As for latents: features from a file and computed ones must have the same strides.
        out = self.regressor(features.to(next(self.regressor.parameters()).dtype).contiguous())
        out = {name: value.float() for name, value in out.items()}
        root = gram_schmidt(out["root6d"], batch_of_three_quirk=batch_of_three_quirk)
        out["global_orient"] = matrix_to_axis_angle(root)
        pose = out["pose"].to(next(self.pose_head.parameters()).dtype)
        out["body_pose"] = self.pose_head(pose).float().unflatten(1, (23, 3))
        return out

    def forward(self, image: Tensor, joints: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Everything from the crop: the outputs of `latent`, `features` and `regress`."""
        latent = self.latent(image.to(self.dtype))
        features = self.features(latent, joints, mask)
        return {"latent": latent, **features, **self.regress(features["merged"])}


def camera_translation(camera: Tensor, focal: Tensor) -> Tensor:
    """Camera numbers (n, 3) and focal length in image pixels (n,) or () -> translation (n, 3) m in the crop's camera.

    The crop's camera has that focal length over 256 crop pixels, principal point 128.
    """
    depth = torch.sigmoid(camera[:, 2]) * (2.5 * focal / CROP)
    return torch.stack([camera[:, 0], camera[:, 1], depth], -1)


def project_to_crop(xyz: Tensor, focal: Tensor) -> Tensor:
    """Points (n, V, 3) in the crop's camera -> (n, V, 2) in 64-pixel units, as in the reference."""
    focal = torch.as_tensor(focal).reshape(-1, 1, 1)
    return (xyz[..., :2] / (xyz[..., 2:] + 1e-4) * focal + CROP / 2) / 4


def skeleton_maps(joints: Tensor, mask: Tensor, sigma: float = 0.75) -> Tensor:
    """Limbs between visible joints as lines of Gaussian profile: (n, 3, 32, 32) for left, right and middle (Table
    6)."""
    names = SETS["dpmesh30"]
    pairs = torch.tensor(BONES, device=joints.device)
    a, b = joints[:, pairs[:, 0]], joints[:, pairs[:, 1]]
    visible = mask[:, pairs[:, 0]] & mask[:, pairs[:, 1]]
    grid = torch.arange(HEAT, device=joints.device, dtype=joints.dtype)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
    along, offset = b - a, points - a[:, :, None, None]
    length = (along * along).sum(-1).clamp_min(1e-6)
    t = ((offset * along[:, :, None, None]).sum(-1) / length[:, :, None, None]).clamp(0, 1)
    distance = (offset - t[..., None] * along[:, :, None, None]).square().sum(-1)
    lines = torch.exp(distance / (-2 * sigma * sigma)) * visible[:, :, None, None]
    side = [
        "left" if "left" in f"{names[i]} {names[j]}" else "right" if "right" in f"{names[i]} {names[j]}" else ""
        for i, j in BONES
    ]
    return torch.stack(
        [lines[:, [k for k, s in enumerate(side) if s == name]].amax(1) for name in ("left", "right", "")], 1
    )


def focal_of(size: Tensor) -> Tensor:
    """The reference's focal length (n,) of images (n, 2) width, height: the diagonal in pixels (CLIFF, 2022)."""
    return torch.linalg.vector_norm(size.double(), dim=-1)
