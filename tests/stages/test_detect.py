"""hmr detect: rows, failures, cameras, tracks, given boxes; with a detector whose answers are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from stages import detect
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, K_DEFAULT, K_USER, OK
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import RunOptions
from stages.engine.runner import merge
from stages.errors import ArtefactError, InputError, RowsFailed, UsageError
from stages.media.images import write_image
from stages.media.video import write_video
from stages.params import DetectParams
from tests.helpers import fetched, fixtures, rectangle_detector

WHITE = "tests.helpers.rectangle_detector:Rectangles"
PARAMS = DetectParams(detector=WHITE)


def picture(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (320, 240)) -> np.ndarray:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1 : y2 + 1, x1 : x2 + 1] = 255
    return image


def folder(path: Path, **pictures: np.ndarray) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        write_image(path / f"{name}.png", image)
    return path


def found(*args, **kwargs) -> Artefact:
    result = detect.run(*args, **kwargs)
    assert isinstance(result, Artefact)
    return result


def test_people_become_rows_in_frame_order(tmp_path: Path) -> None:
    photos = folder(
        tmp_path / "in", a=picture((10, 20, 50, 100), (100, 30, 160, 200)), b=picture(), c=picture((5, 5, 40, 90))
    )
    path = detect.run([photos], tmp_path / "x.detections.h5", PARAMS)
    assert isinstance(path, Path)
    with open_artefact(path, "detections") as table:
        assert list(table.frames["name"]) == ["a.png", "b.png", "c.png"]
        assert table.rows["frame"].tolist() == [0, 0, 2]
        boxes = sorted(table.rows["box"].tolist())
        assert boxes == [[5, 5, 40, 90], [10, 20, 50, 100], [100, 30, 160, 200]]
        expected = table.rows["box"][:, None, :2] + rectangle_detector.SPREAD * (
            table.rows["box"][:, None, 2:] - table.rows["box"][:, None, :2]
        )
        np.testing.assert_allclose(table.read("keypoints/xy"), expected, atol=1e-4)
        assert table.rows["track"].tolist() == [-1, -1, -1]
        assert (table.frames["K_source"] == K_DEFAULT).all()
        attrs = table.group_attrs("keypoints")
        assert attrs["joint_set"] == "coco17" and len(attrs["joints"]) == 17 and attrs["score_definition"] == "1"
        assert table.attrs["model"] == {"name": "rectangles", "sha256": "0" * 64, "licence": "CC0-1.0"}
        assert table.attrs["params"]["min_score"] == 0.5 and table.attrs["params"]["detector"] == "rectangles"
        assert str(tmp_path) not in json.dumps({k: str(v) for k, v in table.attrs.items() if k != "command"})


def test_nobody_is_a_table_of_zero_rows(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture(), b=picture())
    path = detect.run([photos], tmp_path / "x.h5", PARAMS)
    with open_artefact(path, "detections") as table:
        assert (table.n_frames, table.n_rows) == (2, 0)
        assert table.read("keypoints/xy").shape == (0, 17, 2) and table.group_attrs("keypoints")["joints"]


def test_unreadable_pictures_fail_and_the_others_are_done(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture((10, 10, 60, 90)), z=picture((10, 10, 60, 90)))
    (photos / "b.jpg").write_bytes(b"")
    (photos / "c.jpg").write_text("<!DOCTYPE html><html>")
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes()[:60])
    table = found([photos], None, PARAMS)
    assert table.frames["status"].tolist() == [OK, FAILED, FAILED, FAILED, OK]
    assert all(table.frames["error"][1:4]) and table.rows["frame"].tolist() == [0, 4]
    with pytest.raises(RowsFailed):
        detect.run([photos], tmp_path / "s.h5", PARAMS, RunOptions(strict=True))
    with pytest.raises(InputError, match="every frame failed"):
        detect.run([photos / "b.jpg", photos / "c.jpg"], None, PARAMS)


def test_two_hundred_people(tmp_path: Path) -> None:
    boxes = [(20 * i + 2, 40 * j + 3, 20 * i + 15, 40 * j + 35) for i in range(20) for j in range(10)]
    photos = folder(tmp_path / "in", a=picture(*boxes, size=(420, 420)))
    table = found([photos], None, PARAMS)
    assert table.n_rows == 200 and sorted(table.rows["box"].tolist()) == sorted(map(list, boxes))
    assert found([photos], None, dataclasses.replace(PARAMS, max_people=7)).n_rows == 7


def test_scores_choose_and_order_people(tmp_path: Path) -> None:
    image = picture((10, 10, 60, 90), (100, 10, 160, 90), (200, 10, 260, 90))
    image[30:80, 110:161] = 0  # an L, about a third white
    image[60:80, 210:261] = 0  # about three quarters
    photos = folder(tmp_path / "in", a=image)
    table = found([photos], None, PARAMS)
    assert table.rows["box"][:, 0].tolist() == [10, 200]
    assert found([photos], None, dataclasses.replace(PARAMS, min_score=0.0)).n_rows == 3
    best = found([photos], None, dataclasses.replace(PARAMS, min_score=0.0, max_people=1))
    assert best.rows["box"][:, 0].tolist() == [10] and (np.diff(table.rows["score"]) <= 0).all()


class Wild(rectangle_detector.Rectangles):
    """Boxes as a bad detector gives them."""

    def _one(self, image, box):
        wild = [[-50, -50, 100, 100], [np.nan] * 4, [400, 10, 500, 90], [60, 90, 20, 20], [-9, -9, 999, 999]]
        return dataclasses.replace(super()._one(image, np.array(wild, float)), score=np.full(5, 0.9))


def test_boxes_are_clipped_or_left_out(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture())
    table = found([photos], None, DetectParams(detector="tests.stages.test_detect:Wild"))
    assert table.rows["box"].tolist() == [[0, 0, 100, 100], [0, 0, 319, 239]]


# ---- the same whatever way


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 frames: two people cross, a third comes for frames 50 to 99."""
    frames = []
    for i in range(150):
        boxes = [(5 + 2 * i, 20, 35 + 2 * i, 90), (285 - 2 * i if i < 140 else 5, 120, 315 - 2 * min(i, 139), 200)]
        frames.append(picture(*boxes, *([(150, 210, 170, 235)] if 50 <= i < 100 else [])))
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames, fps=25)


