"""Every architecture of the paper's ablations is built, run and trained for one step, at a tiny width."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from stages.files.checkpoints import Checkpoint
from stages.models.dpmesh.from_stable_diffusion import from_stable_diffusion
from stages.models.dpmesh.network import Config, DPMesh, skeleton_maps
from stages.models.dpmesh.weights import add_lora, config_of, load, own_names

TINY = Config(width=32, vae_width=32)
VARIANTS = {
    "published": {},
    "latent only": {"condition": "none", "prompt": False},
    "heatmaps, no prompt": {"prompt": False},
    "heatmaps added": {"join": "add"},
    "skeleton": {"condition": "skeleton"},
    "skeleton added": {"condition": "skeleton", "join": "add"},
    "prompt only": {"condition": "none"},
    "linear regressor": {"regressor": "linear"},
    "codebook": {"head": "codebook"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_runs(name: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, **VARIANTS[name])
    model = DPMesh(config).eval()
    assert config_of(model.state_dict(), "a test") == config
    joints, mask = torch.rand(1, 30, 2) * 32, torch.rand(1, 30) > 0.3
    with torch.no_grad():
        found = model.features(torch.randn(1, 4, 32, 32), joints, mask)
    assert found["merged"].shape == (1, 2048, 8, 8) and found["attn16"].shape == (1, 30, 16, 16)
    assert torch.allclose(found["attn8"].sum(1), torch.ones(1, 8, 8), atol=1e-5)
    merged = found["merged"].requires_grad_()
    out = model.regress(merged)
    assert out["global_orient"].shape == (1, 3) and out["body_pose"].shape == (1, 23, 3)
    assert out["betas"].shape == (1, 10) and ("joint_img" in out) == (config.regressor == "transformer")
    sum((out[k] ** 2).sum() for k in ("global_orient", "body_pose", "betas", "camera")).backward()
    assert torch.isfinite(merged.grad).all() and merged.grad.abs().max() > 0


def test_published_architecture_learns() -> None:
    """Gradients reach the first layers of UNet and ControlNet, through the maps and through the taps."""
    torch.manual_seed(0)
    model = DPMesh(TINY)
    loud(model)
    found = model.features(torch.randn(1, 4, 32, 32), torch.rand(1, 30, 2) * 32, torch.rand(1, 30) > 0.3)
    (found["merged"].square().mean() + found["attn8"].square().mean()).backward()
    for part in ("unet.conv_in", "merge.out.0", "controlnet.conv_in", "prompt"):
        gradient = model.get_submodule(part).weight.grad
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().max() > 0, part


def loud(model: DPMesh) -> None:
    """A fresh ControlNet is silent: its output convolutions are zero."""
    assert model.controlnet is not None
    for conv in [*model.controlnet.controlnet_down_blocks, model.controlnet.controlnet_mid_block]:
        torch.nn.init.normal_(conv.weight, std=0.1)


def test_conditions_matter() -> None:
    """Heatmaps reach the features through the ControlNet, joints through the prompt, each alone."""
    torch.manual_seed(0)
    latent, mask = torch.randn(1, 4, 32, 32), torch.ones(1, 30, dtype=torch.bool)
    one, other = torch.full((1, 30, 2), 8.0), torch.full((1, 30, 2), 24.0)
    for options in ({"prompt": False}, {"condition": "none"}, {"condition": "none", "prompt": False}):
        model = DPMesh(dataclasses.replace(TINY, **options)).eval()
        if model.controlnet is not None:
            loud(model)
        with torch.no_grad():
            # Not `merged`: a GroupNorm follows, and attention maps reach it only weakly.
            maps = [
                torch.cat([f[k].flatten() for k in ("map8", "map16")])
                for f in (model.features(latent, j, mask) for j in (one, other))
            ]
        assert torch.equal(*maps) == (options == {"condition": "none", "prompt": False})


def test_impossible_choices_are_named() -> None:
    with pytest.raises(ValueError, match="join 'mix'"):
        Config(join="mix")
    with pytest.raises(ValueError, match="linear regressor"):
        Config(head="codebook", regressor="linear")


def test_skeleton_is_drawn_where_the_limbs_are() -> None:
    joints, mask = torch.zeros(1, 30, 2), torch.zeros(1, 30, dtype=torch.bool)
    joints[0, 1], joints[0, 4] = torch.tensor([10.0, 8.0]), torch.tensor([10.0, 20.0])  # left hip, left knee
    mask[0, [1, 4]] = True
    maps = skeleton_maps(joints, mask)
    assert maps.shape == (1, 3, 32, 32) and maps[0, 1:].max() == 0
    assert torch.allclose(maps[0, 0, 8:21, 10], torch.ones(13)) and maps[0, 0, 14, 20] < 1e-3


def test_lora_wraps_144_layers_and_starts_silent() -> None:
    torch.manual_seed(0)
    model = DPMesh(TINY).eval()
    joints, mask, latent = torch.rand(1, 30, 2) * 32, torch.ones(1, 30, dtype=torch.bool), torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        before = model.features(latent, joints, mask)["merged"]
        add_lora(model, 4)
        assert torch.allclose(model.features(latent, joints, mask)["merged"], before, atol=1e-5)
    names = own_names(model)
    assert sum(".lora_A." in n for n in names) == 144 and "unet.conv_in.weight" in names


def test_starts_from_stable_diffusion(tmp_path) -> None:
    """Folder and single file give the same start; every loaded matrix is the file's, wrapped by LoRA or not."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = DPMesh(TINY)
    for part, module in (("unet", source.unet), ("vae", source.vae)):
        (tmp_path / "sd" / part).mkdir(parents=True)
        save_file(module.state_dict(), tmp_path / "sd" / part / "diffusion_pytorch_model.safetensors")
    model = from_stable_diffusion(tmp_path / "sd", rank=4)
    own, theirs = own_names(model), source.state_dict()
    for name in ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", "vae.encoder.conv_in.weight"):
        assert torch.equal(own[name], theirs[name])
    assert torch.equal(own["controlnet.conv_in.weight"][:, :4], theirs["unet.conv_in.weight"])
    assert own["controlnet.conv_in.weight"][:, 4:].abs().max() == 0
    trainable = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"unet", "controlnet", "merge", "prompt", "regressor", "pose_head"}
    assert all("lora" in n for n, p in model.unet.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["codebook", "heatmaps added", "latent only"])
def test_what_a_checkpoint_holds_chooses_the_architecture(name: str) -> None:
    torch.manual_seed(0)
    model = DPMesh(dataclasses.replace(TINY, **VARIANTS[name]))
    add_lora(model, 2)
    loaded, bodies = load(Checkpoint(Path("x"), own_names(model), {}))
    assert loaded.config == model.config and bodies == {}
    theirs = loaded.state_dict()
    for key, value in own_names(model).items():
        if ".lora_" not in key:
            assert torch.equal(theirs[key], value), key  # LoRA starts silent, so folding it changes nothing
