"""Metrics: invariances, answers known by hand, what cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from stages.evaluation import metrics

seeds = st.integers(0, 2**31)


def joints(seed: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 14, 3))


@given(seeds, st.floats(0.1, 10), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_pa_mpjpe_ignores_a_similarity(seed: int, scale: float, n: int) -> None:
    pred, truth = joints(seed, n), joints(seed + 1, n)
    turn = Rotation.random(random_state=seed % 1000).as_matrix()
    moved = scale * pred @ turn.T + [1.0, -2.0, 3.0]
    np.testing.assert_allclose(metrics.pa_mpjpe(moved, truth), metrics.pa_mpjpe(pred, truth), rtol=1e-9)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_alignment_is_the_best_similarity(seed: int) -> None:
    pred, truth = joints(seed, 1), joints(seed + 1, 1)
    best = ((metrics.align(pred, truth) - truth) ** 2).sum()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        turn = Rotation.from_rotvec(rng.normal(size=3) * 0.1).as_matrix()
        other = metrics.align(pred, truth) @ turn.T * rng.uniform(0.9, 1.1) + rng.normal(size=3) * 0.05
        assert ((other - truth) ** 2).sum() >= best - 1e-9


def test_zero_on_itself_and_known_by_hand() -> None:
    truth = joints(0)
    assert (metrics.mpjpe(truth, truth) == 0).all()
    np.testing.assert_allclose(metrics.pa_mpjpe(truth, truth), 0, atol=1e-9)
    np.testing.assert_allclose(metrics.mpjpe(truth + np.array([0.003, 0.004, 0]), truth), 5.0)


def test_a_mirror_image_is_not_aligned_away() -> None:
    truth = joints(0)
    assert (metrics.pa_mpjpe(truth * [-1, 1, 1], truth) > 100).all()


@pytest.mark.parametrize("bad", ["nan", "point", "line"])
def test_what_cannot_be_aligned_is_nan_and_stays_alone(bad: str) -> None:
    pred, truth = joints(0), joints(1)
    pred[1] = {"nan": np.nan, "point": 1.0, "line": np.linspace(0, 1, 14)[:, None] * [1.0, 2.0, 3.0]}[bad]
    errors = metrics.pa_mpjpe(pred, truth)
    assert np.isnan(errors).tolist() == [False, True, False]
    np.testing.assert_array_equal(errors[[0, 2]], metrics.pa_mpjpe(pred[[0, 2]], truth[[0, 2]]))


def test_empty_input() -> None:
    none = np.zeros((0, 14, 3))
    assert metrics.mpjpe(none, none).shape == metrics.pa_mpjpe(none, none).shape == (0,)
    assert metrics.acceleration_error(np.zeros((2, 14, 3)), np.zeros((2, 14, 3))).shape == (0,)


def test_masks_split_the_mean() -> None:
    pred, truth = joints(0), joints(1)
    mask = np.random.default_rng(2).random((3, 14)) < 0.5
    seen, hidden = metrics.mpjpe(pred, truth, mask), metrics.mpjpe(pred, truth, ~mask)
    whole = (seen * mask.sum(1) + hidden * (~mask).sum(1)) / 14
    np.testing.assert_allclose(whole, metrics.mpjpe(pred, truth))
    assert np.isnan(metrics.mpjpe(pred, truth, np.zeros_like(mask))).all()


def test_acceleration_of_a_known_curve() -> None:
    time = np.arange(6.0)[:, None, None]
    truth = np.zeros((6, 2, 3))
    pred = 0.5 * 0.002 * time**2 * [1.0, 0, 0] + np.zeros((6, 2, 3))  # 2 mm per frame^2
    np.testing.assert_allclose(metrics.acceleration_error(pred, truth), 2.0)
    assert len(metrics.acceleration_error(pred, truth, [1, 1, 1, 0, 1, 1])) == 1


def test_pck_counts_hits() -> None:
    truth = np.zeros((1, 4, 2))
    pred = np.array([[[0, 1], [0, 3], [0, 0], [9, 9]]], float)
    assert metrics.pck(pred, truth, [2.0])[0] == 0.5
    assert metrics.pck(pred, truth, [2.0], [[1, 0, 1, 0]])[0] == 1.0
