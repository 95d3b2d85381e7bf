"""`hmr import`: COCO, OpenPose and boxes become detections; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, K_USER, OK
from stages.artefacts.table import Artefact
from stages.engine.job import RunOptions
from stages.formats.boxes import read_boxes
from stages.formats.coco import read_coco
from stages.formats.openpose import read_openpose
from stages.formats.source import usable_boxes
from stages.import_ import run as import_run
from stages.keypoints.joint_sets import SETS
from stages.media.frames import FrameSource
from stages.params import ImportParams
from tests.helpers import fixtures
from tests.helpers.cli import hmr

COCO17 = list(SETS["coco17"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("000000000001.jpg", "000000000002.jpg", "000000000010.jpg"):
        Image.new("RGB", (200, 100), "grey").save(folder / name)
    return folder


def person(x: float, seen: int = 17, v: float = 2) -> list[float]:
    return [value for j in range(17) for value in ((x + j, 50.0 + j, v) if j < seen else (0, 0, 0))]


def annotations(**more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 200, "height": 100} for i in (10, 2, 1)],
        "categories": [{"id": 1, "name": "person", "keypoints": COCO17}],
        "annotations": [
            {"image_id": 10, "category_id": 1, "bbox": [10, 20, 50, 60], "keypoints": person(20), "iscrowd": 0},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "keypoints": person(5, 3, 1), "iscrowd": 0},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "keypoints": person(0, 0), "iscrowd": 0},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "keypoints": person(9), "iscrowd": 1},
        ],
        **more,
    }


def dump(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_coco_annotations(tmp_path: Path, photos: Path) -> None:
    source = dump(tmp_path / "a.json", annotations())
    done = hmr("import", "coco", source, "--images", photos, "-o", tmp_path / "x.detections.h5")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "x.detections.h5"), done.stderr
    with open_artefact(tmp_path / "x.detections.h5", "detections") as a:
        assert a.frames["name"].tolist() == ["000000000001.jpg", "000000000002.jpg", "000000000010.jpg"]
        assert a.rows["frame"].tolist() == [0, 2] and a.frames["size"].tolist() == [[200, 100]] * 3
        assert a.rows["box"][1].tolist() == [10, 20, 60, 80]
        assert a.read("keypoints/score")[0].tolist() == [0.5] * 3 + [0] * 14
        assert a.read("keypoints/xy")[1, 4].tolist() == [24, 54] and a.group_attrs("keypoints")["joint_set"] == "coco17"
        assert "occluded" in a.group_attrs("keypoints")["score_definition"]
        assert FrameSource(a)(2).shape == (100, 200, 3)
    again = hmr("import", "coco", source, "--images", photos, "-o", tmp_path / "x.detections.h5", "--json")
    assert json.loads(again.stdout) == {
        "out": str(tmp_path / "x.detections.h5"), "rows": 2, "failed": 0, "frames": 3, "frames_failed": 0,
    }  # fmt: skip
    assert "up to date" in again.stderr


def in_memory(source: Any, images: Path | None, params: ImportParams = ImportParams()) -> Artefact:
    made = import_run(source, images, None, params, RunOptions())
    assert isinstance(made, Artefact)
    return made


def test_coco_results_find_their_pictures_by_number_or_annotations(tmp_path: Path, photos: Path) -> None:
    results = [
        {"image_id": 10, "category_id": 1, "keypoints": person(20, 9, 0.7), "score": 0.9},
        {"image_id": 1, "category_id": 1, "keypoints": person(30, 17, 0.6), "score": 0.2, "bbox": [1, 2, 3, 4]},
    ]
    path = dump(tmp_path / "r.json", results)
    found = in_memory(read_coco(path, photos, ImportParams()), photos)
    assert found.frames["name"].tolist() == ["000000000001.jpg", "000000000010.jpg"]
    assert np.allclose(found.rows["score"], [0.2, 0.9]) and found.rows["box"][0].tolist() == [1, 2, 4, 6]
    assert np.allclose(
        found.rows["box"][1], [20 - 1, 50 - 1, 28 + 1, 58 + 1]
    )  # around 9 joints, 10 % of 8 px, at least 1
    book = dump(tmp_path / "a.json", annotations())
    params = ImportParams(min_score=0.5)
    named = in_memory(read_coco(path, None, params, book), None, params)
    assert named.n_frames == 3 and named.n_rows == 1 and named.frames["size"][0].tolist() == [200, 100]
    params = ImportParams(focal=150.0)
    assert in_memory(read_coco(path, None, params, book), None, params).frames["K_source"].tolist() == [K_USER] * 3


def test_pictures_that_are_missing_turned_or_broken_fail_with_their_people(tmp_path: Path, photos: Path) -> None:
    (photos / "000000000010.jpg").unlink()
    Image.new("RGB", (100, 200)).save(photos / "000000000001.jpg")
    out = tmp_path / "x.h5"
    done = hmr("import", "coco", dump(tmp_path / "a.json", annotations()), "--images", photos, "-o", out)
    assert done.returncode == 3 and "every row failed" in done.stderr and len(done.stderr.strip().splitlines()) <= 4
    with open_artefact(out) as a:
        assert a.frames["status"].tolist() == [FAILED, OK, FAILED]
        assert "100 x 200, the imported file says 200 x 100" in a.rows["error"][0]
        assert "No such file" in a.rows["error"][1]


def test_openpose_folder_and_video(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "keypoints"
    folder.mkdir()
    flat = [v for j in range(25) for v in ((60 + j, 40 + j, 0.5) if j != 8 else (0, 0, 0))]
    for name, people in (("000000000001", [flat, flat]), ("000000000002", [])):
        dump(
            folder / f"{name}_keypoints.json", {"people": [{"person_id": [3], "pose_keypoints_2d": p} for p in people]}
        )
    a = in_memory(read_openpose(folder, ImportParams()), photos)
    assert a.n_frames == 2 and a.n_rows == 2 and a.frames["name"][0] == "000000000001.jpg"
    assert a.group_attrs("keypoints")["joint_set"] == "body25" and a.read("keypoints/score")[0, 8] == 0
    assert np.allclose(a.rows["score"], 0.5) and a.rows["track"].tolist() == [3, 3]
    sized = in_memory(read_openpose(folder, ImportParams()), None, ImportParams(size="640x480"))
    assert sized.frames["size"].tolist() == [[640, 480]] * 2

    from tests.helpers.coded_video import number_of, write_coded_video

    video = write_coded_video(tmp_path / "v.mp4", list(range(0, 4000, 40)))
    clip = tmp_path / "clip"
    clip.mkdir()
    for i in (7, 3, 50):
        small = [v / 2 if k % 3 < 2 else v for k, v in enumerate(flat)]
        dump(clip / f"v_{i:012d}_keypoints.json", {"people": [{"pose_keypoints_2d": small}]})
    out = tmp_path / "v.detections.h5"
    done = hmr("import", "openpose", clip, "--images", video, "-o", out)
    assert done.returncode == 0, done.stderr
    with open_artefact(out) as a:
        assert a.frames["name"].tolist() == ["v.mp4#000003", "v.mp4#000007", "v.mp4#000050"]
        assert np.allclose(a.frames["time"], [0.12, 0.28, 2.0])
        assert [number_of(FrameSource(a)(i)) for i in range(3)] == [
            3,
            7,
            50,
        ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.csv", "name,x1,y1,x2,y2,score,track\n000000000002.jpg,1,2,30,40,0.5,7\n000000000001.jpg,5,6,70,80,,\n"),
        ("b.csv", "image, x, y, w, h, score, track\n000000000002.jpg, 1, 2, 29, 38, 0.5, 7\n"
                  "000000000001.jpg,5,6,65,74\n"),
        ("b.json", '[{"file": "000000000002.jpg", "x": 1, "y": 2, "w": 29, "h": 38, "score": 0.5, "track": 7},'
                   ' {"file": "000000000001.jpg", "x1": 5, "y1": 6, "x2": 70, "y2": 80}]'),
    ],
)  # fmt: skip
def test_boxes(tmp_path: Path, photos: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    a = in_memory(read_boxes(tmp_path / name, ImportParams()), photos)
    assert a.rows["box"].tolist() == [[5, 6, 70, 80], [1, 2, 30, 40]]
    assert a.rows["score"].tolist() == [1, 0.5] and a.rows["track"].tolist() == [-1, 7]
    assert a.shape("keypoints/xy") == (2, 0, 2)


def test_unusable_boxes_are_clipped_or_failed() -> None:
    size = np.array([[200, 100]] * 7)
    nan = float("nan")
    given = [
        [-5, -5, 500, 50],
        [10, 10, 10, 40],
        [50, 50, 40, 60],
        [300, 10, 400, 50],
        [nan, 0, 1, 1],
        [0, 0, 200, 100],
    ]
    box, error = usable_boxes(np.array([*given, [-50, 20, -10, 60]], np.float32), size)
    assert box[0].tolist() == [0, 0, 200, 50] and box[5].tolist() == [0, 0, 200, 100]
    assert [bool(e) for e in error] == [False, True, True, True, True, False, True]
    assert (
        "smaller than a pixel" in error[1] and "x2 < x1" in error[2] and "outside" in error[3] and "finite" in error[4]
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not json", "is not JSON"),
        ({"images": []}, "neither COCO results"),
        (annotations(annotations=[{"image_id": 99, "keypoints": person(1)}]), "no picture for image_id 99"),
        (annotations(annotations=[{"image_id": 1, "keypoints": person(1)[:-1]}]), "not a multiple of 3"),
        (
            annotations(annotations=[{"image_id": 1, "keypoints": [1, 2, 2] * 16}], categories=[]),
            "16 joints, which is no known set",
        ),
        (
            annotations(annotations=[{"image_id": 1, "keypoints": person(1), "bbox": [1, 2]}]),
            "bbox is not x, y, width, height",
        ),
        (annotations(images=[{"id": 1}]), r"images\[0\] has no file_name"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, photos: Path, value: Any, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    from stages.errors import InputError

    with pytest.raises(InputError, match=message) as caught:
        read_coco(path, photos, ImportParams())
    assert "\n" not in caught.value.message and caught.value.exit_code == 3


def test_wrong_joint_sets_are_named(tmp_path: Path, photos: Path) -> None:
    path = dump(tmp_path / "a.json", annotations())
    for given, code, words in (("body25", 3, "17 joints, body25 has 25"), ("coco", 2, "no joint set 'coco'")):
        done = hmr("import", "coco", path, "--images", photos, "--joint-set", given, "-o", tmp_path / "x.h5")
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.h5").exists()


@pytest.mark.parametrize("folder", ["free", "non_commercial", "research_only/crowdpose", "research_only/ochuman"])
def test_real_annotations(folder: str) -> None:
    photos = fixtures.find(f"photos/{folder}")
    path = next(p for name in ("person_keypoints.json", "annotations.json") if (p := photos / name).exists())
    params = ImportParams(min_keypoints=9)
    a = in_memory(read_coco(path, photos, params), photos, params)
    assert (a.frames["status"] == OK).all() and (a.rows["status"] == OK).all() and a.n_rows >= 3
    assert ((a.read("keypoints/score") > 0).sum(1) >= 9).all()
    assert len(a.group_attrs("keypoints")["joints"]) in (14, 17)