def values(path: Path | Artefact) -> dict[str, np.ndarray]:
    with open_artefact(path) as table:
        names = {f"rows/{n}": v for n, v in table.rows.items()} | {f"frames/{n}": v for n, v in table.frames.items()}
        return names | {n: table.read(n) for n in table.columns()}


def test_tracks_follow_people_through_a_film(film: Path, tmp_path: Path) -> None:
    with open_artefact(detect.run([film], tmp_path / "t.h5", PARAMS)) as table:
        assert table.n_frames == 150 and table.n_rows == 350
        top = table.rows["box"][:, 1]
        for low, high in ((0, 60), (100, 150), (205, 240)):
            own = table.rows["track"][(top > low) & (top < high)]
            assert len(np.unique(own)) == 1
        assert sorted(np.unique(table.rows["track"])) == [0, 1, 2]
    none = found([film], None, dataclasses.replace(PARAMS, tracks="none"))
    assert (none.rows["track"] == -1).all()
    third = found([film], None, dataclasses.replace(PARAMS, every=3))
    np.testing.assert_allclose(np.diff(third.frames["time"]), 0.12)
    assert third.n_frames == 50 and sorted(np.unique(third.rows["track"])) == [0, 1, 2]


def test_batches_shards_and_resumption_change_nothing(film: Path, tmp_path: Path) -> None:
    whole = values(detect.run([film], tmp_path / "whole.h5", PARAMS))
    for batch in (1, 7, 64):
        other = values(detect.run([film], tmp_path / f"b{batch}.h5", PARAMS, RunOptions(batch_size=batch)))
        assert other.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(other[name], whole[name], err_msg=name)
    out = tmp_path / "shards.h5"
    for shard in (2, 0, 1):
        detect.run([film], out, PARAMS, RunOptions(shard=(shard, 3)))
    if not out.exists():
        merge(out)
    again = values(out)
    for name in whole:
        np.testing.assert_array_equal(again[name], whole[name], err_msg=name)
    rectangle_detector.calls.clear()
    detect.run([film], out, PARAMS)
    assert not rectangle_detector.calls  # up to date: nothing is looked at again


