"""Training people: where poses come from, how they are changed, exact labels under imperfect keypoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.errors import AssetError
from stages.geometry.rotations import axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.models.embedded.kinematics import Skeleton
from stages.smpl.body import load_body
from stages.synthetic import mocap
from stages.synthetic.mocap import NOTHING, Augment, PoseBank, load_poses
from stages.training import synthetic_keypoints
from stages.training.synthetic_keypoints import EXACT, Camera, draw_batch, noise_only
from tests.helpers.motion_files import motion_file


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return Skeleton.from_body(load_body("embedded"))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> PoseBank:
    return load_poses(motion_file(tmp_path_factory.mktemp("poses") / "m.npz"))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(pose: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """To the nearest of others; exact, unlike torch.cdist's default way."""
    how = "donot_use_mm_for_euclid_dist"
    return torch.cdist(pose.flatten(1), others.flatten(1), compute_mode=how).amin(1)


def test_only_free_subjects_that_are_not_held_out(tmp_path: Path, bank: PoseBank) -> None:
    path = motion_file(tmp_path / "m.npz")
    clips = set(bank.poses[:, 23, 2].round().int().tolist())
    assert clips == {0, 1, 3} and len(bank.sha256) == 64
    assert set(load_poses(path, subjects=mocap.VALIDATION).poses[:, 23, 2].round().int().tolist()) == {1}
    with pytest.raises(AssetError, match="no motion file"):
        load_poses(tmp_path / "absent.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(AssetError, match="not a motion file"):
        load_poses(tmp_path / "junk.npz")
    with pytest.raises(AssetError, match="holds no poses"):
        load_poses(path, subjects=("cmu99",))


def test_a_mirrored_pose_is_the_mirrored_body() -> None:
    body, pose = load_body("embedded"), 0.5 * torch.randn(6, 24, 3, generator=draw())
    assert torch.equal(mocap.mirror(mocap.mirror(pose)), pose)
    betas = torch.zeros(6, 10)
    names = joint_sets.get("smpl24")
    plain, flipped = (
        body.joints(axis_angle_to_matrix(p), betas, torch.zeros(6, 3), "smpl24") for p in (pose, mocap.mirror(pose))
    )
    expected = plain[:, joint_sets.flip(names)] * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(flipped, expected, atol=1e-4, rtol=0)


def test_draws_are_fixed_by_the_seed_and_leave_the_bank_alone(bank: PoseBank) -> None:
    before = bank.poses.clone()
    a, b, c = (bank.draw(50, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(bank.poses, before)
    plain = bank.draw(50, draw(3), NOTHING)
    assert (distance(plain, bank.poses) < 1e-5).all()


def test_limbs_come_from_other_frames_and_the_rest_does_not(bank: PoseBank) -> None:
    pose = bank.draw(200, draw(), dataclasses.replace(NOTHING, legs=1.0))
    kept = [i for i in range(24) if i not in mocap.LEGS]
    near, whole = distance(pose[:, kept], bank.poses[:, kept]), distance(pose, bank.poses)
    assert (near < 1e-5).all() and (whole > 1e-3).float().mean() > 0.9


def test_the_bend_of_the_spine_is_shared_out_not_changed(bank: PoseBank) -> None:
    plain, bent = (bank.draw(60, draw(5), a) for a in (NOTHING, dataclasses.replace(NOTHING, spine=1.0)))
    torch.testing.assert_close(bent[:, mocap.SPINE].sum(1), _near(bank, bent)[:, mocap.SPINE].sum(1), atol=1e-5, rtol=0)
    assert not torch.allclose(plain, bent)


def _near(bank: PoseBank, pose: torch.Tensor) -> torch.Tensor:
    rest = [i for i in range(24) if i not in mocap.SPINE]
    return bank.poses[torch.cdist(pose[:, rest].flatten(1), bank.poses[:, rest].flatten(1)).argmin(1)]


def test_labels_are_exact(bank: PoseBank, skeleton: Skeleton) -> None:
    batch = draw_batch(64, bank, skeleton, draw(), camera=Camera(broad=0.3), corruption=EXACT)
    assert batch.visible.all() and batch.inputs.shape == (64, 52)
    joint, point = skeleton(batch.rotation, batch.betas)
    torch.testing.assert_close(joint, batch.joints, atol=2e-6, rtol=0)
    drawn = synthetic_keypoints.project_tangents(point, batch.pelvis) / batch.half
    torch.testing.assert_close(drawn, batch.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.observed, batch.image, atol=1e-4, rtol=0)
    assert float(batch.observed.abs().max()) <= 1 + 1e-6 and (batch.points[2] + batch.pelvis[2]).min() > 0.1


def test_imperfect_keypoints(bank: PoseBank, skeleton: Skeleton) -> None:
    batch = draw_batch(4000, bank, skeleton, draw())
    count = batch.visible.sum(0)
    assert count.min() >= synthetic_keypoints.MIN_KEYPOINTS and (count == 17).float().mean() > 0.1
    assert 0.1 < 1 - batch.visible.float().mean() < 0.45
    confidence = batch.inputs[:, 34:51].T
    assert (
        (confidence[~batch.visible] == 0).all() and (confidence[batch.visible] > 0.03).all() and confidence.max() <= 1
    )
    assert (batch.inputs[:, :34].T.unflatten(0, (2, 17))[:, ~batch.visible] == 0).all()
    assert torch.isfinite(batch.inputs).all()


def test_the_stated_noise_is_the_noise(bank: PoseBank, skeleton: Skeleton) -> None:
    """5 px at most, even: a mean square of 25 / 3 per axis on a crop of 256 px with a margin of 1.2."""
    joint, point = skeleton(torch.eye(3)[:, :, None, None].expand(3, 3, 24, 3000).contiguous(), torch.zeros(10, 3000))
    image = synthetic_keypoints.project_tangents(point, torch.tensor([[0.0], [0], [5]]).expand(3, 3000))
    found, confidence = synthetic_keypoints.corrupt(
        image, torch.eye(3)[:, :, None, None].expand(3, 3, 24, 3000), draw(), noise_only(5)
    )
    pixel = (image.amax(1) - image.amin(1)).amax(0) / synthetic_keypoints.CROP
    assert float(((found - image) / pixel).square().mean()) == pytest.approx(25 / 3, rel=0.05)
    assert joint.shape == (3, 24, 3000) and (confidence > 0).all()


def test_cameras_look_as_stated() -> None:
    turn = synthetic_keypoints.draw_rotation(2000, Camera(pitch=(20.0, 0.0), roll=0.0), draw())
    up = turn[:, 1]  # the world's up in the camera: y is down, and seen from above the head comes nearer
    assert (up[1] < 0).all()
    torch.testing.assert_close(up[2], torch.full((2000,), -float(np.sin(np.radians(20)))), atol=1e-5, rtol=0)
    front = turn[:, 2]
    assert 0.45 < float((front[2] < 0).float().mean()) < 0.55  # as often from the front as from behind


def test_default_augmentation_is_within_reason(bank: PoseBank) -> None:
    pose = bank.draw(500, draw(), Augment())
    assert torch.isfinite(pose).all() and float(pose[:, :20].norm(dim=-1).max()) < 3.2
