"""Takes, and tracks of whole tables."""

from __future__ import annotations

import numpy as np
import pytest

from stages.artefacts.table import Artefact, in_memory
from stages.errors import ArtefactError
from stages.keypoints.joint_sets import SETS
from stages.loaders import tracks

BODY = np.random.default_rng(0).uniform(0, 1, (17, 2)) * [60, 160]


def table(
    places: list[list[float]], *, joints: bool = True, order: list[int] | None = None, **frames: object
) -> Artefact:
    """Detections of people at x = places[frame][person]; rows in the given order."""
    found = [(f, x) for f, people in enumerate(places) for x in people]
    found = [found[k] for k in order] if order else found
    xy = np.array([BODY + np.array([x, 50]) for _, x in found]).reshape(-1, 17, 2)
    names = SETS["coco17"] if joints else ()
    return in_memory(
        "detections",
        frames={
            "name": [f"{k}.png" for k in range(len(places))],
            "size": np.full((len(places), 2), 2000),
            "K": np.tile(np.eye(3), (len(places), 1, 1)),
            **frames,
        },
        rows={"frame": [f for f, _ in found], "box": np.concatenate([xy.min(1), xy.max(1)], 1)},
        columns={"keypoints/xy": xy[:, : len(names)], "keypoints/score": np.ones((len(xy), len(names)))},
        group_attrs={"keypoints": {"joints": list(names), "joint_set": "coco17" if joints else "none"}},
    )


def frames(time: list[float], source: list[int] | None = None, view: list[int] | None = None) -> dict[str, np.ndarray]:
    n = len(time)
    return {"time": np.array(time), "source": np.array(source or [-1] * n), "view": np.array(view or [0] * n)}


def test_takes_are_videos_and_images_whose_times_rise() -> None:
    nan = float("nan")
    assert tracks.takes(frames([0, 1, 0, 1], source=[0, 0, 1, 1])).tolist() == [0, 0, 1, 1]
    assert tracks.takes(frames([0, 1, 0, 1], source=[0, 0, 0, 0], view=[0, 0, 1, 1])).tolist() == [0, 0, 1, 1]
    assert tracks.takes(frames([0, 0, 1, 1], source=[0] * 4, view=[0, 1, 0, 1])).tolist() == [0, 1, 0, 1]
    assert tracks.takes(frames([0, 1, 0, 1, 2])).tolist() == [0, 0, 1, 1, 1]
    assert tracks.takes(frames([nan, nan])).tolist() == [-1, -1]
    assert tracks.takes(frames([nan, nan]), untimed=True).tolist() == [0, 0]
    assert tracks.takes(frames([])).tolist() == []


def test_every_take_has_numbers_of_its_own() -> None:
    film = table([[100.0, 500.0]] * 4, time=[0, 0.1, 0, 0.1])
    assert tracks.link(film).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_views_in_turn_are_takes_of_their_own() -> None:
    film = table([[100.0]] * 6, source=[0] * 6, view=[0, 1] * 3, time=[0, 0, 0.1, 0.1, 0.2, 0.2])
    assert tracks.link(film).tolist() == [0, 1, 0, 1, 0, 1]


def test_rows_in_any_order_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [[100.0 + 5 * k, 900.0 - 5 * k] for k in range(40)]
    order = np.random.default_rng(0).permutation(80).tolist()
    film = table(places, order=order, time=np.arange(40) / 25, source=[0] * 40)
    monkeypatch.setattr(tracks, "BLOCK", 3)
    person = np.array([k % 2 for k in order])
    found = tracks.link(film)
    assert {len(set(found[person == p])) for p in (0, 1)} == {1} and len(set(found)) == 2


def test_time_is_what_counts_not_the_number_of_frames() -> None:
    """The same positions a second apart are somebody who stands, ten seconds apart they are two people."""
    for gap, people in ((1.0, 1), (10.0, 2)):
        film = table([[100.0], [100.0], [100.0], [100.0]], time=[0, 0.1, 0.2, 0.2 + gap], source=[0] * 4)
        assert len(set(tracks.link(film))) == people


def test_of_a_slow_film_three_frames_may_be_missed() -> None:
    film = table([[100.0]] * 3 + [[]] * 2 + [[100.0]] * 2, time=np.arange(7) * 4.0, source=[0] * 7)
    assert len(set(tracks.link(film))) == 1


def test_boxes_failed_rows_and_single_images() -> None:
    boxes = table([[100.0]] * 3, joints=False, time=[0, 0.1, 0.2])
    assert tracks.link(boxes).tolist() == [0, 0, 0]
    boxes.rows["status"][1] = 1
    assert tracks.link(boxes).tolist() == [0, -1, 0]
    assert tracks.link(table([[100.0]] * 3)).tolist() == [-1, -1, -1]
    assert tracks.link(table([[100.0]] * 3), untimed=True).tolist() == [0, 0, 0]


def test_joints_without_names_are_refused() -> None:
    film = table([[100.0]], time=[0.0])
    film._group_attrs["keypoints"].pop("joints")
    with pytest.raises(ArtefactError, match="without joint names"):
        tracks.link(film)


def test_what_is_said() -> None:
    film = table([[100.0, 500.0]] * 3 + [[1500.0]], time=np.arange(4) / 10)
    film.rows["track"][:] = tracks.link(film)
    assert tracks.counted(film) == tracks.TrackCount(7, 6, 2)
    assert tracks.counted(film).text() == "6 of 7 rows joined into 2 tracks, 1 row alone"

    class Report:
        said: list[tuple[str, str]]

        def note(self, text: str) -> None:
            self.said.append(("note", text))

        def warn(self, text: str) -> None:
            self.said.append(("warn", text))

    report = Report()
    for rows, kind in (([], None), ([[100.0]], "note"), ([[100.0], [1500.0]], "warn")):
        report.said = []
        one = table(rows, time=np.arange(len(rows)) * 1.0)
        one.rows["track"][:] = tracks.link(one)
        tracks.tell(one, report)
        assert [k for k, _ in report.said] == ([kind] if kind else [])
    report.said = []
    tracks.tell(table([[100.0], [100.0]]), report)
    assert not report.said  # single images
