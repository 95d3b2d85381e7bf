"""DPMesh on photos with a stand-in checkpoint: features, latents, cameras, conversion, damaged checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import convert, features
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK
from stages.artefacts.table import in_memory as memory
from stages.engine.job import RunOptions
from stages.errors import ArtefactError, AssetError, InputError, UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint
from stages.geometry.cameras import project
from stages.keypoints.joint_sets import SETS
from stages.models.dpmesh import DPMeshExtractor, DPMeshRecoverer
from stages.models.dpmesh.from_stable_diffusion import from_stable_diffusion
from stages.models.dpmesh.inputs import crops_of
from stages.models.dpmesh.network import camera_translation, focal_of
from stages.models.dpmesh.outputs import full_translation
from stages.models.dpmesh.weights import load, own_names
from stages.params import ConvertParams, FeaturesParams
from stages.visualization import attention
from tests.helpers import dpmesh_standin as standin

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors(dpmesh_tensors: Tensors) -> Tensors:
    return dpmesh_tensors


@pytest.fixture(scope="module")
def published(dpmesh_checkpoint: Path) -> Path:
    return dpmesh_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpmesh")


@pytest.fixture(scope="module")
def detections(folder: Path) -> Path:
    return standin.photos(folder)


@pytest.fixture(scope="module")
def recoverer(published: Path) -> DPMeshRecoverer:
    return DPMeshRecoverer.load(read_checkpoint(published))


@pytest.fixture(scope="module")
def bodies(recoverer: DPMeshRecoverer, detections: Path) -> dict[str, np.ndarray]:
    return numpy(recoverer(standin.people(detections)))


def numpy(out: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in out.items() if k != "error"}


def run(detections: Any, out: Path | None = None, batch: int = 4, **options: Any) -> Any:
    return features.run(detections, out, run=RunOptions(batch_size=batch, device="cpu"), root=standin.PHOTOS, **options)


@pytest.fixture(scope="module")
def direct(published: Path, detections: Path, folder: Path) -> Path:
    return run(detections, folder / "direct.features.h5", ckpt=published)


def test_features_in_memory_and_in_file_are_the_same_bits(direct: Path, published: Path, detections: Path) -> None:
    in_memory = run(detections, ckpt=published)
    with open_artefact(direct, "features") as file:
        np.testing.assert_array_equal(file.read("features/dpmesh"), in_memory.read("features/dpmesh"))
        assert file.dtype("features/dpmesh") == np.float16 and file.shape("features/dpmesh") == (2, 2048, 8, 8)
        assert file.group_attrs("features")["extractor"] == "dpmesh"
        assert file.attrs["model"]["name"] == "dpmesh" and len(file.attrs["model"]["sha256"]) == 64
        assert file.read("features/dpmesh").min() >= 0


def test_latents_stand_for_the_pictures(direct: Path, published: Path, detections: Path, folder: Path) -> None:
    latents = run(detections, folder / "latents.features.h5", ckpt=published, params=FeaturesParams("dpmesh-latents"))
    again = features.run(detections, None, ckpt=published, latents=latents, root=folder / "no pictures here")
    with open_artefact(direct) as file:
        np.testing.assert_array_equal(file.read("features/dpmesh"), again.read("features/dpmesh"))


def test_heatmaps_of_other_crops_are_refused(published: Path, detections: Path, recoverer: DPMeshRecoverer) -> None:
    people = standin.people(detections, [0])
    wrong = {"features/crop": np.eye(2, 3)[None], "heatmaps/crop": np.eye(2, 3)[None]}
    with pytest.raises(ArtefactError, match="other crops"):
        recoverer(dataclasses.replace(people, columns=wrong))
    with pytest.raises(ArtefactError, match="these are 17 x 64 x 64"):
        recoverer(dataclasses.replace(people, columns={"heatmaps/value": np.zeros((1, 17, 64, 64))}))


def test_a_person_without_keypoints_is_a_failed_row(detections: Path, published: Path) -> None:
    with open_artefact(detections) as table:
        columns = {n: table.read(n).copy() for n in table.columns()}
        columns["keypoints/score"][1] = 0
        groups = {"keypoints": table.group_attrs("keypoints")}
        damaged = memory("detections", frames=table.frames, rows=table.rows, columns=columns, group_attrs=groups)
        made = run(damaged, ckpt=published, batch=2)
    assert list(made.rows["status"]) == [OK, FAILED] and "too few keypoints" in made.rows["error"][1]
    assert np.isnan(made.read("features/dpmesh")[1:]).all() and np.isfinite(made.read("features/dpmesh")[0]).all()


def test_translation_lands_where_the_crop_says(recoverer: DPMeshRecoverer) -> None:
    """A point in the root's plane falls on the same pixel through the crop's camera and through K."""
    generator = torch.Generator().manual_seed(0)
    camera, size = torch.randn(6, 3, generator=generator), torch.tensor([[640, 480]] * 6)
    center, side = torch.rand(6, 2, generator=generator) * 400, torch.rand(6, generator=generator) * 300 + 50
    K = torch.tensor([[900.0, 0, 300], [0, 900, 260], [0, 0, 1]]).expand(6, 3, 3)
    focal = focal_of(size).float()
    transl = full_translation(camera, focal, center, side, K)
    in_crop = camera_translation(camera, focal)
    offset = torch.tensor([0.3, -0.4, 0.0])
    pixel = project((transl + offset)[:, None], K)[:, 0]
    crop_pixel = (in_crop + offset)[:, :2] / in_crop[:, 2:] * focal[:, None]
    torch.testing.assert_close(pixel, center + crop_pixel * (side / 256)[:, None], rtol=1e-4, atol=1e-2)


def test_outputs_are_complete(bodies: dict[str, np.ndarray], recoverer: DPMeshRecoverer) -> None:
    assert {c.name for c in recoverer.columns} == set(bodies)
    assert all(np.isfinite(v).all() for v in bodies.values())
    assert recoverer.group_attrs["joints"]["joints"] == list(SETS["smpl24"])
    body = recoverer.body
    made = body(*(torch.from_numpy(bodies[f"smpl/{n}"]) for n in ("global_orient", "body_pose", "betas", "transl")))
    np.testing.assert_allclose(made.joints.numpy(), bodies["joints/xyz"], atol=2e-3)


def test_attention_maps_for_the_viewer(recoverer: DPMeshRecoverer, detections: Path) -> None:
    found = recoverer.attention(standin.people(detections, [0, 1]))
    assert found["attn16"].shape == (2, 30, 16, 16) and found["images"].shape == (2, 256, 256, 3)
    np.testing.assert_allclose(found["attn16"].sum(1), 1, atol=1e-5)
    assert found["images"].std() > 10


@pytest.mark.slow
def test_attention_pictures(published: Path, detections: Path, folder: Path) -> None:
    made = attention.run(detections, folder / "attention", published, root=standin.PHOTOS, run=RunOptions(device="cpu"))
    assert len(made) == 2 and all(p.stat().st_size > 10_000 for p in made)


# ---- checkpoints


def forms(published: Path, folder: Path) -> dict[str, Path]:
    made = {}
    for name, params in {
        "separate": ConvertParams(fold=False),
        "folded": ConvertParams(),
        "bf16": ConvertParams(dtype="bfloat16"),
    }.items():
        made[name] = convert.convert(published, folder / f"{name}.safetensors", params)
    return made


@torch.no_grad()
def test_converted_checkpoints(published: Path, folder: Path, recoverer: DPMeshRecoverer, detections: Path) -> None:
    people = standin.people(detections, [1])
    wanted = numpy(recoverer(people))
    for name, path in forms(published, folder).items():
        checkpoint = read_checkpoint(path)
        assert "OpenRAIL" in checkpoint.licence and checkpoint.metadata["source_sha256"]
        assert not [t for t in checkpoint.tensors.values() if 6890 in t.shape or 13776 in t.shape]
        assert path.stat().st_size < published.stat().st_size * (0.55 if name == "bf16" else 0.95)
        loaded = DPMeshRecoverer.load(checkpoint, body=recoverer.body)
        out = numpy(loaded(people))
        if name == "bf16":  # bodies of random weights are not close: compare what the networks see
            mine, own = (r.diffusion(people, crops_of(people))["merged"].float() for r in (loaded, recoverer))
            assert float((mine - own).norm() / own.norm()) < 0.05
            continue
        for key, value in wanted.items():
            # Not the same bits: where weights lie in the file decides how they are aligned in memory.
            np.testing.assert_allclose(out[key], value, atol=1e-5 * max(1, np.abs(value).max()), err_msg=key)
    assert convert.convert(published, folder / "folded.safetensors", ConvertParams()).exists()
    with pytest.raises(InputError, match="from another file or other settings"):
        convert.convert(published, folder / "folded.safetensors", ConvertParams(fold=False))
    with pytest.raises(UsageError, match="int8"):
        convert.convert(published, folder / "x.safetensors", ConvertParams(dtype="int8"))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_a_whole_file_in_half_precision(
    tensors: Tensors, dtype: torch.dtype, recoverer: DPMeshRecoverer, detections: Path
) -> None:
    """Weights, SMPL arrays and all: regressor and body run in float32, the diffusion networks in what the CPU can."""
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    loaded = DPMeshRecoverer.load(Checkpoint(Path("x"), half, {}))
    assert loaded.model.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    assert next(loaded.model.regressor.parameters()).dtype == torch.float32
    people = standin.people(detections, [0])
    mine, own = (r.diffusion(people, crops_of(people))["merged"].float() for r in (loaded, recoverer))
    assert float((mine - own).norm() / own.norm()) < 0.05
    out = numpy(loaded(people))
    assert loaded.body.name == "smpl" and all(np.isfinite(v).all() for v in out.values())


def test_converted_file_says_what_it_is(published: Path, folder: Path) -> None:
    header = read_checkpoint(convert.convert(published, folder / "said.safetensors")).metadata
    assert header["lora"] == "folded" and (header["lora_layers"], header["lora_rank"]) == ("144", "64")
    assert header["dtype"] == "float32" and '"width": 64' in header["architecture"]
    found = convert.describe(folder / "said.safetensors")["dpmesh"]
    assert found["lora"] == "folded (rank 64, 144 layers)" and found["precision"] == "float32"
    small = convert.convert(folder / "said.safetensors", folder / "small.safetensors", ConvertParams(dtype="float16"))
    again = read_checkpoint(small).metadata  # a copy of a copy knows where it comes from
    assert again["source_sha256"] == header["source_sha256"] and again["lora_layers"] == "144"


def test_checkpoint_is_described(published: Path) -> None:
    found = convert.describe(published)
    assert found["systems"][0] == "dpmesh" and found["problem"] == "" and found["tensors"] > 1648
    assert found["dpmesh"]["lora"] == "rank 64, 144 layers" and found["dpmesh"]["architecture"]["width"] == 64
    assert "th_v_template" in found["dpmesh"]["smpl_arrays"]


def test_lora_stays_trainable(tensors: Tensors, recoverer: DPMeshRecoverer) -> None:
    model, _ = load(Checkpoint(Path("x"), tensors, {}), fold=False)
    args = torch.randn(1, 4, 32, 32), torch.rand(1, 30, 2) * 32, torch.rand(1, 30) > 0.5
    apart = model.features(*args)["merged"]
    with torch.no_grad():
        folded = recoverer.model.features(*args)["merged"]
    torch.testing.assert_close(apart, folded, rtol=1e-4, atol=2e-5 * float(folded.max()))
    apart.sum().backward()
    gradients = [p.grad for n, p in model.unet.named_parameters() if "lora" in n]
    # 16 blocks x 9 layers x 2 matrices; keys of a decoder's last maps need no gradient only if nothing followed them.
    assert len(gradients) == 288 and sum(g is not None and bool(g.abs().max() > 0) for g in gradients) >= 280
    assert {n for n in own_names(model) if n.startswith("unet.")} >= {"unet.conv_in.weight"}


def broken(tensors: Tensors, how: str) -> Tensors:
    made = dict(tensors)
    if how == "missing":
        del made["module.conv2d_to_3d.weight"]
    elif how == "missing in the UNet":
        del made["module.backbone.sd_model.model.diffusion_model.input_blocks.4.0.in_layers.2.weight"]
    elif how == "half a LoRA pair":
        name = "transformer_blocks.0.attn1.to_q.lora_up.weight"
        del made[f"module.backbone.sd_model.model.diffusion_model.input_blocks.1.1.{name}"]
    elif how == "unexpected":
        made["module.surprise.weight"] = torch.zeros(1)
    elif how == "unexpected in the UNet":
        made["module.backbone.sd_model.model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(1)
    elif how == "misshaped":
        made["module.kp_lifting.weight"] = torch.zeros(768, 3)
    elif how == "NaN":
        made["module.kp_lifting.weight"] = torch.full((768, 2), float("nan"))
    elif how == "copies differ":
        name = "model.diffusion_model.time_embed.0.weight"
        made[f"module.backbone.unet.unet.{name}"] = made[f"module.backbone.sd_model.{name}"] + 1
    elif how == "no ControlNet":
        made = {name: t for name, t in made.items() if "control_model." not in name}
    elif how == "no LoRA":
        made = {name: t for name, t in made.items() if "lora_" not in name}
    elif how == "no LoRA in the encoder":
        made = {name: t for name, t in made.items() if not ("lora_" in name and "input_blocks" in name)}
    elif how == "SMPL arrays that do not fit":
        made["module.human_model_layer.th_weights"] = torch.zeros(5, 3)
    elif how == "NaN in SMPL":
        made["module.human_model_layer.th_v_template"] = torch.full((1, 6890, 3), float("nan"))
    elif how == "half of SMPL":
        del made["module.human_model_layer.th_posedirs"]
    elif how == "faces without vertices":
        made["module.human_model_layer.th_faces"] = torch.full((13776, 3), 6890)
    elif how == "flat":
        made["module.backbone.sd_model.model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(64)
    elif how == "odd width":
        made["module.backbone.sd_model.model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(63, 4, 3, 3)
    elif how == "other conditions":
        made["module.backbone.sd_model.control_model.input_blocks.0.0.weight"] = torch.zeros(64, 21, 3, 3)
    elif how == "LoRA of another rank inside":
        name = "transformer_blocks.0.attn1.to_q.lora_up.weight"
        made[f"module.backbone.sd_model.model.diffusion_model.input_blocks.1.1.{name}"] = torch.zeros(64)
    elif how == "sparse":
        made["module.kp_lifting.weight"] = torch.zeros(768, 2).to_sparse()
    elif how == "complex":
        made["module.kp_lifting.weight"] = torch.zeros(768, 2, dtype=torch.complex64)
    elif how == "foreign":
        made = {"net.weight": torch.zeros(3)}
    return made


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "missing": "1 missing .regressor.conv2d_to_3d.weight",
        "missing in the UNet": "1 missing .unet.down_blocks.1",
        "half a LoRA pair": "LoRA pair of unet.down_blocks.0",
        "unexpected": "1 unexpected .surprise.weight",
        "unexpected in the UNet": "do not occur in Stable Diffusion",
        "misshaped": "768 x 3 for 768 x 2",
        "NaN": "NaN or infinite weights: prompt.weight",
        "copies differ": "copies of .*time_embed.0.weight differ",
        "no ControlNet": "lacks its ControlNet",
        "no LoRA": "lacks LoRA of 144 layers",
        "no LoRA in the encoder": r"lacks LoRA of \d+ layers",
        "SMPL arrays that do not fit": "its SMPL body.* 5 x 3 for 6890 x 24",
        "NaN in SMPL": "its SMPL body holds NaN .* th_v_template",
        "half of SMPL": "its SMPL body .* 1 missing .th_posedirs",
        "faces without vertices": "faces between vertices that it does not have",
        "flat": "unet.conv_in.weight is no convolution",
        "odd width": "a UNet of width 63",
        "other conditions": "takes 17 maps of joints",
        "LoRA of another rank inside": "LoRA pair of unet.down_blocks.0",
        "sparse": "of a kind that no network",
        "complex": "of a kind that no network",
        "foreign": "lacks unet.conv_in.weight",
    }.items(),
)
def test_broken_checkpoint_is_named(tensors: Tensors, how: str, words: str) -> None:
    with pytest.raises(AssetError, match=words) as caught:
        DPMeshExtractor.load(Checkpoint(Path("x.pth"), broken(tensors, how), {}))
    assert "\n" not in caught.value.message and caught.value.hint


def test_without_a_checkpoint_it_says_where_to_get_one() -> None:
    with pytest.raises(AssetError, match="no weights of its own"):
        DPMeshExtractor.load(None)


@pytest.mark.slow
def test_starts_from_a_single_ldm_file(tensors: Tensors, tmp_path: Path) -> None:
    prefix = "module.backbone.sd_model."
    plain = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix) and ".lora_" not in n}
    plain = {n.replace(".linear.", "."): t for n, t in plain.items()}
    plain["control_model.input_blocks.0.0.weight"] = plain["control_model.input_blocks.0.0.weight"][:, :4].clone()
    plain["control_model.input_hint_block.0.weight"] = torch.zeros(16, 3, 3, 3)
    torch.save({"state_dict": plain, "global_step": 1}, tmp_path / "sd.ckpt")
    model = from_stable_diffusion(tmp_path / "sd.ckpt", tmp_path / "sd.ckpt", rank=2)
    own = own_names(model)
    first = "transformer_blocks.0.attn1.to_q"
    name = f"module.backbone.sd_model.model.diffusion_model.input_blocks.1.1.{first}.linear.weight"
    assert torch.equal(own[f"unet.down_blocks.0.attentions.0.{first}.weight"], tensors[name])
    assert torch.equal(own["controlnet.controlnet_mid_block.bias"], plain["control_model.middle_block_out.0.bias"])
