"""OKS, suppression and the tracker."""

from __future__ import annotations

import numpy as np
import pytest

from stages.keypoints.joint_sets import SETS
from stages.keypoints.oks import extent, iou, oks, sigmas, suppress
from stages.keypoints.tracking import Tracker

COCO = SETS["coco17"]
SIGMA = sigmas(COCO)
BODY = np.random.default_rng(0).uniform(0, 1, (17, 2)) * [60, 160]


def person(x: float, y: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    xy = BODY * scale + [x, y]
    return np.concatenate([xy.min(0), xy.max(0)]), np.concatenate([xy, np.ones((17, 1))], 1)


def people(*places: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    both = [person(*place) for place in places]
    return np.stack([b for b, _ in both]), np.stack([k for _, k in both])


def test_oks_is_cocos_formula() -> None:
    rng = np.random.default_rng(1)
    a, b, area = rng.uniform(0, 200, (3, 17, 2)), rng.uniform(0, 200, (2, 17, 2)), 9000.0
    coco = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
    for i in range(3):
        for j in range(2):
            d2 = ((a[i] - b[j]) ** 2).sum(-1)
            expected = np.exp(-d2 / (2 * area * (2 * coco) ** 2)).mean()
            assert oks(a, b, np.full((3, 2), area), SIGMA)[i, j] == pytest.approx(expected, abs=1e-6)


def test_oks_leaves_missing_joints_out() -> None:
    a = BODY[None].copy()
    b = a.copy()
    b[0, 5:] = np.nan
    assert oks(a, b, extent(a), SIGMA)[0, 0] == pytest.approx(1)
    b[0, :5] += 1000
    assert oks(a, b, extent(a), SIGMA)[0, 0] < 0.01
    assert oks(a, np.full_like(a, np.nan), extent(a), SIGMA)[0, 0] == 0


def test_iou() -> None:
    a = np.array([[0.0, 0, 10, 10], [0, 0, 0, 0], [np.nan] * 4])
    b = np.array([[5.0, 0, 15, 10], [0, 0, 10, 10]])
    np.testing.assert_allclose(iou(a, b), [[1 / 3, 1], [0, 0], [0, 0]])
    assert iou(a, np.zeros((0, 4))).shape == (3, 0)


def test_suppression_keeps_the_best_of_each_group() -> None:
    similar = np.array([[1, 0.9, 0, 0], [0.9, 1, 0, 0], [0, 0, 1, 0.6], [0, 0, 0.6, 1]])
    assert suppress(similar, np.array([0.1, 0.5, 0.4, 0.3]), 0.5).tolist() == [1, 2]
    assert suppress(similar, np.array([0.1, 0.5, 0.4, 0.3]), 0.7).tolist() == [1, 2, 3]
    assert suppress(np.zeros((0, 0)), np.zeros(0), 0.5).tolist() == []


def test_people_who_cross_keep_their_numbers() -> None:
    """Two people walk through each other at different heights; the order of rows changes at random."""
    tracker, rng, seen = Tracker(SIGMA), np.random.default_rng(0), {}
    for frame in range(60):
        places = [(20.0 + 6 * frame, 100.0), (380.0 - 6 * frame, 160.0)]
        order = rng.permutation(2)
        ids = tracker.step(frame / 25, *people(*(places[k] for k in order)))
        for k, number in zip(order, ids, strict=True):
            assert seen.setdefault(k, number) == number
    assert tracker.count == 2


def test_a_short_gap_is_bridged_a_long_one_is_not() -> None:
    for missing, same in ((10, True), (40, False)):
        tracker = Tracker(SIGMA)
        first = [tracker.step(f / 25, *people((100.0 + 2 * f, 50.0)))[0] for f in range(10)][-1]
        for f in range(10, 10 + missing):
            assert tracker.step(f / 25, np.zeros((0, 4)), np.zeros((0, 17, 3))).shape == (0,)
        f = 10 + missing
        again = tracker.step(f / 25, *people((100.0 + 2 * f, 50.0)))[0]
        assert bool(again == first) is same


def test_numbers_are_never_used_twice() -> None:
    tracker, used = Tracker(SIGMA), []
    for frame in range(20):  # each far from the last
        used += tracker.step(frame / 25, *people(((frame % 5) * 500.0, (frame % 3) * 700.0))).tolist()
        tracker.max_gap = 0.0
    assert len(set(used)) == 20 == tracker.count


def test_a_box_that_is_not_finite_has_no_track() -> None:
    box, keypoints = people((0.0, 0.0), (300.0, 0.0))
    box[0] = np.nan
    assert Tracker(SIGMA).step(0.0, box, keypoints).tolist() == [-1, 0]


def test_joints_without_score_do_not_matter() -> None:
    tracker = Tracker(SIGMA)
    box, keypoints = people((0.0, 0.0), (90.0, 0.0))
    assert tracker.step(0.0, box, keypoints).tolist() == [0, 1]
    keypoints[:, 3:, 2] = 0
    keypoints[:, 3:, :2] = 1e6
    assert tracker.step(0.04, box, keypoints).tolist() == [0, 1]
    keypoints[..., 2] = 0  # boxes alone
    assert tracker.step(0.08, box, keypoints).tolist() == [0, 1]


def test_two_hundred_people_and_bounded_memory() -> None:
    tracker, rng = Tracker(SIGMA), np.random.default_rng(3)
    home = np.stack(np.meshgrid(np.arange(20) * 80.0, np.arange(10) * 180.0), -1).reshape(-1, 2)
    for frame in range(8):
        places = home + rng.normal(0, 2, home.shape)
        ids = tracker.step(frame / 25, *people(*map(tuple, places)))
        assert ids.tolist() == list(range(200))
    for frame in range(100):  # others, each seen once: they are forgotten
        tracker.step(10 + frame * 2.0, *people((frame * 1000.0, 0.0)))
    assert len(tracker.id) <= 2
