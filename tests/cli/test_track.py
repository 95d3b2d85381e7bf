"""`hmr track`, and the tracks of imports, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from tests.helpers.cli import hmr, hmr_ok
from tests.helpers.fixtures import find


def told(*args: object) -> tuple[dict[str, Any], str]:
    """The JSON result and the stderr of an `hmr` that must succeed."""
    done = hmr(*args, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def acceleration(path: Path, track: int) -> float:
    """Mean second difference of root-relative joints of a track, mm per frame^2."""
    with open_artefact(path) as table:
        joints = table.read("joints/xyz", np.flatnonzero(table.rows["track"] == track))
    joints = 1000 * (joints - joints[:, :1])
    return float(np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean())


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections of OpenPose's files and their video."""
    case, out = find("cases/openpose-video-tracks"), tmp_path_factory.mktemp("walk") / "w.detections.h5"
    result, said = told("import", "openpose", case / "keypoints", "--images", case / "walk.mp4", "-o", out)
    assert (result["rows"], result["tracks"], result["rows_in_tracks"]) == (60, 2, 60)
    assert "tracks: 60 of 60 rows joined into 2 tracks" in said
    return out


def test_openpose_over_a_video_becomes_two_people(walk: Path, tmp_path: Path) -> None:
    """The case openpose-video-tracks: two tracks of 30 rows, each always the same person, smooth after refining."""
    with open_artefact(walk) as table:
        track, box = table.rows["track"], table.rows["box"]
        assert np.bincount(track).tolist() == [30, 30]
        middle = (box[:, 0] + box[:, 2]) / 2
        for t in (0, 1):  # they walk towards each other: nobody ever jumps
            assert np.abs(np.diff(middle[track == t])).max() < 40
        assert (np.diff(table.frames["time"]) > 0).all() and (table.frames["source"] == 0).all()
    meshes, refined = tmp_path / "w.meshes.h5", tmp_path / "r.meshes.h5"
    hmr_ok("recover", walk, "-o", meshes, "-q")
    said = hmr_ok("refine", meshes, "--detections", walk, "--mode", "video", "-o", refined)
    assert "60 of 60 rows joined into 2 tracks" in said and "warning" not in said
    assert max(acceleration(refined, t) for t in (0, 1)) < 10 < min(acceleration(meshes, t) for t in (0, 1))
    hmr_ok("export", refined, "--format", "npz,glb", "-o", tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["walk.glb", "walk_track0.npz", "walk_track1.npz"]


def test_numbered_frames_without_images(tmp_path: Path) -> None:
    """With --size alone it is said what is missing; --fps gives times, tracks and one film; so does hmr track."""
    keypoints = find("cases/openpose-video-tracks") / "keypoints"
    plain, timed = tmp_path / "plain.detections.h5", tmp_path / "timed.detections.h5"
    result, said = told("import", "openpose", keypoints, "--size", "1280x720", "-o", plain)
    assert "tracks" not in result and "30 numbered" in said and "--fps" in said
    result, _ = told("import", "openpose", keypoints, "--size", "1280x720", "--fps", "25", "-o", timed)
    assert (result["tracks"], result["rows_in_tracks"]) == (2, 60)
    refused = hmr("track", plain, "-o", tmp_path / "t.detections.h5")
    assert refused.returncode == 3 and "--fps" in refused.stderr and not (tmp_path / "t.detections.h5").exists()
    result, said = told("track", plain, "--fps", "25", "-o", tmp_path / "t.detections.h5")
    assert result["tracks"] == 2 and "60 of 60 rows joined into 2 tracks" in said
    with open_artefact(timed) as a, open_artefact(tmp_path / "t.detections.h5") as b, open_artefact(plain) as before:
        assert a.rows["track"].tolist() == b.rows["track"].tolist()
        np.testing.assert_allclose(a.frames["time"], np.arange(30) / 25)
        np.testing.assert_allclose(b.frames["time"], np.arange(30) / 25)
        assert b.rows_fingerprint == before.rows_fingerprint  # the same rows in the same order
        for name in before.columns():
            np.testing.assert_array_equal(b.read(name), before.read(name))
    meshes, refined = tmp_path / "m.meshes.h5", tmp_path / "r.meshes.h5"
    hmr_ok("recover", timed, "-o", meshes, "-q")
    said = hmr_ok("refine", meshes, "--detections", timed, "--mode", "video", "-o", refined)
    assert "60 of 60 rows joined" in said and max(acceleration(refined, t) for t in (0, 1)) < 10
    hmr_ok("export", refined, "--format", "npz,glb", "-o", tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["walk.glb", "walk_track0.npz", "walk_track1.npz"]


def test_refining_over_time_without_tracks_says_so(tmp_path: Path) -> None:
    keypoints, plain = find("cases/openpose-video-tracks") / "keypoints", tmp_path / "plain.detections.h5"
    hmr_ok("import", "openpose", keypoints, "--size", "1280x720", "-o", plain)
    meshes, refined = tmp_path / "m.meshes.h5", tmp_path / "r.meshes.h5"
    hmr_ok("recover", plain, "-o", meshes, "-q")
    said = hmr_ok("refine", meshes, "--detections", plain, "--mode", "video", "-o", refined)
    assert "warning: 60 of 60 rows have no track" in said and "hmr track" in said
    with open_artefact(refined) as after, open_artefact(meshes) as before:
        assert not after.read("extra/refined").any()
        np.testing.assert_array_equal(after.read("smpl/transl"), before.read("smpl/transl"))
    # the detections have got tracks since, the meshes have not
    tracked = tmp_path / "t.detections.h5"
    hmr_ok("track", plain, "--fps", "25", "-o", tracked)
    said = hmr_ok("refine", meshes, "--detections", tracked, "--mode", "video", "-o", tmp_path / "again.meshes.h5")
    assert "has tracks: hmr recover from it again" in said


def test_numbers_and_boxes_of_alphapose_are_kept(tmp_path: Path) -> None:
    """The case alphapose-video: 20 rows in 10 frames with times, boxes as in `box`, tracks as in `idx`."""
    case, out = find("cases/alphapose-video"), tmp_path / "a.detections.h5"
    source = json.loads((case / "alphapose-results.json").read_text())
    result, said = told("import", "coco", case / "alphapose-results.json", "--images", case / "walk.mp4", "-o", out)
    assert (result["rows"], result["frames"], result["tracks"], result["rows_in_tracks"]) == (20, 10, 2, 20)
    assert "20 rows keep the track numbers of the imported file" in said
    with open_artefact(out) as table:
        assert (np.diff(table.frames["time"]) > 0).all()
        frame, track = table.rows["frame"], table.rows["track"]
        for entry in source:
            number = entry["idx"][0] if isinstance(entry["idx"], list) else entry["idx"]
            row = np.flatnonzero((frame == int(entry["image_id"][:-4])) & (track == int(number)))
            x, y, w, h = entry["box"]
            np.testing.assert_allclose(table.rows["box"][row], [[x, y, x + w, y + h]], atol=0.01)


def test_results_of_a_video_without_numbers_and_with_an_empty_frame(tmp_path: Path) -> None:
    """Frames in which nobody was found are frames all the same, so that time goes on; numbers come from the tracker."""
    case, out = find("cases/alphapose-video"), tmp_path / "a.detections.h5"
    source = json.loads((case / "alphapose-results.json").read_text())
    some = [{k: v for k, v in e.items() if k != "idx"} for e in source if e["image_id"] not in ("3.jpg", "4.jpg")]
    (tmp_path / "some.json").write_text(json.dumps(some))
    result, said = told("import", "coco", tmp_path / "some.json", "--images", case / "walk.mp4", "-o", out)
    assert (result["rows"], result["frames"], result["tracks"]) == (16, 10, 2) and "keep the track" not in said
    own = [e["idx"][0] if isinstance(e["idx"], list) else e["idx"] for e in source if e["image_id"][0] not in "34"]
    with open_artefact(out) as table:
        order = np.argsort([int(e["image_id"][:-4]) for e in some], kind="stable")
        pairs = {(int(t), int(o)) for t, o in zip(table.rows["track"], np.array(own)[order], strict=True)}
        assert len(pairs) == 2 and not np.isin(table.rows["frame"], (3, 4)).any()


def test_results_of_numbered_frames_without_images(tmp_path: Path) -> None:
    case, out = find("cases/alphapose-video"), tmp_path / "a.detections.h5"
    flags = ("--size", "1280x720", "--fps", "25")
    result, _ = told("import", "coco", case / "alphapose-results.json", *flags, "-o", out)
    assert (result["rows"], result["frames"], result["tracks"]) == (20, 10, 2)
    with open_artefact(out) as table:
        np.testing.assert_allclose(table.frames["time"], np.arange(10) / 25)


def test_boxes_of_a_video(tmp_path: Path) -> None:
    case, out = find("cases/alphapose-video"), tmp_path / "b.detections.h5"
    lines = [f"frame_{k},{100 + 8 * k},50,{160 + 8 * k},210" for k in range(8)]
    (tmp_path / "boxes.csv").write_text("name,x1,y1,x2,y2\n" + "\n".join(lines))
    result, _ = told("import", "boxes", tmp_path / "boxes.csv", "--images", case / "walk.mp4", "-o", out)
    assert (result["rows"], result["tracks"], result["rows_in_tracks"]) == (8, 1, 8)


def test_track_number_zero_is_a_number(tmp_path: Path) -> None:
    boxes = [{"name": f"{k}.jpg", "x1": 10, "y1": 10, "x2": 60, "y2": 90, "track": 0} for k in range(3)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    hmr_ok("import", "boxes", tmp_path / "boxes.json", "--size", "200x100", "-o", tmp_path / "b.detections.h5")
    with open_artefact(tmp_path / "b.detections.h5") as table:
        assert table.rows["track"].tolist() == [0, 0, 0]


def test_what_track_refuses(walk: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.detections.h5"
    refused = hmr("track", walk, "-o", out)
    assert (
        refused.returncode == 3 and "has tracks already (60 of 60" in refused.stderr and "--replace" in refused.stderr
    )
    for flags in (("--fps", "0"), ("--max-gap", "-1"), ("--max-gap", "nan")):
        assert hmr("track", walk, "--replace", *flags, "-o", out).returncode == 2
    assert hmr("track", walk, "--replace", "-o", walk).returncode == 2 and not out.exists()
    result, _ = told("track", walk, "--replace", "-o", out)
    assert result["tracks"] == 2
    other = hmr("track", walk, "--replace", "--max-gap", "0.5", "-o", out)
    assert other.returncode != 0 and "max_gap" in other.stderr and "--force" in other.stderr
    same = hmr_ok("track", walk, "--replace", "-o", out)
    assert "up to date" in same


def test_fps_is_not_for_videos_or_names_without_numbers(tmp_path: Path) -> None:
    case, out = find("cases/openpose-video-tracks"), tmp_path / "x.detections.h5"
    keypoints = case / "keypoints"
    done = hmr("import", "openpose", keypoints, "--images", case / "walk.mp4", "--fps", "25", "-o", out)
    assert done.returncode == 2 and "video has times of its own" in done.stderr
    (tmp_path / "boxes.csv").write_text("name,x1,y1,x2,y2\nanna.jpg,1,1,50,90\n")
    done = hmr("import", "boxes", tmp_path / "boxes.csv", "--size", "99x99", "--fps", "5", "-o", out)
    assert done.returncode == 3 and "anna.jpg has no number" in done.stderr
