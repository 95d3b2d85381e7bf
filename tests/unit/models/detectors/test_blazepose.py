"""BlazePose on real photos; the geometry around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.errors import AssetError
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS
from stages.keypoints.oks import iou, oks, sigmas
from stages.media.frames import open_frame
from stages.models.detectors import blazepose
from stages.models.detectors.base import DetectedPeople, clip_boxes
from stages.models.detectors.blazepose import ANCHORS, BlazePose, windows
from stages.models.tables import DETECTORS
from tests.helpers import fetched, fixtures

SIGMA = sigmas(SETS["coco17"])
QUARTET = {"free": ["000000000785"], "non_commercial": ["000000196141", "000000197388", "000000040083"]}


@pytest.fixture(scope="module")
def detector() -> BlazePose:
    return BlazePose.load(fetched.blazepose(), device="cpu")


def annotated(folder: Path, name: str) -> tuple[np.ndarray, list[dict]]:
    """A photo and its annotated people."""
    content = json.loads((folder / "person_keypoints.json").read_text())
    image = next(i for i in content["images"] if i["file_name"].startswith(name))
    people = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    return open_frame(folder / image["file_name"]), [a for a in people if a["num_keypoints"] and not a["iscrowd"]]


def likeness(people: list[dict], found: DetectedPeople) -> np.ndarray:
    """OKS (annotated, found) by COCO's rule: the annotated joints and area."""
    truth = np.array([p["keypoints"] for p in people], float).reshape(-1, 17, 3)
    truth[truth[..., 2] == 0] = np.nan
    area = np.array([p["area"] for p in people])[:, None]
    return oks(truth[..., :2], found.keypoints[..., :2], area, SIGMA)


def test_nine_of_twelve_people_and_none_that_is_not_there(detector: BlazePose) -> None:
    hits = wrong = total = 0
    for folder, names in QUARTET.items():
        for name in names:
            image, people = annotated(fixtures.find(f"photos/{folder}"), name)
            found = detector([image])[0]
            found = found.take(np.flatnonzero(found.score >= detector.min_score))
            matches = likeness(people, found) > 0.5
            hits, total = hits + int(matches.any(1).sum()), total + len(people)
            wrong += int((~matches.any(0)).sum())
    print(f"BlazePose: {hits} of {total} people, {wrong} false")
    assert total == 12 and hits >= 9 and wrong == 0


def test_boxes_and_scores_fit_the_person(detector: BlazePose) -> None:
    image, people = annotated(fixtures.find("photos/free"), "000000000785")
    found = detector([image])[0]
    x, y, w, h = people[0]["bbox"]
    assert len(found) == 1
    assert iou(found.box, np.array([[x, y, x + w, y + h]]))[0, 0] > 0.75
    assert found.score[0] > 0.9 and (found.keypoints[..., 2] > 0.5).mean() > 0.8


def test_given_boxes_are_completed_in_their_order(detector: BlazePose) -> None:
    image, people = annotated(fixtures.find("photos/non_commercial"), "000000196141")
    boxes = np.array([p["bbox"] for p in people], float)
    boxes[:, 2:] += boxes[:, :2]
    bad = np.array([[np.nan] * 4, [50.0, 50, 50, 50]])
    found = detector([image], [np.concatenate([boxes, bad])])[0]
    assert np.isnan(found.keypoints[-2:]).all()
    same = np.diag(likeness(people, found.take(np.arange(len(people)))))
    assert (same > 0.5).all()
    turned = detector([image], [boxes[::-1]])[0]
    np.testing.assert_allclose(turned.keypoints[::-1], found.keypoints[: len(people)])


def test_confidence_falls_where_a_body_is_hidden(detector: BlazePose) -> None:
    """Cover the skier's legs: knees and ankles lose their score, the shoulders keep theirs."""
    image, people = annotated(fixtures.find("photos/free"), "000000000785")
    x, y, w, h = people[0]["bbox"]
    covered = image.copy()
    covered[int(y + 0.55 * h) :] = 128
    box = np.array([[x, y, x + w, y + h]])
    full, half = detector([image, covered], [box, box])
    assert half.keypoints[0, 13:, 2].mean() < full.keypoints[0, 13:, 2].mean() - 0.2
    assert half.keypoints[0, 5:7, 2].mean() > 0.5


