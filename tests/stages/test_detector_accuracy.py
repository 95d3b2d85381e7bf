"""The embedded detector keeps what docs/detectors.md says of the free photos (all photos: make accuracy)."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import detectors
from benchmarks.detectors import COCO, Photo
from stages.keypoints import joint_sets
from stages.models.detectors.base import DetectedPeople
from tests.helpers import fixtures


def test_people_of_the_free_photos() -> None:
    photos = detectors.photos_of(fixtures.PHOTOS)
    assert len(photos) == 9 and sum(int(photo.annotated.sum()) for photo in photos) == 28
    found, _ = detectors.run_detector(detectors.load("movenet"), photos)
    row = detectors.summary(photos, found, 0.1)
    assert (row["people"], row["found"], row["false"], row["of these people"]) == (28, 19, 3, 2), row
    assert row["error"] < 3 and row["mean OKS"] > 0.85, row
    # Of a photo with one skier nothing else is left.
    assert len(found["000000000785"]) == 1


# ---- the scorer, by hand


def photo(*people: np.ndarray) -> Photo:
    """An empty image with people who are annotated by all 17 joints, in boxes around them."""
    keypoints = np.stack([np.concatenate([p, np.full((17, 1), 2)], 1) for p in people])
    box = np.concatenate([keypoints[..., :2].min(1), keypoints[..., :2].max(1)], 1)
    area = 0.5 * (box[:, 2:] - box[:, :2]).prod(1)
    return Photo("x", fixtures.PHOTOS, "easy", keypoints, box, area, np.zeros((400, 400), bool))


def body(x: float, y: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 100, (17, 2)) + np.array([x, y])


def detected(*people: tuple[np.ndarray, float]) -> DetectedPeople:
    xy = np.stack([p for p, _ in people])
    box = np.concatenate([xy.min(1), xy.max(1)], 1)
    return DetectedPeople(box, np.array([s for _, s in people]), np.concatenate([xy, np.ones((*xy.shape[:2], 1))], -1))


def test_each_person_is_taken_once() -> None:
    two = photo(body(0, 0), body(200, 200))
    found = detected((body(1, 0), 0.5), (body(0, 1), 0.9), (body(200, 203), 0.3), (body(0, 200), 0.4))
    result = detectors.match(two, found, 0.0)
    assert sorted(result.pairs) == [(0, 1), (1, 2)] and sorted(result.false) == [0, 3]
    side = (two.box[0, 2:] - two.box[0, :2]).max()
    assert result.error == pytest.approx([1 / side, 3 / side])
    row = detectors.summary([two], {"x": found}, 0.35)
    assert (row["people"], row["found"], row["false"]) == (2, 1, 2)


def test_crowds_and_people_without_joints_are_no_errors() -> None:
    one = photo(body(0, 0), body(200, 200))
    one.keypoints[1] = 0  # annotated, without joints
    assert detectors.match(one, detected((body(200, 200), 0.9)), 0.0).false == []
    one.crowd[200:400, 0:150] = True
    assert detectors.match(one, detected((body(20, 250), 0.9)), 0.0).false == []
    assert detectors.match(one, detected((body(250, 20), 0.9)), 0.0).false == [0]


def test_the_threshold_is_chosen_by_found_and_false() -> None:
    one = photo(body(0, 0), body(200, 200))
    found = {"x": detected((body(0, 0), 0.9), (body(200, 200), 0.5), (body(0, 200), 0.4), (body(200, 0), 0.3))}
    assert detectors.choose_threshold([one], found) == 0.5
    first, second = detectors.halves([one, one, one])
    assert (len(first), len(second)) == (2, 1)


def test_types_of_errors() -> None:
    """Good, jitter, inversion, swap and miss of single joints, by construction."""
    xy = np.stack([np.linspace(0, 80, 17) % 37, np.linspace(0, 200, 17)], 1)
    two = photo(xy, xy + np.array([60, 0]))
    ours, mirror = xy.copy(), joint_sets.flip(COCO)
    reach = np.sqrt(-2 * two.area[0] * (2 * detectors.SIGMA) ** 2 * np.log([[0.9], [0.6]]))
    wrist, knee, ankle, hip, elbow = (COCO.index(f"left_{n}") for n in ("wrist", "knee", "ankle", "hip", "elbow"))
    ours[wrist] += [reach[0, wrist], 0]
    ours[knee] -= [reach[1, knee], 0]
    ours[ankle] = xy[mirror[ankle]]
    ours[hip] = xy[hip] + [60, 0]
    ours[elbow] += [0, 90]
    found = detected((ours, 1.0))
    found.box = two.box[:1]
    kinds = {joint: kind for joint, kind, *_ in detectors.error_types(two, found)}
    expected = ("good", "jitter", "inversion", "swap", "miss")
    assert tuple(kinds[j] for j in (wrist, knee, ankle, hip, elbow)) == expected
    assert sum(kind == "good" for kind in kinds.values()) == 13
