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
    tracker, rng, seen = Tracker(SIGMA, max_gap=1.0), np.random.default_rng(0), {}
    for frame in range(60):
        places = [(20.0 + 6 * frame, 100.0), (380.0 - 6 * frame, 160.0)]
        order = rng.permutation(2)
        ids = tracker.step(frame / 25, *people(*(places[k] for k in order)))
        for k, number in zip(order, ids, strict=True):
            assert seen.setdefault(k, number) == number
    assert tracker.count == 2


def test_a_short_gap_is_bridged_a_long_one_is_not() -> None:
    for missing, same in ((10, True), (40, False)):
        tracker = Tracker(SIGMA, max_gap=1.0)
        first = [tracker.step(f / 25, *people((100.0 + 2 * f, 50.0)))[0] for f in range(10)][-1]
        for f in range(10, 10 + missing):
            assert tracker.step(f / 25, np.zeros((0, 4)), np.zeros((0, 17, 3))).shape == (0,)
        f = 10 + missing
        again = tracker.step(f / 25, *people((100.0 + 2 * f, 50.0)))[0]
        assert bool(again == first) is same


def test_numbers_are_never_used_twice() -> None:
    tracker, used = Tracker(SIGMA, max_gap=1.0), []
    for frame in range(20):  # each far from the last
        used += tracker.step(frame / 25, *people(((frame % 5) * 500.0, (frame % 3) * 700.0))).tolist()
        tracker.max_gap = 0.0
    assert len(set(used)) == 20 == tracker.count


def test_a_box_that_is_not_finite_has_no_track() -> None:
    box, keypoints = people((0.0, 0.0), (300.0, 0.0))
    box[0] = np.nan
    assert Tracker(SIGMA, max_gap=1.0).step(0.0, box, keypoints).tolist() == [-1, 0]


def test_joints_without_score_do_not_matter() -> None:
    tracker = Tracker(SIGMA, max_gap=1.0)
    box, keypoints = people((0.0, 0.0), (90.0, 0.0))
    assert tracker.step(0.0, box, keypoints).tolist() == [0, 1]
    keypoints[:, 3:, 2] = 0
    keypoints[:, 3:, :2] = 1e6
    assert tracker.step(0.04, box, keypoints).tolist() == [0, 1]
    keypoints[..., 2] = 0  # boxes alone
    assert tracker.step(0.08, box, keypoints).tolist() == [0, 1]


def test_two_hundred_people_and_bounded_memory() -> None:
    tracker, rng = Tracker(SIGMA, max_gap=1.0), np.random.default_rng(3)
    home = np.stack(np.meshgrid(np.arange(20) * 80.0, np.arange(10) * 180.0), -1).reshape(-1, 2)
    for frame in range(8):
        places = home + rng.normal(0, 2, home.shape)
        ids = tracker.step(frame / 25, *people(*map(tuple, places)))
        assert ids.tolist() == list(range(200))
    for frame in range(100):  # others, each seen once: they are forgotten
        tracker.step(10 + frame * 2.0, *people((frame * 1000.0, 0.0)))
    assert len(tracker.people) <= 2


# ---- what each part of the tracker is for; each test fails without it


def follow(tracker: Tracker, *frames: tuple[tuple[float, float], ...], fps: float = 10.0) -> list[list[int]]:
    """Track numbers of people at these places, frame by frame; an empty frame shows nobody."""
    none = np.zeros((0, 4)), np.zeros((0, 17, 3))
    return [tracker.step(k / fps, *(people(*f) if f else none)).tolist() for k, f in enumerate(frames)]


def test_people_are_looked_for_where_they_walk_to() -> None:
    """Two who walk towards each other are hidden where they meet. When they come out, each stands where the other was
    last seen, so that without velocity both would go on under the other's number."""
    a, b = [(100.0 + 15 * k, 50.0) for k in range(25)], [(400.0 - 15 * k, 50.0) for k in range(25)]
    frames = [() if 7 <= k <= 13 else (a[k], b[k]) for k in range(25)]
    ids = follow(Tracker(SIGMA, max_gap=1.0), *frames)
    assert ids[6] == [0, 1] and ids[14] == [0, 1] and ids[-1] == [0, 1]


def test_velocity_is_measured_from_sights_apart_in_time() -> None:
    """Somebody seen in every fifth frame walks as fast as somebody seen in each."""
    for every in (1, 5):
        tracker = Tracker(SIGMA, max_gap=2.0)
        for k in range(0, 41, every):
            tracker.step(k / 10, *people((100.0 + 10 * k, 50.0)))
        assert tracker.people.velocity[0] == pytest.approx([100, 0], abs=4)
        assert len(tracker.people) == 1


def test_a_hidden_half_does_not_move_a_person() -> None:
    """Legs disappear behind a counter: the box shrinks to half, the velocity stays that of the joints."""
    tracker = Tracker(SIGMA, max_gap=1.0)
    for k in range(20):
        box, keypoints = people((100.0 + 4 * k, 50.0))
        if k >= 10:
            hidden = keypoints[0, :, 1] > box[0, 1::2].mean()
            keypoints[0, hidden, 2] = 0
            box[0, 3] = box[0, 1::2].mean()
        assert tracker.step(k / 10, box, keypoints).tolist() == [0]
    assert tracker.people.velocity[0] == pytest.approx([40, 0], abs=1)


