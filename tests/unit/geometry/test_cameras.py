"""Cameras: projection, default intrinsics, weak cameras."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.geometry import cameras


def test_default_K_has_the_diagonal_as_focal_length_and_the_middle_of_the_pixels_as_principal_point() -> None:
    K = cameras.default_K(np.array([[640, 480], [1, 1]]))
    assert K.shape == (2, 3, 3)
    np.testing.assert_allclose(K[0], [[800, 0, 319.5], [0, 800, 239.5], [0, 0, 1]])
    np.testing.assert_allclose(K[1][:2, 2], 0)


def test_numpy_and_torch_agree() -> None:
    rng = np.random.default_rng(0)
    size = np.array([[640.0, 480.0], [300.0, 900.0]])
    xyz, box = rng.normal(size=(2, 5, 3)) + np.array([0, 0, 4]), rng.uniform(1, 2, (2, 3))
    K = cameras.default_K(size)
    np.testing.assert_allclose(K, cameras.default_K(torch.from_numpy(size)).numpy())
    np.testing.assert_allclose(
        cameras.project(xyz, K), cameras.project(torch.from_numpy(xyz), torch.from_numpy(K)).numpy()
    )
    weak = cameras.weak_to_transl(box, size / 2, size[:, 0], K)
    again = cameras.weak_to_transl(*(torch.from_numpy(v) for v in (box, size / 2, size[:, 0], K)))
    np.testing.assert_allclose(weak, again.numpy())


@settings(max_examples=50, deadline=None)
@given(st.floats(0.3, 2), st.floats(-1, 1), st.floats(-1, 1), st.floats(20, 900), st.floats(-200, 900))
def test_weak_camera_puts_the_root_where_it_says_in_the_box(
    s: float, tx: float, ty: float, side: float, cx: float
) -> None:
    center = np.array([[cx, 300.0]])
    K = cameras.default_K(np.array([[800.0, 600.0]]))
    transl = cameras.weak_to_transl(np.array([[s, tx, ty]]), center, np.array([side]), K)
    pixel = cameras.project(transl[:, None], K)[0, 0]
    np.testing.assert_allclose(pixel, center[0] + s * np.array([tx, ty]) * side / 2, atol=1e-3)


def test_crop_to_full_keeps_place_and_size_in_the_picture() -> None:
    K = cameras.default_K(np.array([[1920.0, 1080.0]]))
    center, side, transl = np.array([[1500.0, 200.0]]), np.array([512.0]), np.array([[0.3, -0.2, 6.0]])
    full = cameras.crop_to_full(transl, 5000.0, 256.0, center, side, K)
    in_crop = 5000 * transl[0, :2] / transl[0, 2]
    np.testing.assert_allclose(cameras.project(full[:, None], K)[0, 0], center[0] + in_crop * 512 / 256, atol=1e-6)
    metre_in_crop, metre_in_picture = 5000 / 6.0, K[0, 0, 0] / full[0, 2]
    assert metre_in_picture == pytest.approx(metre_in_crop * 512 / 256)
