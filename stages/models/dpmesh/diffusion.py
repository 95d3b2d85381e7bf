"""DPMesh's backbone: one step of Stable Diffusion 1.5 as a feature extractor (paper section 3.2 and 3.3; reference
EternalEvan/DPMesh, `backbone`), on the modules of `diffusers`.

crop in [0, 1] -> VAE encoder, posterior mean, unscaled, no noise -> UNet at timestep 1, with a ControlNet on
latent and joint heatmaps, and 30 joint tokens as prompt -> four taps of the decoder and the cross-attention maps ->
2048 x 8 x 8. Nothing after the last tap is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.autoencoders.vae import Encoder
    from diffusers.models.resnet import ResnetBlock2D

TIMESTEP = 1
GROUPS = 32
# Sides of the token grid where cross-attention maps are kept: 2 encoder and 3 decoder blocks each, not the middle one.
MAP_SIDES = (8, 16)


class CropEncoder(nn.Module):
    """The encoder of Stable Diffusion's autoencoder: crop (n, 3, 256, 256) in [0, 1] -> latent (n, 4, 32, 32)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        channels = tuple(width * k for k in (1, 2, 4, 4))
        blocks = ("DownEncoderBlock2D",) * 4
        self.encoder = Encoder(3, 4, blocks, channels, layers_per_block=2, norm_num_groups=GROUPS, double_z=True)
        self.quant_conv = nn.Conv2d(8, 8, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (n, 4, 32, 32) of the posterior."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def forward(self, image: Tensor) -> Tensor:
        return self.moments(image)[0]


def make_unet(width: int = 320, prompt_width: int = 768) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet without its output convolution."""
    unet = UNet2DConditionModel(
        block_out_channels=tuple(width * k for k in (1, 2, 4, 4)),
        cross_attention_dim=prompt_width,
        attention_head_dim=8,
        norm_num_groups=GROUPS,
    )
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None
    for block in mapped_blocks(unet):
        block.attn1.set_processor(KeepMaps())
        block.attn2.set_processor(KeepMaps())
    return _with_active_time(unet)


def make_controlnet(width: int = 320, prompt_width: int = 768, channels: int = 34) -> ControlNetModel:
    """Stable Diffusion 1.5's ControlNet with `channels` inputs and without the hint network."""
    net = ControlNetModel(
        in_channels=channels,
        block_out_channels=tuple(width * k for k in (1, 2, 4, 4)),
        cross_attention_dim=prompt_width,
        attention_head_dim=8,
        norm_num_groups=GROUPS,
    )
    net.controlnet_cond_embedding = None
    return _with_active_time(net)


def _with_active_time(net: Any) -> Any:
    """Blocks expect the time embedding after its SiLU: `time_embedding` does that once for all of them."""
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            module.skip_time_act = True
    return net


def mapped_blocks(unet: Any) -> list[Any]:
    """The transformer blocks whose cross-attention maps are kept: at 16 x 16 and 8 x 8, not the middle one."""
    levels = [unet.down_blocks[1], unet.down_blocks[2], unet.up_blocks[1], unet.up_blocks[2]]
    return [block for level in levels for attention in level.attentions for block in attention.transformer_blocks]


class KeepMaps:
    """Attention that, over the prompt, appends its map averaged over heads to `maps`: (n, queries, tokens)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if maps is None or encoder_hidden_states is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
            maps.append(weights.mean(1))
            out = weights @ v
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def control_maps(net: ControlNetModel, x: Tensor, context: Tensor) -> list[Tensor]:
    """The 13 control maps of input x (n, 4 + joints, 32, 32), first block first, the middle one last."""
    time = time_embedding(net, x)
    x = net.conv_in(x)
    skips = [x]
    for block in net.down_blocks:
        x, outputs = _down(block, x, time, context, None)
        skips += outputs
    x = _middle(net.mid_block, x, time, context)
    zero = [conv(skip) for conv, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    return [*zero, net.controlnet_mid_block(x)]


def unet_taps(
    unet: UNet2DConditionModel, latent: Tensor, context: Tensor, control: Sequence[Tensor] | None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Decoder features by side {32, 16, 8, 4}, and mean cross-attention maps (n, tokens, side, side) by side {16, 8}.

    LDM's output blocks 11, 7, 4 and 1. `control`: 13 maps added to the skips and to the middle block's output.
    """
    time = time_embedding(unet, latent)
    maps: dict[int, list[Tensor]] = {side: [] for side in MAP_SIDES}
    x = unet.conv_in(latent)
    skips = [x]
    for block in unet.down_blocks:
        x, outputs = _down(block, x, time, context, maps)
        skips += outputs
    x = _middle(unet.mid_block, x, time, context)
    if control is not None:
        skips = [skip + extra for skip, extra in zip(skips, control[:-1], strict=True)]
        x = x + control[-1]
    taps: dict[int, Tensor] = {}
    last = {4: 1, 8: 1, 16: 1, 32: 2}  # which of a block's three layers is tapped
    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            x = resnet(torch.cat([x, skips.pop()], 1), time)
            if hasattr(block, "attentions"):
                x = _attend(block.attentions[i], x, context, maps)
            if last[x.shape[-1]] == i:
                taps[x.shape[-1]] = x
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    sides = {s: torch.stack(kept).mean(0).transpose(1, 2).unflatten(2, (s, s)) for s, kept in maps.items() if kept}
    return taps, sides


def time_embedding(net: Any, x: Tensor) -> Tensor:
    """The activated embedding (1, 4 width) of timestep 1: the same for every sample and block, computed once."""
    step = torch.full((1,), TIMESTEP, device=x.device)
    return F.silu(net.time_embedding(net.time_proj(step).to(x.dtype)))


def _down(block: Any, x: Tensor, time: Tensor, context: Tensor, maps: Any) -> tuple[Tensor, list[Tensor]]:
    outputs = []
    for i, resnet in enumerate(block.resnets):
        x = resnet(x, time)
        if hasattr(block, "attentions"):
            x = _attend(block.attentions[i], x, context, maps)
        outputs.append(x)
    for downsampler in block.downsamplers or ():
        x = downsampler(x)
        outputs.append(x)
    return x, outputs


def _middle(block: Any, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    x = block.resnets[0](x, time)
    x = _attend(block.attentions[0], x, context, None)
    return block.resnets[1](x, time)


def _attend(attention: Any, x: Tensor, context: Tensor, maps: dict[int, list[Tensor]] | None) -> Tensor:
    keep = maps.get(x.shape[-1]) if maps else None
    extra = {"maps": keep} if keep is not None else None
    return attention(x, encoder_hidden_states=context, cross_attention_kwargs=extra, return_dict=False)[0]


class Merge(nn.Module):
    """Taps and attention maps (32, 16, 8, 4) -> (n, 2048, 8, 8), non-negative. Strided convolutions and one 1 x 1."""

    def __init__(self, width: int = 320, tokens: int = 30) -> None:
        super().__init__()
        middle, deep = 2 * width + tokens, 8 * width + tokens
        self.from32 = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(16, width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)
        )
        self.from16 = nn.Sequential(nn.Conv2d(middle, middle, 3, 2, 1))
        self.out = nn.Sequential(nn.Conv2d(width + middle + deep, 2048, 1), nn.GroupNorm(16, 2048), nn.ReLU())

    def forward(self, map32: Tensor, map16: Tensor, map8: Tensor, map4: Tensor) -> Tensor:
        """map32 (n, w, 32, 32), map16 (n, 2w + 30, 16, 16), map8 (n, 4w + 30, 8, 8), map4 (n, 4w, 4, 4)."""
        up = F.interpolate(map4, scale_factor=2.0, mode="nearest")
        return self.out(torch.cat([self.from32(map32), self.from16(map16), map8, up], 1))