def test_photos_can_be_tracked_as_a_sequence(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", **{f"f{i:02d}": picture((5 + 6 * i, 20, 45 + 6 * i, 120)) for i in range(12)})
    assert (found([photos], None, PARAMS).rows["track"] == -1).all()
    assert (found([photos], None, dataclasses.replace(PARAMS, tracks="all")).rows["track"] == 0).all()


def test_each_video_and_view_has_its_own_tracks(film: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other.mp4"
    copy.write_bytes(film.read_bytes())
    table = found([film, copy], None, dataclasses.replace(PARAMS, views=True, every=5))
    view = table.frames["view"][table.rows["frame"]]
    assert set(view) == {0, 1}
    assert not set(table.rows["track"][view == 0]) & set(table.rows["track"][view == 1])


# ---- cameras


def test_cameras_of_the_user(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture((10, 10, 60, 90)), b=picture(size=(640, 480)))
    default = found([photos], None, PARAMS)
    np.testing.assert_allclose(default.frames["K"][0], [[400, 0, 159.5], [0, 400, 119.5], [0, 0, 1]])
    focal = found([photos], None, dataclasses.replace(PARAMS, focal=777.0))
    assert (focal.frames["K_source"] == K_USER).all() and (focal.frames["K"][:, 0, 0] == 777).all()
    fov = found([photos], None, dataclasses.replace(PARAMS, fov=90.0))
    np.testing.assert_allclose(fov.frames["K"][:, 0, 0], [160, 320])
    K = [[500, 0, 100], [0, 510, 90], [0, 0, 1]]
    (tmp_path / "K.json").write_text(json.dumps({"K": K}))
    np.savetxt(tmp_path / "K.txt", K)
    np.save(tmp_path / "K.npy", K)
    for suffix in ("json", "txt", "npy"):
        given = found([photos], None, PARAMS, cameras=tmp_path / f"K.{suffix}")
        np.testing.assert_allclose(given.frames["K"], [K, K])
        assert given.fingerprint != default.fingerprint


def test_a_camera_per_picture_and_one_that_cannot_be(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture((10, 10, 60, 90)), b=picture((10, 10, 60, 90)), c=picture())
    good, crop = [[500, 0, 100], [0, 510, 90], [0, 0, 1]], [[500, 0, 900], [0, 510, 90], [0, 0, 1]]
    (tmp_path / "K.json").write_text(json.dumps({"a.png": good, "b.png": crop}))
    table = found([photos], None, PARAMS, cameras=tmp_path / "K.json")
    assert table.frames["status"].tolist() == [OK, FAILED, FAILED]
    assert (
        "b.png: the principal point" in table.frames["error"][1] and "no camera for c.png" in table.frames["error"][2]
    )
    assert table.rows["frame"].tolist() == [0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[1, 2], [3, 4]]", "not a 3 x 3 matrix"),
        ("[[-500, 0, 9], [0, 500, 9], [0, 0, 1]]", "must be above 0"),
        ("[[0, 0, 9], [0, 0, 9], [0, 0, 1]]", "must be above 0"),
        ("[[NaN, 0, 9], [0, 500, 9], [0, 0, 1]]", "not finite"),
        ("[[500, 0, 9], [0, 500, 9], [0, 0, 0]]", "not of the form"),
        ("{}", "holds no camera"),
        ("{oops", "no camera matrix"),
    ],
)
def test_impossible_cameras(tmp_path: Path, content: str, says: str) -> None:
    photos = folder(tmp_path / "in", a=picture())
    (tmp_path / "K.json").write_text(content)
    with pytest.raises(InputError, match=says):
        detect.run([photos], None, PARAMS, cameras=tmp_path / "K.json")


# ---- given boxes


def boxes_only(photos: Path, boxes: list[list[float]], frame: list[int], names: list[str]) -> Artefact:
    frames = {
        "name": names,
        "size": np.array([(320, 240)] * len(names)),
        "K": np.tile([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]], (len(names), 1, 1)),
    }
    rows = {"frame": np.array(frame), "box": np.array(boxes, float)}
    nothing = {"keypoints/xy": np.zeros((len(boxes), 0, 2)), "keypoints/score": np.zeros((len(boxes), 0))}
    attrs = {"keypoints": {"joints": [], "joint_set": "", "score_definition": "no keypoints"}}
    return in_memory(
        "detections", frames=frames, rows=rows, columns=nothing, group_attrs=attrs, attrs={"root": str(photos)}
    )


