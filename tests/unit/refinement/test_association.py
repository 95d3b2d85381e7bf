"""Who is who: lines of sight, the partition of tracks, numbers. Answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stages.geometry.rays import nearest_points, rays
from stages.refinement.association import associate
from stages.refinement.likeness import Sightings, independent_share, pose_margin, pose_weights, ray_weights
from stages.refinement.partition import Links, doubtful, improve, merge
from tests.helpers.rig_world import STEP, K, RigWorld, rig_world


def sightings(world: RigWorld, *, rig: bool = True) -> Sightings:
    from stages.keypoints import joint_sets

    n = len(world.person)
    return Sightings(
        track=world.track, camera=world.view, moment=world.moment, ok=np.ones(n, bool), keypoints=world.keypoints,
        names=joint_sets.SETS["coco17"], K=np.tile(K, (n, 1, 1)), time=world.moment * STEP,
        R=world.R[world.view] if rig else None, t=world.t[world.view] if rig else None,
        joints=lambda rows: world.joints[rows] - world.joints[rows, :1],
    )  # fmt: skip


def test_rays_meet_where_the_point_is() -> None:
    world = rig_world(people=1, moments=1, noise=0.0)
    point = np.array([0.3, 1.2, -0.4])
    camera = world.R @ point + world.t
    xy = (camera / camera[:, 2:]) @ K.T
    center, along = rays(xy[:, None, :2], np.tile(K, (4, 1, 1)), world.R, world.t)
    far, _ = nearest_points(center[:1], along[:1], center[1:2], along[1:2])
    np.testing.assert_allclose(center[0] + far[0, 0] * along[0, 0], point, atol=1e-9)
    np.testing.assert_allclose(-world.R[0].T @ world.t[0], center[0], atol=1e-12)


def test_rays_that_would_meet_behind_a_camera_do_not() -> None:
    a, b = np.zeros((1, 3)), np.array([[1.0, 0, 0]])
    left, right = np.array([[[-0.6, 0, 0.8]]]), np.array([[[0.6, 0, 0.8]]])
    far_a, far_b = nearest_points(a, left, b, right)
    assert far_a.min() >= 0.3 and far_b.min() >= 0.3
    same = nearest_points(a, np.array([[[0, 0, 1.0]]]), b, np.array([[[0, 0, 1.0]]]))
    assert np.isfinite(same).all()


def test_the_same_person_weighs_one_and_another_less() -> None:
    world = rig_world(noise=1.0)
    rows = sightings(world)
    pairs = np.array([(i, j) for i in range(16) for j in range(16, 32) if world.moment[i] == world.moment[j]])
    weight, distance = ray_weights(rows, pairs)
    same = world.person[pairs[:, 0]] == world.person[pairs[:, 1]]
    assert weight[same].min() > 0.9 and weight[~same].mean() < 0.6 and weight[~same].max() < weight[same].min()
    assert distance[same].max() < 0.02
    few = world.keypoints.copy()
    few[:, 3:, 2] = 0
    world.keypoints = few
    assert np.isnan(ray_weights(sightings(world), pairs)[0]).all()  # three joints do not tell


def test_poses_are_compared_joint_by_joint() -> None:
    world = rig_world()
    rows = sightings(world)
    weight, away = pose_weights(rows, np.array([[0, 0], [0, 1]]))
    assert weight[0] == 1 and away[0] == 0
    joints = world.joints - world.joints[:, :1]
    np.testing.assert_allclose(away[1], np.linalg.norm(joints[0] - joints[1], axis=-1).mean())


def test_poses_of_many_frames_a_second_are_not_independent() -> None:
    world = rig_world(people=1, moments=9)
    assert independent_share(sightings(world)) == pytest.approx(3 / 9)  # 0.8 s
    assert pose_margin(100) < pose_margin(4) < pose_margin(0.1) == pose_margin(1)


def links(*pairs: tuple[int, int, float]) -> Links:
    result = Links()
    for a, b, weight in pairs:
        result.add(a, b, weight * 10, 0.1, 10)
    return result


def test_merging_agrees_round_cycles_and_keeps_rivals_apart() -> None:
    # Cameras of tracks 0 1 | 2 3 | 4 5; 0-3 and 3-4 would fit for themselves, but not together with the others.
    result = links(
        (0, 2, 0.9), (2, 4, 0.9), (0, 4, 0.9), (1, 3, 0.8), (3, 5, 0.8), (1, 5, 0.8), (0, 3, 0.85), (3, 4, -0.5)
    )
    rivals = {0: {1}, 1: {0}, 2: {3}, 3: {2}, 4: {5}, 5: {4}}
    groups = merge([{t} for t in range(6)], result, rivals)
    assert sorted(map(sorted, groups)) == [[0, 2, 4], [1, 3, 5]]
    assert not doubtful(groups, result, rivals, [0, 0, 1, 1, 2, 2], lambda moments: 0.1, set())


def test_exchanges_correct_a_greedy_merge() -> None:
    result = links((0, 2, 0.9), (0, 3, 0.8), (1, 2, 0.8), (1, 3, -0.4))  # the best pair 0-2 costs 1-2 and 0-3
    rivals = {0: {1}, 1: {0}, 2: {3}, 3: {2}}
    groups = merge([{t} for t in range(4)], result, rivals)
    assert {0, 2} in groups
    better = improve(groups, result, rivals, set())
    assert sorted(map(sorted, better)) == [[0, 3], [1, 2]]


def test_equal_weights_are_in_doubt_and_numbered_tracks_are_not() -> None:
    result = links((0, 2, 0.9), (1, 3, 0.9), (0, 3, 0.88), (1, 2, 0.88))
    rivals = {0: {1}, 1: {0}, 2: {3}, 3: {2}}
    groups = [{0, 2}, {1, 3}]
    assert doubtful(groups, result, rivals, [0, 0, 1, 1], lambda moments: 0.1, set()) == {0: {0, 1}, 1: {2, 3}}
    assert not doubtful(groups, result, rivals, [0, 0, 1, 1], lambda moments: 0.01, set())
    assert not doubtful(groups, result, rivals, [0, 0, 1, 1], lambda moments: 0.1, {0, 1, 2, 3})


def test_numbers_are_those_of_the_first_track() -> None:
    people = associate(sightings(rig_world()))
    assert set(people.person.tolist()) == {0, 1} and people.how == "the rig"
    world = rig_world()
    assert (people.person == world.person).all()


def test_cameras_that_share_no_moment_are_told_so() -> None:
    world = rig_world(people=1, cameras=2)
    world.moment = world.moment + 100 * world.view
    people = associate(sightings(world))
    assert "same moment" in people.reason and len(set(people.person.tolist())) == 2
    assert "same moment" in associate(sightings(world, rig=False)).reason
    one = world.keep(world.view == 0)
    assert "one view only" in associate(sightings(one)).reason


def test_one_after_the_other_before_one_camera_are_two_people_only_if_all_cameras_say_so() -> None:
    world = rig_world(people=1, cameras=2)
    late = world.moment >= 4
    world.track = world.view * 10 + late * ((world.view == 0) * 1)
    assert len(set(associate(sightings(world, rig=False)).person.tolist())) == 1  # view 1 saw one person
    world.track = world.view * 10 + late * 1
    assert len(set(associate(sightings(world, rig=False)).person.tolist())) == 2
