"""Drawing: what is covered, who hides whom, colours, skeletons."""

from __future__ import annotations

import numpy as np
import torch
import trimesh

from stages.geometry import cameras
from stages.visualization import draw

SIZE = (200, 150)
K = torch.tensor(cameras.default_K(np.array([SIZE]))[0]).float()


def ball(x: float, z: float, radius: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return torch.tensor(mesh.vertices).float() + torch.tensor([x, 0.0, z]), torch.tensor(mesh.faces).long()


def test_overlay_covers_the_projection_and_leaves_the_rest_alone() -> None:
    v, f = ball(0.1, 3.0)
    image = np.random.default_rng(0).integers(0, 255, (150, 200, 3)).astype(np.uint8)
    out = draw.overlay(image, v[None], f, K, draw.colours(np.array([0])))
    changed = (out != image).any(-1)
    uv = cameras.project(v, K).numpy()
    y, x = np.nonzero(changed)
    assert abs(x.min() - uv[:, 0].min()) < 1.5 and abs(x.max() - uv[:, 0].max()) < 1.5
    assert abs(y.min() - uv[:, 1].min()) < 1.5 and abs(y.max() - uv[:, 1].max()) < 1.5
    # Smooth paint where the noise was: neighbours inside the ball differ little.
    inside = out[60:90, 95:110].astype(int)
    assert np.abs(np.diff(inside, axis=1)).max() < 40


def test_nearer_people_hide_farther_ones_in_any_order() -> None:
    near, f = ball(0.0, 2.0, 0.2)
    far, _ = ball(0.1, 4.0, 0.8)
    image = np.zeros((150, 200, 3), np.uint8)
    red_blue = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    one = draw.overlay(image, torch.stack([near, far]), f, K, red_blue)
    two = draw.overlay(image, torch.stack([far, near]), f, K, red_blue[::-1].copy())
    np.testing.assert_array_equal(one, two)
    assert one[75, 100, 0] > 60 and one[75, 100, 2] == 0
    assert one[75, 135, 2] > 40 and one[75, 135, 0] == 0


def test_edges_are_smooth_with_supersampling_and_opacity_lets_the_photo_through() -> None:
    v, f = ball(0.0, 3.0)
    white = np.full((150, 200, 3), 255, np.uint8)
    _, hard = draw.render(v[None], f, K, SIZE, np.zeros((1, 3)), supersample=1)
    _, soft = draw.render(v[None], f, K, SIZE, np.zeros((1, 3)), supersample=2)
    assert set(np.unique(hard)) == {0.0, 1.0} and len(np.unique(soft)) > 3
    assert abs(hard.sum() - soft.sum()) < 0.01 * hard.sum()
    half = draw.overlay(white, v[None], f, K, np.zeros((1, 3)), opacity=0.5)
    assert half[75, 100, 0] == 128


def test_nobody_nan_people_and_people_behind_the_camera_change_nothing() -> None:
    v, f = ball(0.0, -3.0)
    image = np.random.default_rng(1).integers(0, 255, (150, 200, 3)).astype(np.uint8)
    for people in (v[None][:0], v[None], torch.full_like(v[None], float("nan"))):
        np.testing.assert_array_equal(draw.overlay(image, people, f, K, draw.colours(np.arange(len(people)))), image)
    nan = torch.full_like(v[None], float("nan"))
    assert (draw.orbit_view(nan, f, draw.colours(np.arange(1)), SIZE, yaw=0.3) == draw.PAPER).all()


def test_turning_shows_everybody_from_every_side() -> None:
    a, f = ball(-0.5, 2.0)
    b, _ = ball(0.5, 5.0)
    for yaw in np.linspace(0, 2 * np.pi, 9):
        for pitch in (0.0, 0.6):
            out = draw.orbit_view(torch.stack([a, b]), f, draw.colours(np.arange(2)), SIZE, yaw=float(yaw), pitch=pitch)
            drawn = (out != draw.PAPER).any(-1)
            assert drawn.sum() > 400
            assert not drawn[0].any() and not drawn[-1].any() and not drawn[:, 0].any() and not drawn[:, -1].any()


def test_seen_from_the_right_what_was_far_is_on_the_right() -> None:
    near, f = ball(0.0, 2.0, 0.2)
    far, _ = ball(0.0, 5.0, 0.2)
    out = draw.orbit_view(torch.stack([near, far]), f, np.array([[1.0, 0, 0], [0, 0, 1.0]]), SIZE, yaw=np.pi / 2)
    red = np.nonzero((out[..., 0] > 120) & (out[..., 2] < 60))[1].mean()
    blue = np.nonzero((out[..., 2] > 120) & (out[..., 0] < 60))[1].mean()
    assert red < 100 < blue


def test_colours_are_steady_distinct_and_no_skin() -> None:
    np.testing.assert_array_equal(draw.colours(np.array([3, 0, 3]))[0], draw.colours(np.array([3]))[0])
    many = draw.colours(np.arange(len(draw.PALETTE) * 3))
    apart = np.linalg.norm(many[:, None] - many[None], axis=-1) + 9 * np.eye(len(many))
    assert apart.min() > 0.08 and (many >= 0).all() and (many <= 1).all()
    assert draw.colours(np.zeros(0, int)).shape == (0, 3)


def test_skeletons_draw_seen_joints_only() -> None:
    image = np.zeros((150, 200, 3), np.uint8)
    xy = np.array([[[20.0, 20.0], [120.0, 20.0], [60.0, 100.0]], [[np.nan, 1], [5000.0, 1e9], [3, 3]]])
    seen = np.array([[True, True, False], [True, True, False]])
    out = draw.skeletons(image, xy, seen, [(0, 1), (1, 2)], draw.colours(np.arange(2)))
    assert not image.any() and out[20, 70].any() and not out[60:].any() and not out[:15].any()
    assert len(draw.skeletons(image, xy[:0], seen[:0], [(0, 1)], draw.colours(np.arange(0)))) == 150
