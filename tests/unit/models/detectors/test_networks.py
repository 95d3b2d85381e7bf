"""The other detectors, with small networks made here: the geometry around them is what can go wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from stages.errors import AssetError
from stages.files import fetching
from stages.models.detectors import mmpose, rtmpose, vitpose
from stages.models.detectors.mmpose import MMPose
from stages.models.detectors.rtmpose import RtmPose
from stages.models.detectors.vitpose import VitPose

# ---- RTMPose: ONNX files whose answers are known


@pytest.fixture(scope="module")
def rtm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector.onnx says four fixed boxes; pose.onnx says that each joint is at the brightest column and row."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("rtmpose")

    def save(name: str, nodes: list, shape: list, outputs: dict, constants: dict) -> None:
        initial = [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
        image = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
        outs = [helper.make_tensor_value_info(k, t, None) for k, t in outputs.items()]
        model = helper.make_model(
            helper.make_graph(nodes, "g", [image], outs, initial), opset_imports=[helper.make_opsetid("", 17)]
        )
        model.ir_version = 8
        onnx.save(model, folder / name)

    boxes = np.array(  # in letterbox pixels; the second is nearly the first, the third is no person, the fourth unsure
        [[[64, 128, 256, 448, 0.9], [66, 128, 256, 448, 0.8], [300, 0, 400, 90, 0.9], [500, 0, 600, 90, 0.1]]],
        np.float32,
    )
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["boxes", "nothing"], ["dets"]),
        helper.make_node("Identity", ["classes"], ["labels"]),
    ]
    constants = {"boxes": boxes, "zero": np.float32(0), "classes": np.array([[0, 0, 7, 0]])}
    save("detector.onnx", nodes, [1, 3, 640, 640], {"dets": 1, "labels": 7}, constants)

    nodes, constants = [], {"unit": np.float32(0.01), "one": np.array([1], np.int64)}
    for axis, keep, size in (("x", [1, 2], 192), ("y", [1, 3], 256)):
        constants |= {f"{axis}_twice": np.arange(size).repeat(2), f"{axis}_all": np.array([1, 17, 1], np.int64)}
        nodes += [
            helper.make_node("ReduceMax", ["input"], [f"{axis}0"], axes=keep, keepdims=0),
            helper.make_node("Gather", [f"{axis}0", f"{axis}_twice"], [f"{axis}1"], axis=1),
            helper.make_node("Mul", [f"{axis}1", "unit"], [f"{axis}2"]),
            helper.make_node("Unsqueeze", [f"{axis}2", "one"], [f"{axis}3"]),
            helper.make_node("Tile", [f"{axis}3", f"{axis}_all"], [f"simcc_{axis}"]),
        ]
    save("pose.onnx", nodes, ["batch", 3, 256, 192], {"simcc_x": 1, "simcc_y": 1}, constants)
    return folder


def dot(size: tuple[int, int], x: int, y: int) -> np.ndarray:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[y - 1 : y + 2, x - 1 : x + 2] = 120
    image[y, x] = 255
    return image


def test_rtmpose_finds_the_spot_in_picture_pixels(rtm_folder: Path) -> None:
    detector = RtmPose.load(rtm_folder, device="cpu")
    images = [dot((400, 300), 151, 87), dot((400, 300), 230, 190), np.zeros((90, 120, 3), np.uint8)]
    boxes = [
        np.array([[100.0, 20, 220, 210], [140, 60, 180, 110]]),
        np.array([[200.0, 100, 260, 280]]),
        np.zeros((0, 4)),
    ]
    found = detector(images, boxes)
    assert [len(f) for f in found] == [2, 1, 0] and found[2].keypoints.shape == (0, 17, 3)
    for result, box, spot in zip(found, boxes, ((151, 87), (230, 190), (0, 0)), strict=True):
        for keypoints, (_, y0, _, y1) in zip(result.keypoints, box, strict=True):
            pixel = max((y1 - y0) * 1.25 / 256, 120 * 1.25 / 192)  # of the crop, in picture pixels
            assert np.abs(keypoints[:, :2] - spot).max() <= pixel + 0.5
            assert (keypoints[:, 2] > 0).all() and (keypoints[:, 2] <= 1).all()


def test_rtmpose_takes_people_out_of_the_letterbox(rtm_folder: Path) -> None:
    detector = RtmPose.load(rtm_folder, device="cpu")
    found = detector([dot((1280, 960), 400, 500)])[0]  # scale 0.5
    np.testing.assert_allclose(found.box, [[127.5, 255.5, 511.5, 895.5]])
    np.testing.assert_allclose(found.score, [0.9], atol=1e-6)
    assert np.abs(found.keypoints[0, :, :2] - [400, 500]).max() < 4


def test_rtmpose_box_that_is_not_finite(rtm_folder: Path) -> None:
    found = RtmPose.load(rtm_folder, device="cpu")(
        [dot((90, 90), 40, 40)], [np.array([[np.nan] * 4, [10.0, 10, 80, 80]])]
    )
    assert np.isnan(found[0].keypoints[0]).all() and np.isfinite(found[0].keypoints[1]).all()


def test_rtmpose_same_result_alone_and_together(rtm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = RtmPose.load(rtm_folder, device="cpu")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (200, 300, 3)).astype(np.uint8)
    corner = rng.uniform(0, 100, (9, 2))
    box = np.concatenate([corner, corner + rng.uniform(20, 100, (9, 2))], 1)
    together = detector([image], [box])[0].keypoints
    monkeypatch.setattr(rtmpose, "CROPS", 2)
    np.testing.assert_array_equal(detector([image], [box])[0].keypoints, together)


def test_rtmpose_missing_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssetError, match="not ready") as caught:
        RtmPose.load(tmp_path, device="cpu")
    assert "hmr assets get rtmpose" in caught.value.hint
    for name in rtmpose.FILES:
        (tmp_path / name).write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(AssetError, match=r"detector\.onnx cannot be loaded"):
        RtmPose.load(tmp_path, device="cpu")([np.zeros((64, 64, 3), np.uint8)])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(rtmpose.importlib.util, "find_spec", lambda name: None)
    assert RtmPose.missing(tmp_path) == 'pip install "hmr-toolchain[rtmpose]"'


# ---- ViTPose: transformers' own classes with tiny random weights


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("vitpose")
    torch.manual_seed(0)
    backbone = t.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = t.RTDetrConfig(
        backbone_config=backbone, backbone=None, use_pretrained_backbone=False, num_labels=1, num_queries=10,
        encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], d_model=16, decoder_layers=1, encoder_layers=1,
        decoder_ffn_dim=16, encoder_ffn_dim=16, decoder_in_channels=[16, 16, 16], decoder_attention_heads=2,
        encoder_attention_heads=2, id2label={0: "person"}, label2id={"person": 0},
    )  # fmt: skip
    t.RTDetrForObjectDetection(config).save_pretrained(folder / "detector")
    t.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "detector")
    vit = t.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        mlp_ratio=2, out_features=["stage1"],
    )  # fmt: skip
    pose = t.VitPoseConfig(backbone_config=vit, num_labels=17, use_simple_decoder=True, scale_factor=4)
    t.VitPoseForPoseEstimation(pose).save_pretrained(folder / "pose")
    t.VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder / "pose")
    return folder


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (h, w, 3)).astype(np.uint8) for h, w in ((120, 90), (64, 150), (80, 80))]


def test_vitpose_loads_from_a_folder_and_gives_people(
    vit_folder: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vitpose, "LOWEST", 0.0)  # random weights are sure of nothing
    detector = VitPose.load(vit_folder, device="cpu")
    capfd.readouterr()
    found = detector(pictures)
    assert capfd.readouterr().out == ""
    for each, image in zip(found, pictures, strict=True):
        assert len(each) == 10 and each.keypoints.shape == (10, 17, 3)
        assert (each.box >= 0).all() and (each.box <= [*image.shape[1::-1], *image.shape[1::-1]]).all()
        assert np.isfinite(each.keypoints).all() and (each.score > 0).all()


def test_vitpose_keypoints_belong_to_their_boxes(
    vit_folder: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However people are spread over pictures and batches, each gets what it gets alone."""
    detector = VitPose.load(vit_folder, device="cpu")
    boxes = [np.array([[5.0, 5, 60, 100], [20, 10, 80, 90]]), np.zeros((0, 4)), np.array([[0.0, 0, 40, 79]] * 3)]
    boxes[2][1, 0] = 20
    monkeypatch.setattr(vitpose, "CROPS", 2)
    found = detector(pictures, boxes)
    assert [len(f) for f in found] == [2, 0, 3]
    for image, box, each in zip(pictures, boxes, found, strict=True):
        for k in range(len(box)):
            alone = detector([image], [box[k : k + 1]])[0].keypoints[0]
            np.testing.assert_allclose(each.keypoints[k], alone, atol=1e-3)