def test_given_boxes_get_keypoints_and_keep_their_rows(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture(), b=picture())
    given = [
        [100, 20, 160, 90], [10, 10, 40, 90], [np.nan] * 4, [50, 50, 50, 90], [90, 50, 20, 90], [400, 10, 500, 90],
        [-40, -40, 700, 700], [20, 20, 60, 60],
    ]  # fmt: skip
    table = boxes_only(photos, given, [1, 0, 0, 0, 0, 1, 1, 2], ["a.png", "b.png", "gone.png"])
    result = found([], None, PARAMS, boxes=table)
    np.testing.assert_array_equal(result.rows["box"], table.rows["box"])
    assert result.rows_fingerprint == table.rows_fingerprint
    assert result.rows["status"].tolist() == [OK, OK, FAILED, FAILED, FAILED, FAILED, OK, FAILED]
    says = ["not finite", "no size", "no size", "outside the picture"]
    assert all(text in error for text, error in zip(says, result.rows["error"][2:6], strict=True))
    assert "gone.png" in result.rows["error"][7]
    xy = result.read("keypoints/xy")
    box = table.rows["box"][[0, 1, 6]]
    np.testing.assert_allclose(
        xy[[0, 1, 6]], box[:, None, :2] + rectangle_detector.SPREAD * (box[:, None, 2:] - box[:, None, :2])
    )
    assert np.isnan(xy[2:6]).all()
    np.testing.assert_array_equal(result.frames["K"], table.frames["K"])


def test_pictures_of_given_boxes_that_have_moved(tmp_path: Path) -> None:
    photos = folder(tmp_path / "elsewhere", a=picture())
    table = boxes_only(tmp_path / "before", [[10, 10, 40, 90]], [0], ["a.png"])
    with pytest.raises(InputError, match=r"every row failed.*a\.png"):
        detect.run([], None, PARAMS, boxes=table)
    assert found([], None, PARAMS, boxes=table, root=photos).rows["status"].tolist() == [OK]


def test_a_detector_without_people_takes_them_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = folder(tmp_path / "in", a=picture((10, 20, 50, 100)), b=picture())
    monkeypatch.setattr(detect, "_best", lambda device: rectangle_detector.Rectangles())
    table = found([photos], None, DetectParams(detector="tests.helpers.rectangle_detector:OnlyJoints"))
    assert table.n_rows == 1 and table.attrs["model"]["name"] == "onlyjoints+rectangles"


# ---- choosing


def test_auto_takes_what_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMR_CACHE", str(tmp_path))
    monkeypatch.setattr("stages.models.detectors.vitpose.VitPose.missing", classmethod(lambda cls, path: "no"))
    assert detect.choose(DetectParams(), None, "cpu", alone=True)[0].name == "movenet"
    pytest.importorskip("onnxruntime")
    (tmp_path / "rtmpose").mkdir()
    for name in ("detector.onnx", "pose.onnx"):
        (tmp_path / "rtmpose" / name).write_bytes(b"x")
    assert detect.choose(DetectParams(), None, "cpu", alone=True)[0].name == "rtmpose"


@pytest.mark.parametrize(
    "change",
    [
        {"focal": 500.0, "fov": 60.0}, {"focal": -1.0}, {"fov": 200.0}, {"min_score": 2.0}, {"max_people": -1},
        {"every": 0}, {"tracks": "some"}, {"detector": "nonsense"}, {"detector": "json:nothing"},
    ],
)  # fmt: skip
def test_impossible_settings(tmp_path: Path, change: dict) -> None:
    with pytest.raises(UsageError):
        detect.run([folder(tmp_path / "in", a=picture())], None, dataclasses.replace(PARAMS, **change))


def test_conflicting_inputs(tmp_path: Path) -> None:
    table = boxes_only(tmp_path, [[10, 10, 40, 90]], [0], ["a.png"])
    with pytest.raises(UsageError, match="--boxes"):
        detect.run([tmp_path], None, PARAMS, boxes=table)
    with pytest.raises(UsageError, match="nothing to look at"):
        detect.run([], None, PARAMS)
    with pytest.raises(UsageError, match="belongs to one detector"):
        detect.run([tmp_path], None, DetectParams(), detector_path=tmp_path)


def test_other_settings_do_not_replace_a_finished_file(tmp_path: Path) -> None:
    photos = folder(tmp_path / "in", a=picture((10, 10, 60, 90)))
    out = detect.run([photos], tmp_path / "x.h5", PARAMS)
    with pytest.raises(ArtefactError, match="min_score"):
        detect.run([photos], out, dataclasses.replace(PARAMS, min_score=0.9))


# ---- the real one


def test_the_chain_on_real_photos_with_the_default_detector(tmp_path: Path) -> None:
    fetched.blazepose()
    photos = sorted(fixtures.find("photos/free").glob("*.jpg"))[:2]
    path = detect.run(photos, tmp_path / "x.h5", DetectParams(detector="blazepose"))
    with open_artefact(path, "detections") as table:
        assert table.n_rows >= 2 and (table.rows["score"] >= 0.72).all()
        score = table.read("keypoints/score")
        assert ((score >= 0) & (score <= 1)).all() and (score > 0.5).mean() > 0.5
