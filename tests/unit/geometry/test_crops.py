"""Crops: the published rules on their recorded cases, and what must hold for any crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.geometry import crops
from stages.geometry.heatmaps import gaussian_heatmaps
from tests.helpers.fixtures import PARITY


def case(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(PARITY / f"{name}.npz"))


@settings(max_examples=60, deadline=None)
@given(st.floats(-500, 3000), st.floats(-500, 3000), st.floats(0.5, 4000), st.sampled_from([64, 224, 256]))
def test_square_affine_inverts_and_fills_the_crop(x: float, y: float, side: float, size: int) -> None:
    affine = crops.square_affine(np.array([[x, y]]), np.array([side]), size)
    corners = np.array([[[x - side / 2, y - side / 2], [x + side / 2, y + side / 2]]])
    inside = crops.apply(affine, corners)
    np.testing.assert_allclose(inside[0], [[0, 0], [size, size]], atol=1e-6)
    np.testing.assert_allclose(crops.apply(crops.invert(affine), inside), corners, atol=1e-6)


def test_warp_samples_pixel_centres() -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    image[20, 30] = 200
    affine = crops.square_affine(np.array([[30.0, 20.0]]), np.array([32.0]), 32)
    crop = crops.warp([image], np.array([0]), affine, 32)
    assert crop.shape == (1, 32, 32, 3) and crop[0, 16, 16, 0] == 200 and (crop > 0).sum() == 3


def test_warp_of_nothing_and_of_a_box_without_a_place() -> None:
    image = np.full((8, 8, 3), 9, np.uint8)
    assert crops.warp([image], np.zeros(0, int), np.zeros((0, 2, 3)), 16).shape == (0, 16, 16, 3)
    assert not crops.warp([image], np.array([0]), np.full((1, 2, 3), np.nan), 16).any()


def test_dpmesh_box_of_unseen_or_outside_people_is_nan() -> None:
    keypoints = np.zeros((3, 30, 3))
    keypoints[1] = [50, 60, 0.04]
    keypoints[2] = np.nan
    assert np.isnan(crops.dpmesh_boxes(keypoints, np.array([[100, 100]] * 3))).all()
    outside = np.tile([900.0, 900.0, 1.0], (1, 30, 1))
    assert np.isnan(crops.dpmesh_boxes(outside, np.array([[100, 100]]))).all()


def test_mmpose_affine_keeps_the_aspect_and_centres() -> None:
    box = np.array([[100.0, 50.0, 200.0, 450.0]])
    affine = crops.mmpose_affine(box, (192, 256))
    assert affine[0, 0, 0] == affine[0, 1, 1] == pytest.approx(256 / (400 * 1.25))
    np.testing.assert_allclose(crops.apply(affine, np.array([[[150.0, 250.0]]]))[0, 0], [96, 128])
    udp = crops.mmpose_affine(box, (192, 256), udp=True)
    np.testing.assert_allclose(crops.apply(udp, np.array([[[150.0, 250.0]]]))[0, 0], [95.5, 127.5])


def test_resize_affine_says_where_a_resized_pixel_goes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    box = np.array([[10, 12, 26, 28]])
    patch = crops.cut_and_resize([image], np.array([0]), box, 32)
    warped = crops.warp([image], np.array([0]), crops.resize_affine(box, 32), 32, np.float32)
    np.testing.assert_allclose(patch[0, 2:-2, 2:-2], warped[0, 2:-2, 2:-2], atol=1e-3)


def test_heatmap_is_the_gaussian_and_hidden_joints_are_zero_even_when_nan() -> None:
    xy = torch.tensor([[[3.25, 5.5], [float("nan"), 1.0], [-2.0, 40.0]]], dtype=torch.float64)
    maps = gaussian_heatmaps(xy, torch.tensor([[True, False, True]]), (8, 9), 2.5)
    y, x = np.mgrid[:8, :9]
    np.testing.assert_allclose(maps[0, 0], np.exp(-((x - 3.25) ** 2 + (y - 5.5) ** 2) / 12.5), rtol=1e-12)
    np.testing.assert_allclose(maps[0, 2], np.exp(-((x + 2) ** 2 + (y - 40) ** 2) / 12.5), rtol=1e-12)
    assert (maps[0, 1] == 0).all()


def test_metro_rule_matches_the_recorded_crops() -> None:
    recorded = case("postometro/crop")
    for size in (224, 256):
        box = crops.metro_boxes(recorded["cases"][:, :2], recorded["cases"][:, 2], size)
        patches = crops.cut_and_resize([recorded["image_u8"]], np.zeros(4, int), box, size)
        assert list(patches.shape) == recorded[f"crop{size}__shape"].tolist()
        np.testing.assert_allclose(patches.ravel()[recorded[f"crop{size}__idx"]], recorded[f"crop{size}"], atol=1e-3)


def test_scorehmr_rule_matches_the_recorded_crops() -> None:
    recorded = case("scorehmr/crop")
    affine = crops.square_affine(recorded["boxes"][:, :2].astype(float), recorded["boxes"][:, 2], 224)
    np.testing.assert_allclose(affine, recorded["affine"], atol=1e-4)
    patches = crops.warp([recorded["image_bgr"][..., ::-1]], np.zeros(3, int), affine, 224, np.float32) / 255
    patches = ((patches - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(patches[:, :, ::4, ::4], recorded["patch_every_4th"], atol=0.01)


def test_dpmesh_crop_matches_the_recorded_pixels() -> None:
    recorded = case("dpmesh/prep")
    box = recorded["out.bbox"].astype(float)
    affine = crops.square_affine(box[:, :2] + box[:, 2:] / 2, box[:, 2], 256)
    np.testing.assert_allclose(affine, recorded["out.img2bb_trans"], atol=1e-4)
    images = [recorded[f"image{k}"] for k in range(3)]
    patches = crops.warp(images, np.arange(3), recorded["out.img2bb_trans"], 256, np.float32) / 255
    flat = patches.transpose(0, 3, 1, 2).ravel()
    np.testing.assert_allclose(flat[recorded["out.crop_exact.index"]], recorded["out.crop_exact.value"], atol=2e-5)
