"""Several cameras: who is who, one body for all views, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import recover
from stages import refine as refine_stage
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.engine.job import ProgressReport, RunOptions
from stages.models.scorehmr.weights import EMBEDDED
from stages.params import RecoverParams, RefineParams
from stages.refinement.counts import counts
from tests.helpers.cli import hmr
from tests.helpers.fixtures import find
from tests.helpers.people_world import save
from tests.helpers.rig_world import RigWorld, rig_world

pytestmark = pytest.mark.skipif(not EMBEDDED.exists(), reason="stages/data/prior.safetensors is not there yet")


@dataclass
class Refined:
    """What `hmr recover` and `hmr refine --mode views --json` gave."""

    table: Artefact
    json: dict[str, Any]
    said: str

    def who(self, name: str = "extra/person") -> np.ndarray:
        return self.table.read(name)


def refine(detections: Path, folder: Path, *flags: Any) -> Refined:
    meshes, out = folder / "a.meshes.h5", folder / "b.meshes.h5"
    done = hmr("recover", detections, "-o", meshes, "--quiet")
    assert done.returncode == 0, done.stderr
    done = hmr("refine", meshes, "--detections", detections, "--mode", "views", "-o", out, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return Refined(open_artefact(out, "meshes"), json.loads(done.stdout), done.stderr)


class Said(ProgressReport):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


def refined(world: RigWorld, folder: Path, *, rig: bool = True, **params: Any) -> Refined:
    """The same without starting two processes."""
    detections, said = world.detections(), Said()
    meshes = recover.run(detections, None, RecoverParams())
    cameras = str(world.rig(folder / "rig.json")) if rig else ""
    settings = RefineParams(mode="views", cameras=cameras, **params)
    table = recast(refine_stage.run(meshes, detections, None, settings, RunOptions(report=said)))
    return Refined(table, counts(table), "\n".join(said.lines))


def recast(made: Path | Artefact) -> Artefact:
    assert isinstance(made, Artefact)
    return made


def same_people(found: np.ndarray, truth: np.ndarray) -> bool:
    """Is there one number for each person?"""
    pairs = set(zip(found.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(found.tolist())) == len(set(truth.tolist()))


def in_world(table: Artefact, rig: Path) -> np.ndarray:
    """Joints (n, 24, 3) m in the world."""
    poses, view = json.loads(rig.read_text()), table.frames["view"][table.rows["frame"]]
    R, t = (np.array([poses[str(v)][name] for v in view]) for name in ("R", "t"))
    return (table.read("joints/xyz") - t[:, None]) @ R


def about_pelvis(joints: np.ndarray) -> np.ndarray:
    return joints - joints[:, :1]


# ---- the cases that failed, as their READMEs say


@pytest.mark.parametrize("case", ["views-calibrated", "views-own-tracks"])
def test_a_calibrated_rig_knows_where_people_stand(case: str, tmp_path: Path) -> None:
    folder = find(f"cases/{case}")
    name = "rig" if case == "views-calibrated" else "two-people"
    out = refine(folder / f"{name}.detections.h5", tmp_path, "--cameras", folder / "rig.json")
    with np.load(folder / "truth.npz") as truth:
        joints, ident = truth["joints"], truth["ident"]
    found = in_world(out.table, folder / "rig.json")
    error = 1000 * np.linalg.norm(found - joints, axis=-1)
    assert error.mean() < 21  # of 24 joints; 79 when t was not used
    seen = [1, 2, 4, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21]  # what keypoints show: no feet, hands, spine
    assert error[:, seen].mean() < 9.5
    moment = out.table.frames["time"][out.table.rows["frame"]]
    for who in (0, 1):
        for when in np.unique(moment):
            bodies = found[(ident == who) & (moment == when)]
            assert len(bodies) == 4 and np.ptp(bodies, axis=0).max() < 0.001
    assert same_people(out.who(), ident)
    assert out.json["joined"] == 96 and out.json["refined"]["refined"] == 96 and (out.who("extra/views") == 4).all()
    assert [sorted(p["tracks"]) for p in out.json["people"]] == [["0", "1", "2", "3"]] * 2
    assert "96 of 96 rows joined" in out.said and "warning" not in out.said
    if case == "views-calibrated":
        assert "2 track numbers stand in several views" in out.said


def test_people_with_tracks_per_camera_are_told_apart_by_their_poses(tmp_path: Path) -> None:
    folder = find("cases/views-own-tracks")
    out = refine(folder / "two-people.detections.h5", tmp_path)
    with np.load(folder / "truth.npz") as truth:
        joints, ident = truth["joints"], truth["ident"]
    assert same_people(out.who(), ident) and out.json["joined"] == 96 and "by body poses" in out.said
    found = in_world(out.table, folder / "rig.json")
    assert 1000 * np.linalg.norm(about_pelvis(found) - about_pelvis(joints), axis=-1).mean() < 46  # 61 alone


def test_one_person_in_each_camera_needs_nothing(tmp_path: Path) -> None:
    folder = find("cases/views-own-tracks")
    out = refine(folder / "one-person.detections.h5", tmp_path)
    assert out.json["joined"] == 48 and set(out.who().tolist()) == {0} and (out.who("extra/refined") == 1).all()
    assert out.json["people"] == [
        {"person": 0, "rows": 48, "joined": 48, "tracks": {"0": [0], "1": [1], "2": [2], "3": [3]}}
    ]


# ---- cases of the same kind


def hidden(world: RigWorld) -> RigWorld:
    """In view 1 person 0 has the keypoints of person 1 at every second moment."""
    for m in np.unique(world.moment)[::2]:
        now = (world.view == 1) & (world.moment == m)
        world.keypoints[now & (world.person == 0)] = world.keypoints[now & (world.person == 1)]
    return world


def half_seen(world: RigWorld) -> RigWorld:
    """View 1 shows nobody below the shoulders."""
    below = np.flatnonzero(np.arange(17) >= 7)
    world.keypoints[np.ix_(np.flatnonzero(world.view == 1), below, [2])] = 0
    return world


def wild(world: RigWorld) -> RigWorld:
    """40 % of the keypoints of view 2 are anywhere."""
    rng, rows = np.random.default_rng(5), np.flatnonzero(world.view == 2)
    lost = rng.random((len(rows), 17)) < 0.4
    world.keypoints[rows, :, :2] += 80 * lost[..., None] * rng.normal(size=(len(rows), 17, 2))
    return world


def broken(world: RigWorld) -> RigWorld:
    """Tracks of view 1 break off and begin again with another number."""
    world.track = np.where((world.view == 1) & (world.moment >= 4), world.track + 20, world.track)
    return world


def changing(world: RigWorld) -> RigWorld:
    """The two tracks of view 1 change people half way."""
    late = (world.view == 1) & (world.moment >= 4)
    world.track = np.where(late, 5 - world.track, world.track)
    return world


KINDS: dict[str, tuple[Any, float, str]] = {  # the world, mm of 24 joints at most, what must be said
    "two people": (rig_world, 16, ""),
    "two cameras": (lambda: rig_world(cameras=2), 20, ""),
    "five people near each other": (lambda: rig_world(people=5, cameras=5, apart=0.5), 16, ""),
    "the same pose": (lambda: rig_world(same_pose=True), 16, ""),
    "other shapes": (lambda: rig_world(shape=1.5), 19, ""),
    "one moment": (lambda: rig_world(moments=1), 16, ""),
    "a camera sees half of everybody": (lambda: half_seen(rig_world()), 17, ""),
    "hidden in one view": (lambda: hidden(rig_world()), 16, ""),
    "wild keypoints in one view": (lambda: wild(rig_world()), 16, "view 2: the joined bodies miss"),
    "broken tracks": (lambda: broken(rig_world()), 16, ""),
    "tracks that change people": (lambda: changing(rig_world()), 16, "view 1: 8 rows fit another person"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rigs(kind: str, tmp_path: Path) -> None:
    make, most, said = KINDS[kind]
    world = make()
    out = refined(world, tmp_path)
    assert same_people(out.who(), world.person)
    assert world.error(out.table).mean() < most and world.apart(out.table) < 0.001
    assert out.json["joined"] == len(world.person) and said in out.said
    for who in np.unique(world.person):
        assert np.ptp(out.who("smpl/betas")[world.person == who], axis=0).max() < 1e-6  # one shape for all moments
    assert said or "warning" not in out.said


def test_who_is_not_everywhere(tmp_path: Path) -> None:
    """One view never shows person 0, person 1 comes late, a view is blind for a while."""
    world = rig_world()
    missing = (world.view == 2) & (world.person == 0)
    late = (world.person == 1) & (world.moment < 3)
    blind = (world.view == 0) & (world.moment > 4) & (world.moment < 7)
    world = world.keep(~(missing | late | blind))
    for rig in (True, False):
        out = refined(world, tmp_path, rig=rig)
        assert same_people(out.who(), world.person) and out.json["joined"] == len(world.person)
        views = {p["person"]: sorted(p["tracks"]) for p in out.json["people"]}
        assert sorted(views.values()) == [["0", "1", "2", "3"], ["0", "1", "3"]]
        if rig:
            assert world.error(out.table).mean() < 18


def test_a_person_of_one_view_is_refined_alone_and_said(tmp_path: Path) -> None:
    world = rig_world()
    world = world.keep(~((world.person == 1) & (world.view != 3)))
    out = refined(world, tmp_path)
    only = world.person == 1
    assert (out.who("extra/refined")[only] == 3).all() and (out.who("extra/refined")[~only] == 1).all()
    assert (out.who("extra/views")[only] == 1).all() and out.json["refined"]["alone"] == only.sum() == 8
    assert "8 rows are joined with no other view: view 3 track 6" in out.said


def test_people_in_the_same_pose_are_not_joined_without_a_rig(tmp_path: Path) -> None:
    world = rig_world(same_pose=True)
    out = refined(world, tmp_path, rig=False)
    assert out.json["joined"] == 0 and (out.who("extra/refined") == 3).all() and (out.who("extra/views") == 1).all()
    assert "cannot tell who is who" in out.said and "--cameras" in out.said
    assert f"0 of {len(world.person)} rows are joined" in out.said
    assert "view 0 tracks 0 and 1; view 1 tracks 2 and 3" in out.said


def test_rows_that_stay_untouched_are_not_counted_as_joined(tmp_path: Path) -> None:
    out = refined(rig_world(moments=2), tmp_path, min_joints=30)
    assert out.json["joined"] == 0 and out.json["refined"]["untouched"] == 16 and (out.who("extra/views") == 0).all()


def test_numbers_given_by_hand_are_kept_and_said(tmp_path: Path) -> None:
    world = rig_world(same_pose=True)
    world.track = world.person + 7
    for rig in (False, True):
        out = refined(world, tmp_path, rig=rig)
        np.testing.assert_array_equal(out.who(), world.track)
        assert "2 track numbers stand in several views" in out.said and out.json["joined"] == len(world.person)


def test_numbers_that_the_rig_contradicts_are_not_used(tmp_path: Path) -> None:
    world = rig_world()
    world.track = np.where(world.view % 2, 1 - world.person, world.person)  # every camera numbered from 0
    out = refined(world, tmp_path)
    assert same_people(out.who(), world.person) and "these numbers are not used" in out.said
    assert world.error(out.table).mean() < 16


def test_photos_of_cameras_have_neither_times_nor_tracks(tmp_path: Path) -> None:
    world = rig_world(moments=3)
    world.track = np.full(len(world.person), -1)
    detections = save(world.detections(times=False), tmp_path / "a.detections.h5")
    out = refine(detections, tmp_path, "--cameras", world.rig(tmp_path / "rig.json"))
    assert out.json["joined"] == len(world.person) and world.error(out.table).mean() < 17
    assert len(set(out.who().tolist())) == 6  # two people at each of three moments


def test_a_rig_without_places_turns_only(tmp_path: Path) -> None:
    world = rig_world()
    detections = save(world.detections(), tmp_path / "a.detections.h5")
    out = refine(detections, tmp_path, "--cameras", world.rig(tmp_path / "rig.json", t=False), "--loops", "2")
    assert "has no t" in out.said and out.json["joined"] == len(world.person) and world.apart(out.table) > 0.05


def test_nobody_joined_is_a_warning_with_the_reason(tmp_path: Path) -> None:
    world = rig_world(people=1)
    world.t = 1000 * world.t
    out = refined(world, tmp_path)
    assert out.json["joined"] == 0 and out.json["refined"]["alone"] == len(world.person)
    assert "warning: 0 of 32 rows are joined" in out.said and "metres" in out.said


def test_a_camera_that_stands_elsewhere_is_named(tmp_path: Path) -> None:
    world = rig_world()
    right = world.t.copy()
    world.t[1] += 0.1
    out = refined(world, tmp_path)
    world.t = right
    assert "view 1: the joined bodies miss the keypoints" in out.said
    assert world.error(out.table)[world.view != 1].mean() < 18  # the others outvote it


def test_what_a_rig_file_must_hold(tmp_path: Path) -> None:
    world = rig_world(moments=1)
    detections = save(world.detections(), tmp_path / "a.detections.h5")
    meshes = tmp_path / "a.meshes.h5"
    assert hmr("recover", detections, "-o", meshes, "--quiet").returncode == 0
    poses = json.loads(world.rig(tmp_path / "rig.json").read_text())
    mirrored = (np.diag([1.0, 1.0, -1.0]) @ world.R[0]).tolist()
    for change, word in (
        ({"3": None}, "no pose of view 3 (it has 0, 1, 2)"),
        ({"1": {"R": poses["1"]["R"]}}, "view 1 has no t"),
        ({"1": {"R": poses["1"]["R"], "t": [1, 2]}}, "t of view 1"),
        ({"0": {"R": mirrored, "t": [0, 0, 1]}}, "R of view 0"),
    ):
        rig = tmp_path / "wrong.json"
        rig.write_text(json.dumps({v: p for v, p in (poses | change).items() if p is not None}))
        done = hmr(
            "refine", meshes, "--detections", detections, "--mode", "views", "--cameras", rig, "-o", "x.meshes.h5"
        )
        assert done.returncode == 3 and word in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2


def test_another_rig_is_another_result(tmp_path: Path) -> None:
    world = rig_world(moments=2, people=1)
    detections = save(world.detections(), tmp_path / "a.detections.h5")
    refine(detections, tmp_path, "--cameras", world.rig(tmp_path / "rig.json")).table.close()
    world.t[:, 2] += 0.01
    rig = world.rig(tmp_path / "rig.json")
    done = hmr(
        "refine", tmp_path / "a.meshes.h5", "--detections", tmp_path / "a.detections.h5", "--mode", "views",
        "--cameras", rig, "-o", tmp_path / "b.meshes.h5",
    )  # fmt: skip
    assert done.returncode == 3 and "input cameras" in done.stderr


# ---- hmr track --views


def track(world: RigWorld, folder: Path, *flags: Any) -> Refined:
    detections, out = save(world.detections(), folder / "a.detections.h5"), folder / "t.detections.h5"
    done = hmr("track", detections, "--views", *flags, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    return Refined(open_artefact(out, "detections"), json.loads(done.stdout), done.stderr)


def test_tracks_get_one_number_in_all_views(tmp_path: Path) -> None:
    world = broken(rig_world())
    out = track(world, tmp_path, "--cameras", world.rig(tmp_path / "rig.json"))
    assert same_people(out.table.rows["track"], world.person)
    assert "64 of 64 rows joined with another view: 2 people, by the rig" in out.said
    assert "person 0: view 0 (track 0), view 1 (track 3, 23)" in out.said
    np.testing.assert_array_equal(out.table.read("keypoints/xy"), world.keypoints[..., :2].astype(np.float32))
    again = rig_world()
    again.track = out.table.rows["track"]
    np.testing.assert_array_equal(refined(again, tmp_path).who(), again.track)


def test_detections_without_bodies_and_rig_say_that_nobody_is_told_apart(tmp_path: Path) -> None:
    out = track(rig_world(), tmp_path)
    assert "warning: 0 of 64 rows are joined" in out.said and "--cameras" in out.said
    (tmp_path / "one").mkdir()
    world = rig_world(people=1)
    assert same_people(track(world, tmp_path / "one").table.rows["track"], world.person)


def test_what_track_over_views_refuses(tmp_path: Path) -> None:
    world = rig_world(moments=2)
    one = dataclasses.replace(world.keep(world.view == 0), R=world.R[:1], t=world.t[:1])
    detections = save(one.detections(), tmp_path / "one.detections.h5")
    rig = world.rig(tmp_path / "rig.json")
    for flags, word in ((("--views",), "several views"), (("--replace", "--cameras", rig), "--cameras is for --views")):
        done = hmr("track", detections, *flags, "-o", tmp_path / "x.detections.h5")
        assert done.returncode == 2 and word in done.stderr, done.stderr
