"""The embedded recoverer's parts: kinematics, virtual camera, network, in the layout with the batch last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.geometry.cameras import look_at
from stages.geometry.rotations import axis_angle_to_matrix as reference
from stages.models.embedded import kinematics, virtual_camera
from stages.models.embedded.kinematics import Skeleton
from stages.models.embedded.network import Network
from stages.smpl.body import load_body


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return Skeleton.from_body(load_body("embedded"))


def pose(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return 0.6 * torch.randn(n, 24, 3, generator=draw), torch.randn(n, 10, generator=draw)


def test_joints_and_keypoints_are_those_of_the_mesh(skeleton: Skeleton) -> None:
    vectors, betas = pose(9)
    mesh = load_body("embedded").forward_rotmat(reference(vectors), betas)
    joints, points = skeleton(kinematics.axis_angle_to_matrix(vectors.permute(2, 1, 0)), betas.T)
    root = mesh.joints[:, :1]
    torch.testing.assert_close(joints.permute(2, 1, 0), mesh.joints - root, atol=2e-6, rtol=0)
    keypoints = load_body("embedded").regressor("coco17") @ mesh.vertices
    torch.testing.assert_close(points.permute(2, 1, 0), keypoints - root, atol=2e-6, rtol=0)


def test_rotations_agree_with_the_shared_ones() -> None:
    vectors, _ = pose(5)
    got = kinematics.axis_angle_to_matrix(vectors.permute(2, 1, 0)).permute(3, 2, 0, 1)
    torch.testing.assert_close(got, reference(vectors), atol=1e-6, rtol=0)
    six = torch.cat([got[..., 0], got[..., 1]], -1).permute(2, 1, 0)
    torch.testing.assert_close(kinematics.rot6d_to_matrix(six).permute(3, 2, 0, 1), got, atol=1e-6, rtol=0)
    zero = kinematics.axis_angle_to_matrix(torch.zeros(3, 2))
    torch.testing.assert_close(zero, torch.eye(3).unsqueeze(-1).expand(3, 3, 2), atol=1e-6, rtol=0)


def test_the_gradient_of_the_kinematics() -> None:
    a, b = torch.randn(2, 3, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(kinematics.matmul3, (a.requires_grad_(), b.requires_grad_()))


def test_the_view_does_not_depend_on_where_the_person_stands() -> None:
    """Turning the camera changes the picture by a homography; what the network reads stays, up to the camera's roll."""
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(3, 17, 4, generator=draw) * 0.5 + torch.tensor([0.0, 0, 4])[:, None, None]
    seen = torch.ones(17, 4)
    turn, half, normal = look_at(points[:2] / points[2], seen)
    torch.testing.assert_close(_square(turn), _eye(4), atol=1e-6, rtol=0)
    looked = kinematics.rotate(turn[:, :, None], points)
    torch.testing.assert_close(looked[:2] / looked[2] / half, normal, atol=1e-5, rtol=0)
    again, half2, normal2 = look_at(looked[:2] / looked[2], seen)
    assert float((again - _eye(4)).abs().max()) < 0.1  # nearly no turn is left
    assert (normal.abs() <= 1).all() and (normal2.abs() <= 1).all() and (half2 > 0).all()


def _square(turn: torch.Tensor) -> torch.Tensor:
    return kinematics.matmul3(turn, turn.transpose(0, 1).contiguous())


def _eye(n: int) -> torch.Tensor:
    return torch.eye(3).unsqueeze(-1).expand(3, 3, n)


def test_missing_keypoints_take_no_part_in_the_view() -> None:
    image = torch.rand(2, 17, 3, generator=torch.Generator().manual_seed(2)) * 0.4
    seen = torch.ones(17, 3)
    seen[10:] = 0
    wild = image.clone()
    wild[:, 10:] = 99.0
    for a, b in zip(look_at(image, seen), look_at(wild, seen), strict=True):
        torch.testing.assert_close(a, b)
    nobody = look_at(image, torch.zeros(17, 3))
    assert all(torch.isfinite(x).all() for x in nobody)


def test_the_place_is_exact_for_exact_keypoints(skeleton: Skeleton) -> None:
    vectors, betas = pose(6, seed=3)
    _, points = skeleton(kinematics.axis_angle_to_matrix(vectors.permute(2, 1, 0)), betas.T)
    place = torch.tensor([[0.3, -0.2, 5.0]]).T.expand(3, 6).contiguous()
    image = (points[:2] + place[:2, None]) / (points[2] + place[2])
    guess = place * torch.tensor([1.0, 1, 1.1])[:, None]
    found = virtual_camera.solve_pelvis(points, image, torch.ones(17, 6), guess, guess_weight=0.0)
    torch.testing.assert_close(found, place, atol=2e-3, rtol=0)
    held = virtual_camera.solve_pelvis(points, image, torch.zeros(17, 6), guess)
    torch.testing.assert_close(held, guess, atol=1e-3, rtol=0)


def test_the_network_starts_as_a_person_who_faces_the_camera(skeleton: Skeleton) -> None:
    torch.manual_seed(0)
    network = Network(skeleton, 64, (1, 1))
    inputs = torch.zeros(3, virtual_camera.INPUTS)
    estimates, sure = network(inputs, torch.full((3,), 0.1))
    assert len(estimates) == 2 and sure.shape == (3, 24)
    first = estimates[0]
    assert (first.joints[1, 15] < first.joints[1, 7] - 1).all()  # head above the ankles: y is down
    assert (first.points[2, 0] < first.joints[2, 12]).all()  # nose in front
    assert (first.points[0, 5] > first.points[0, 6]).all()  # left shoulder right in the picture
    assert (first.pelvis[2] > 2).all()


def test_every_round_gets_a_gradient(skeleton: Skeleton) -> None:
    torch.manual_seed(0)
    network = Network(skeleton, 32, (1, 1))
    inputs = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, virtual_camera.INPUTS)).astype(np.float32))
    estimates, _ = network(inputs, torch.full((4,), 0.1))
    estimates[-1].joints.square().sum().backward()
    assert all((p.grad is not None) and p.grad.abs().sum() > 0 for p in network.enter.parameters())
