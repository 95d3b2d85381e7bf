"""Synthetic scenes: the labels are exact, the bytes the same again, the hidden is marked hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import synth
from stages.artefacts.hdf5 import open_artefact
from stages.engine.job import RunOptions
from stages.errors import UsageError
from stages.geometry.cameras import project
from stages.loaders.tracks import takes
from stages.params import SynthParams
from stages.smpl.body import load_body
from stages.synthetic import examples
from stages.synthetic.renderer import render
from stages.synthetic.scenes import SyntheticScene, make_scene
from stages.synthetic.sets import SETS, SIZE, VERSION
from tests.helpers.motion_files import motion_file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "pc.detections.h5"
    return synth.run("synth-pc", out, SynthParams(pictures=4), RunOptions())


def test_truth_reprojects_onto_its_keypoints(built: Path) -> None:
    body = load_body("embedded")
    with open_artefact(built, "detections") as table:
        smpl = [torch.from_numpy(table.read(f"extra/{n}")) for n in ("global_orient", "body_pose", "betas", "transl")]
        K = torch.from_numpy(table.frames["K"][table.rows["frame"]])
        found = project(body.regress(body(*smpl).vertices, "coco17"), K).numpy()
        np.testing.assert_allclose(found, table.read("extra/keypoints"), atol=0.01)
        seen, truth = table.read("extra/seen").astype(bool), table.read("extra/keypoints")
        assert table.n_rows >= 8
        assert (truth[seen] >= -0.5).all() and (truth[seen] <= np.array(SIZE)).all()
        assert 0.2 < seen.mean() < 1.0
        score = table.read("keypoints/score")
        assert (score[seen] >= 0.6).all() and score[~seen].max() < 0.6


def test_same_bytes_again_in_shards_and_batches(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "pc.detections.h5"
    synth.run("synth-pc", out, SynthParams(pictures=4), RunOptions(batch_size=1))
    for picture in sorted((built.parent / "synth-pc").iterdir()):
        assert picture.read_bytes() == (tmp_path / "synth-pc" / picture.name).read_bytes()
    with open_artefact(built) as a, open_artefact(out) as b:
        assert a.rows_fingerprint == b.rows_fingerprint
        for name in a.columns():
            np.testing.assert_array_equal(a.read(name), b.read(name))


def test_people_behind_occluders_are_marked_hidden() -> None:
    """The visibility of a joint follows the depth buffer: take the occluders away and no joint becomes hidden."""
    body, changed = load_body("embedded"), 0
    for number in range(4):
        scene = make_scene(SETS["synth-oc"], number, body)
        smpl = [torch.from_numpy(x) for x in (scene.global_orient, scene.body_pose, scene.betas, scene.transl)]
        vertices = body(*smpl).vertices
        points = body.regress(vertices, "coco17")
        behind = render(scene, body, vertices, points)
        scene.occluders = []
        free = render(scene, body, vertices, points)
        assert (free.visible | ~behind.visible).all()
        changed += int((free.visible & ~behind.visible).sum())
    assert changed > 5


@pytest.mark.parametrize("name", SETS)
def test_every_set_draws_people_in_the_picture(name: str) -> None:
    body, spec = load_body("embedded"), SETS[name]
    numbers = np.linspace(0, spec.images - 1, 3).astype(int)
    people = [examples.make_example(spec, int(number), body, SynthParams())[1]["frame"] for number in numbers]
    # In a film, people come and go: somebody is in each of its images.
    assert min(map(len, people)) >= 1 and (spec.frames > 1 or sum(map(len, people)) >= spec.people[0])


def test_a_video_moves_smoothly_and_views_see_the_same_person() -> None:
    body = load_body("embedded")
    first, second = (make_scene(SETS["synth-video"], number, body) for number in (10, 11))
    assert 0 < np.abs(first.transl - second.transl).max() < 0.2
    a, b = (make_scene(SETS["synth-views"], number, body) for number in (4, 5))
    np.testing.assert_array_equal(a.body_pose, b.body_pose)

    def world(scene: object) -> np.ndarray:
        smpl = [torch.from_numpy(getattr(scene, n)) for n in ("global_orient", "body_pose", "betas", "transl")]
        camera = scene.world_to_camera
        return (body(*smpl).joints[0].numpy() - camera[:3, 3]) @ camera[:3, :3]

    np.testing.assert_allclose(world(a), world(b), atol=1e-4)


FIRST = {
    "synth": [0.118, 0.18, 2.672],
    "synth-oc": [-0.158, 0.008, 3.433],
    "synth-pc": [-0.088, -0.046, 3.188],
    "synth-crowd": [0.41, -0.229, 5.895],
    "synth-video": [0.377, -0.004, 4.714],
    "synth-views": [0.142, 0.583, 4.049],
    "synth-crowd-video": [-5.305, 0.105, 4.711],
}


def test_the_sets_of_version_1_are_what_they_were() -> None:
    """Where the first person of each set stands, m: a new set must not move the others."""
    assert VERSION == 1
    body = load_body("embedded")
    for name, place in FIRST.items():
        np.testing.assert_allclose(make_scene(SETS[name], 0, body).transl[0], place, atol=2e-3, err_msg=name)


def walked(frames: range) -> tuple[np.ndarray, list[SyntheticScene]]:
    """Where people stand on the ground (T, n, 2) m, world, in frames of the first crowded scene; the scenes."""
    body, spec = load_body("embedded"), SETS["synth-crowd-video"]
    scenes = [make_scene(spec, number, body) for number in frames]
    places = []
    for scene in scenes:
        smpl = [torch.from_numpy(getattr(scene, n)) for n in ("global_orient", "body_pose", "betas", "transl")]
        pelvis = body(*smpl).joints[:, 0].numpy()
        camera = scene.world_to_camera
        places.append(((pelvis - camera[:3, 3]) @ camera[:3, :3])[:, [0, 2]])
    return np.stack(places), scenes


def test_people_of_the_crowded_video_walk_smoothly_past_each_other() -> None:
    spec = SETS["synth-crowd-video"]
    place, scenes = walked(range(0, spec.frames, 3))
    step = np.linalg.norm(np.diff(place, axis=0), axis=-1) * spec.fps / 3  # m/s
    assert step.max() < 4 and (step.mean(0) > 0.7).sum() >= 3  # most walk, nobody jumps
    apart = np.linalg.norm(place[:, :, None] - place[:, None], axis=-1) + 9 * np.eye(place.shape[1])
    assert apart.min() > 0.4  # nobody walks through anybody
    x = np.stack([(s.K @ s.transl.T)[0] / s.transl[:, 2] for s in scenes])  # px, about
    order = x.argsort(1)
    assert (order[0] != order[-1]).sum() >= 4  # they change places as seen by the camera
    assert [s.time for s in scenes] == pytest.approx(np.arange(0, spec.frames, 3) / spec.fps)
    for one in scenes[1:]:  # camera, obstacles, clothes and background stand still
        np.testing.assert_array_equal(one.world_to_camera, scenes[0].world_to_camera)
        np.testing.assert_array_equal(one.look, scenes[0].look)
        assert one.background == scenes[0].background and len(one.occluders) == len(scenes[0].occluders) >= 1
        np.testing.assert_array_equal(one.occluders[0][2], scenes[0].occluders[0][2])


def test_feet_of_walkers_stay_on_the_ground_and_do_not_slide() -> None:
    """The lowest point of everybody is the ground; of two frames in a row, a foot of each walker hardly moves."""
    body, spec = load_body("embedded"), SETS["synth-crowd-video"]
    before: np.ndarray | None = None
    slide = []
    for number in range(30, 50):
        scene = make_scene(spec, number, body)
        smpl = [torch.from_numpy(getattr(scene, n)) for n in ("global_orient", "body_pose", "betas", "transl")]
        out, camera = body(*smpl), scene.world_to_camera
        ground = ((out.vertices.numpy() - camera[:3, 3]) @ camera[:3, :3])[..., 1].min(1)
        np.testing.assert_allclose(ground, 0, atol=0.01)
        feet = ((out.joints[:, [10, 11]].numpy() - camera[:3, 3]) @ camera[:3, :3])[..., [0, 2]]
        if before is not None:
            slide.append(np.linalg.norm(feet - before, axis=-1).min(1))
        before = feet
    assert np.median(slide) < 0.05  # m in 1/15 s; a walker moves 0.06 to 0.1


def test_hidden_people_have_no_row_and_keep_their_number(tmp_path: Path) -> None:
    out = synth.run("synth-crowd-video", tmp_path / "c.detections.h5", SynthParams(pictures=60), RunOptions())
    with open_artefact(out) as table:
        track, frame = table.rows["track"], table.rows["frame"]
        gaps = [np.diff(frame[track == t]).max(initial=1) for t in np.unique(track)]
        assert max(gaps) > 3 and table.read("extra/seen").sum(1).min() >= 4
        assert takes(table.frames).max() == 0 and len(np.unique(frame * 1000 + track)) == table.n_rows


def test_training_scenes_show_other_poses_and_are_no_benchmark(tmp_path: Path) -> None:
    motion = str(motion_file(tmp_path / "motion.npz", 20))
    out = synth.run("synth-oc", tmp_path / "train.detections.h5", SynthParams(pictures=2, poses=motion), RunOptions())
    plain = make_scene(SETS["synth-oc"], 0, load_body("embedded"))
    test = synth.run("synth-oc", tmp_path / "test.detections.h5", SynthParams(pictures=2), RunOptions())
    with open_artefact(out, "detections") as table, open_artefact(test, "detections") as other:
        assert not {*table.frames["name"]} & {*other.frames["name"]}  # or one would overwrite the other's pictures
        assert not table.attrs["benchmark"]["whole"]
        assert np.abs(table.read("extra/body_pose")[0] - plain.body_pose[0]).max() > 0.1
    with pytest.raises(UsageError, match="shows motion"):
        synth.run("synth-video", tmp_path / "x.h5", SynthParams(poses=motion), RunOptions())


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_set_has_five_hundred_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted without paint: who is seen does not depend on colours."""
    from stages.synthetic import renderer as drawing

    monkeypatch.setattr(drawing, "_background", lambda rng: np.zeros((SIZE[1], SIZE[0], 3)))
    monkeypatch.setattr(drawing, "_clothes", lambda at, top, look: np.zeros((len(at), 3)))
    monkeypatch.setattr(drawing, "_film", lambda image, rng: image)
    body, spec = load_body("embedded"), SETS[name]
    with torch.no_grad():
        people = [examples.make_example(spec, i, body, SynthParams())[1]["frame"] for i in range(spec.images)]
    assert sum(map(len, people)) >= 500