def test_vitpose_missing_files(tmp_path: Path, vit_folder: Path) -> None:
    with pytest.raises(AssetError, match=r"lacks config\.json") as caught:
        VitPose.load(tmp_path, device="cpu")
    assert fetching.HUB["detector"] in caught.value.hint
    assert VitPose.missing(vit_folder) == ""
    assert VitPose.load(vit_folder, device="cpu").sha256 == VitPose.load(vit_folder, device="cpu").sha256


def test_vitpose_without_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AssetError, match="no route to host") as caught:
        VitPose.load(None, device="cpu")
    assert "--detector-path" in caught.value.hint
    assert "hmr assets get vitpose" in VitPose.missing(None)


# ---- mmpose: an extra


def test_mmpose_missing_names_both_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mmpose.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError) as caught:
        MMPose.load(tmp_path / "x.pth", device="cpu")
    assert caught.value.hint == 'pip install "hmr-toolchain[mmpose]" && pip install --no-deps mmpose==1.3.2'


def test_stand_ins_can_be_imported_from_and_refuse_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import importlib.util

    name = "hmr_absent_package"
    assert mmpose._broken(name)
    try:
        mmpose._put(name)
        mmpose._put(f"{name}.deep", value=3)
        module = importlib.import_module(f"{name}.deep")
        assert module.value == 3 and importlib.util.find_spec(name) is not None

        class Child(module.Layer):  # networks that are never built are subclassed at import
            pass

        with pytest.raises(AssetError, match=r"hmr_absent_package\.deep\.Layer"):
            Child(1, a=2)
    finally:
        for each in (name, f"{name}.deep"):
            sys.modules.pop(each, None)


def test_mmpose_end_to_end_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    pytest.importorskip("mmpose")
    import torch

    mmpose.stand_in()
    from mmpose.apis import init_model

    config = "rtmpose-t_8xb256-420e_coco-256x192"
    weights = init_model(str(mmpose.shipped_config(config)), None, device="cpu").state_dict()
    path = tmp_path / f"{config}-0123abcd_20230101.pth"
    torch.save({"state_dict": weights, "meta": {"epoch": 1}}, path)
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    found = MMPose.load(path, device="cpu")([image, image], [np.array([[10.0, 10, 100, 190]]), np.zeros((0, 4))])
    assert np.isfinite(found[0].keypoints).all() and len(found[1]) == 0
