"""The keypoint error model: its rates and distances are the published ones, and it disturbs only what it may."""

from __future__ import annotations

import numpy as np
import pytest

from stages.keypoints.noise import COCO, disturb
from stages.keypoints.oks import extent, sigmas

RNG = np.random.default_rng
PERSON = np.random.default_rng(5).uniform([100, 50], [260, 450], (17, 2))


def similarity(noisy: np.ndarray, truth: np.ndarray) -> np.ndarray:
    spread = extent(truth[None])[0] * (2 * sigmas(COCO)) ** 2
    return np.exp(-((noisy - truth) ** 2).sum(-1) / (2 * spread))


def many(n: int = 2500) -> np.ndarray:
    """One person, n times alone in a picture."""
    rng, everything = RNG(0), np.ones((1, 17), bool)
    return np.stack([disturb(PERSON[None], everything, rng)[0] for _ in range(n)])


def test_rates_of_one_person_alone() -> None:
    like = similarity(many(), PERSON)
    knee, hip = COCO.index("left_knee"), COCO.index("left_hip")
    jitter = ((like < 0.85) & (like > 0.5)).mean(0)
    # no swap when alone: the rest is renormalised (knee: 1 - 0.03)
    assert jitter[knee] == pytest.approx(0.10 / 0.97, abs=0.03)
    assert jitter[hip] == pytest.approx(0.20 / 0.97, abs=0.04)
    assert (like[:, COCO.index("nose")] >= 0.85 - 1e-9).mean() == pytest.approx(0.88 / 0.99, abs=0.03)


def test_swaps_need_a_neighbour() -> None:
    other = PERSON + np.array([75.0, 5.0])
    wrist = COCO.index("left_wrist")
    rng, valid = RNG(1), np.ones((2, 17), bool)
    near = np.stack([disturb(np.stack([PERSON, other]), valid, rng, crowded=True)[0] for _ in range(700)])
    far = np.stack([disturb(np.stack([PERSON, other + 900]), valid, rng, crowded=True)[0] for _ in range(700)])
    taken = [np.linalg.norm(x[:, wrist] - other[wrist], axis=-1) < 37 for x in (near, far)]  # within d50
    assert taken[0].mean() > taken[1].mean() + 0.08


def test_what_is_not_valid_is_left_alone() -> None:
    valid = RNG(2).random((3, 17)) < 0.5
    people = PERSON + RNG(3).normal(size=(3, 1, 2)) * 300
    noisy = disturb(people, valid, RNG(4))
    np.testing.assert_array_equal(noisy[~valid], people[~valid])
    assert np.isfinite(noisy).all()


def test_same_seed_same_noise_and_nobody_is_fine() -> None:
    valid = np.ones((1, 17), bool)
    np.testing.assert_array_equal(disturb(PERSON[None], valid, RNG(7)), disturb(PERSON[None], valid, RNG(7)))
    assert disturb(np.zeros((0, 17, 2)), np.zeros((0, 17), bool), RNG(0)).shape == (0, 17, 2)