def test_hidden_joints_move_along() -> None:
    """The upper half of somebody who speeds up is hidden, then the lower half: each is where the other has gone to."""
    tracker = Tracker(SIGMA, max_gap=1.0)
    place = [100.0, 110, 120, 130, 150, 180, 220, 260]
    for k, x in enumerate(place):
        box, keypoints = people((x, 50.0), (x, 500.0))
        middle = box[0, 1::2].mean()
        if k in (4, 5):
            keypoints[0, keypoints[0, :, 1] < middle, 2] = 0
        if k > 5:
            keypoints[0, keypoints[0, :, 1] >= middle, 2] = 0
        tracker.step(k / 10, box, keypoints)
    box, keypoints = people((place[-1], 50.0))
    np.testing.assert_allclose(tracker.people.xy[0], keypoints[0, :, :2], atol=3)


def test_one_misplaced_joint_does_not_move_a_person() -> None:
    tracker = Tracker(SIGMA, max_gap=1.0)
    for k in range(10):
        box, keypoints = people((100.0, 50.0))
        keypoints[0, 3, :2] += 300 * (k % 2)
        tracker.step(k / 10, box, keypoints)
    assert np.abs(tracker.people.velocity[0]).max() < 1


def test_a_newcomer_in_front_does_not_take_the_number_of_who_is_hidden() -> None:
    """A steady person is lost behind somebody who overlaps by a third: too little for somebody seen so well before."""
    tracker = Tracker(SIGMA, max_gap=3.0)
    ids = follow(tracker, *[((100.0, 50.0),)] * 20, *[((140.0, 80.0),)] * 5, *[((140.0, 80.0), (100.0, 50.0))] * 5)
    assert ids[19] == [0] and ids[20] == [1] and ids[-1] == [1, 0]


def test_noise_that_is_usual_breaks_no_track() -> None:
    """The same overlap from frame to frame, all the time, is one person who is badly seen."""
    rng = np.random.default_rng(1)
    ids = follow(Tracker(SIGMA, max_gap=3.0), *[((100 + rng.normal(0, 7), 50 + rng.normal(0, 7)),) for _ in range(60)])
    assert all(i == [0] for i in ids)


def test_who_walked_out_of_the_image_does_not_come_back_as_another() -> None:
    for size, number in (((300, 300), 1), (None, 0)):
        tracker = Tracker(SIGMA, max_gap=3.0)
        for k in range(20):
            tracker.step(k / 10, *people((90.0 + 10 * k, 50.0)), size)
        assert tracker.step(2.1, *people((285.0, 50.0)), size).tolist() == [number]


def test_of_two_alike_the_one_seen_last_wins() -> None:
    """Somebody stands exactly between two who are gone; the first of them has been gone for longer."""
    tracker = Tracker(SIGMA, max_gap=3.0)
    ids = follow(tracker, *[((130.0, 50.0), (134.0, 50.0))] * 5, *[((134.0, 50.0),)] * 5, (), ((132.0, 50.0),))
    assert ids[4] == [0, 1] and ids[9] == [1] and ids[-1] == [1]


def test_who_slows_down_out_of_sight_is_found_the_longer_ago_the_farther() -> None:
    for gap, same in ((1.2, True), (0.2, False)):
        tracker = Tracker(SIGMA, max_gap=3.0)
        for k in range(21):
            tracker.step(k / 10, *people((100.0 + 8 * k, 50.0)))
        expected = 260 + 80 * gap
        assert (tracker.step(2 + gap, *people((expected - 45, 50.0))).tolist() == [0]) is same


def test_in_one_box_joints_tell_who_is_who() -> None:
    """Two people in the same box, one mirrored; the order of rows is turned round."""
    tracker, (box, keypoints) = Tracker(SIGMA, max_gap=1.0), people((100.0, 50.0), (100.0, 50.0))
    keypoints[1, :, 0] = box[1, 0] + box[1, 2] - keypoints[1, :, 0]
    assert tracker.step(0.0, box, keypoints).tolist() == [0, 1]
    assert tracker.step(0.1, box, keypoints[::-1]).tolist() == [1, 0]


def test_with_the_same_joints_boxes_tell_who_is_who() -> None:
    """One joint each, at the same place: all that is known of a child and the adult behind it but for their boxes."""
    tracker, (box, keypoints) = Tracker(SIGMA, max_gap=1.0), people((100.0, 50.0), (100.0, 50.0))
    keypoints[:, 1:, 2] = 0
    box[1, 3] += 90
    assert tracker.step(0.0, box, keypoints).tolist() == [0, 1]
    assert tracker.step(0.1, box[::-1], keypoints).tolist() == [1, 0]


def test_boxes_alone_are_followed() -> None:
    tracker, none = Tracker(np.zeros(0), max_gap=1.0), np.zeros((2, 0, 3))
    for k in range(30):
        box = np.array([[20.0 + 5 * k, 40, 60 + 5 * k, 140], [300.0 - 5 * k, 60, 340 - 5 * k, 170]])
        if k in (13, 14, 15):
            continue
        assert tracker.step(k / 10, box, none).tolist() == [0, 1]