def test_nobody_and_small_pictures(detector: BlazePose) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    for image in (np.zeros((480, 640, 3), np.uint8), noise, np.full((32, 32, 3), 255, np.uint8)):
        found = detector([image])[0]
        assert len(found.take(np.flatnonzero(found.score >= detector.min_score))) == 0
        assert found.keypoints.shape[1:] == (17, 3)


def test_large_photos_give_the_same_people(detector: BlazePose) -> None:
    """Four times the pixels: the same person at twice the coordinates (crops come from the halved picture)."""
    image, _ = annotated(fixtures.find("photos/free"), "000000000785")
    small, large = detector([image, image.repeat(2, 0).repeat(2, 1)])
    assert len(large) == len(small) == 1
    scaled = (large.keypoints[..., :2] + 0.5) / 2 - 0.5
    area = np.prod(small.box[:, 2:] - small.box[:, :2], 1)
    assert oks(small.keypoints[..., :2], scaled, area, SIGMA)[0, 0] > 0.95


def test_litert_is_silent(detector: BlazePose, capfd: pytest.CaptureFixture[str]) -> None:
    BlazePose.load(detector.folder, device="cpu")([np.zeros((64, 64, 3), np.uint8)])
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for path in (None, tmp_path):
        with pytest.raises(AssetError) as caught:
            BlazePose.load(path, device="cpu")
        assert caught.value.hint == "run: hmr assets get blazepose"
    for name in blazepose.FILES:
        (tmp_path / name).write_bytes(b"TFL3" * 50)
    with pytest.raises(AssetError, match="damaged"):
        BlazePose.load(tmp_path, device="cpu")([np.zeros((64, 64, 3), np.uint8)])


def test_windows_cover_the_picture() -> None:
    for width, height in ((640, 480), (480, 640), (3000, 200), (200, 200), (32, 10_000)):
        covered = np.zeros((height, width), bool)
        places = windows(width, height, (0.6,))
        for (x, y), side in places:
            a, b = max(round(y + 0.5 - side / 2), 0), max(round(x + 0.5 - side / 2), 0)
            covered[a : round(y + 0.5 + side / 2), b : round(x + 0.5 + side / 2)] = True
        assert covered.all() and len(places) <= 64
    assert windows(640, 480, (1.0,)) == [((319.5, 239.5), 640.0)]


def test_anchors_are_the_cells_of_three_grids() -> None:
    assert ANCHORS.shape == (2254, 2)
    np.testing.assert_allclose(ANCHORS[:3], [[0.5 / 28] * 2, [0.5 / 28] * 2, [1.5 / 28, 0.5 / 28]])
    np.testing.assert_allclose(ANCHORS[-6:], [[6.5 / 7] * 2] * 6)


def test_the_pyramid_keeps_places() -> None:
    """A bright spot is found at the same picture coordinates on every level."""
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[600:632, 320:352] = 255  # centre 335.5, 615.5
    levels = crops.halvings(image)
    assert [len(level) for level in levels] == [1024, 512, 256, 128]
    for side in (150.0, 700.0, 1400.0):
        to_image = blazepose._upright(np.array([400.0, 600.0]), side, 0.3, 224)
        crop = crops.warp_from(levels, crops.invert(to_image[None])[0], 224)[..., 0]
        rows, columns = np.mgrid[:224, :224]
        center = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
        np.testing.assert_allclose(to_image[:, :2] @ center + to_image[:, 2], [335.5, 615.5], atol=0.6)


def test_every_detector_in_the_table_follows_the_protocol() -> None:
    from stages.models import find

    for name in DETECTORS:
        kind = find(DETECTORS, name)
        assert kind.name == name and kind.joints == SETS["coco17"] and kind.score_definition
        assert 0 < kind.min_score < 1
        assert name == "vitpose" or bool(kind.missing(None)) == (name != "movenet")  # vitpose: the hub's cache


def test_boxes_are_cut_to_the_picture() -> None:
    boxes = clip_boxes(np.array([[-5.0, -5, 700, 500], [650, 10, 660, 20]]), (640, 480))
    np.testing.assert_array_equal(boxes, [[0, 0, 639, 479], [639, 10, 639, 20]])
