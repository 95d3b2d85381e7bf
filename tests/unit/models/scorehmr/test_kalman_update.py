"""The Kalman update: the linearized body, the update against its textbook form, what must not matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_rot6d_columns
from stages.models.scorehmr.body25 import chain_of
from stages.models.scorehmr.kalman_update import PIXEL, KalmanUpdate, NoiseModel
from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.models.scorehmr.linearized_body import (
    POSE_SIZE,
    LinearizedBody,
    PosedEstimate,
    point_jacobian,
    project_with_jacobian,
)
from stages.smpl.body import load_body
from tests.helpers.random_chain import random_chain

F, N = 800.0, 5


@pytest.fixture(scope="module")
def chain() -> KinematicChain:
    return chain_of(load_body("embedded"))


def covariance() -> torch.Tensor:
    """Some correlated error of 0.2 rad and one unit of each beta."""
    mix = torch.randn(POSE_SIZE, POSE_SIZE, generator=torch.Generator().manual_seed(3)) / POSE_SIZE**0.5
    scale = torch.cat([torch.full((72,), 0.2), torch.ones(10)])
    return (mix @ mix.t() + 0.1 * torch.eye(POSE_SIZE)) * scale * scale[:, None]


def people(n: int = N, wrong: float = 0.05) -> tuple[torch.Tensor, ...]:
    """True pose (n, 144), an estimate of it, betas (n, 10), transl (n, 3), K (n, 3, 3)."""
    g = torch.Generator().manual_seed(0)
    vectors = 0.3 * torch.randn(n, 24, 3, generator=g)
    vectors[:, 0] = torch.tensor([3.0, 0.0, 0.0])
    estimate = vectors + wrong * torch.randn(n, 24, 3, generator=g)
    true, estimate = (matrix_to_rot6d_columns(axis_angle_to_matrix(v)).flatten(1) for v in (vectors, estimate))
    transl = torch.tensor([0.5, 0.2, 4.0]) + 0.3 * torch.randn(n, 3, generator=g)
    K = torch.tensor([[F, 0, 320], [0, F, 240], [0, 0, 1]]).expand(n, 3, 3)
    return true, estimate, 0.5 * torch.randn(n, 10, generator=g), transl, K


def drawn(chain: KinematicChain, pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
    """Exact keypoints (n, 25, 3) px."""
    points = chain.forward(pose, chain.rest(betas)).points.permute(2, 0, 1) + transl[:, None]
    xy = F * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0])
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


def error(chain: KinematicChain, result: tuple[torch.Tensor, ...], keypoints: torch.Tensor) -> torch.Tensor:
    return (drawn(chain, *result[:3]) - keypoints)[..., :2].norm(dim=-1)


@pytest.mark.parametrize("blend_shapes", [False, True])
def test_bone_vectors_give_the_points_of_the_chain(blend_shapes: bool) -> None:
    chain = random_chain(blend_shapes)
    pose, _, betas, _, _ = (v.double() for v in people())
    posed = chain.forward(pose, chain.rest(betas))
    world = posed.world[:, :, :3].permute(3, 0, 1, 2)
    root = chain.rest(betas).joints[0].t()
    points, _, _ = LinearizedBody(chain).linearize(PosedEstimate(world, betas, root, torch.ones(N).double()))
    torch.testing.assert_close(points + root[:, None], posed.points.permute(2, 0, 1), atol=1e-7, rtol=0)


def test_derivatives_are_those_of_finite_differences() -> None:
    chain = random_chain(False)
    linearized = LinearizedBody(chain)
    pose, _, betas, _, _ = (v.double() for v in people())
    world = chain.forward(pose, chain.rest(betas)).world[:, :, :3].permute(3, 0, 1, 2)
    estimate = PosedEstimate(
        world, betas, torch.tensor([[0.3, -0.2, 60.0]]).double().expand(N, 3), torch.full((N,), 0.2).double()
    )
    points, rotation_jacobian, shape_jacobian = linearized.linearize(estimate)
    projected, J = project_with_jacobian(estimate, points, rotation_jacobian, shape_jacobian)
    G = point_jacobian(rotation_jacobian, shape_jacobian)
    for k in (0, 1, 2, 40, 71, 72, 81, 82, 83, 84):
        step = torch.zeros(N, POSE_SIZE + 3).double()
        step[:, k] = 1e-5
        ahead, back = estimate.corrected(step), estimate.corrected(-step)
        (p, *rest), (q, *other) = linearized.linearize(ahead), linearized.linearize(back)
        if k < POSE_SIZE:
            torch.testing.assert_close((p - q).flatten(1) / 2e-5, G[:, :, k], atol=1e-6, rtol=1e-6)
        slope = (project_with_jacobian(ahead, p, *rest)[0] - project_with_jacobian(back, q, *other)[0]).flatten(
            1
        ) / 2e-5
        torch.testing.assert_close(slope, J[:, :, k], atol=1e-6, rtol=1e-6)
    assert projected.shape == (N, 7, 2)


def test_a_small_step_is_the_textbook_kalman_update(chain: KinematicChain) -> None:
    """P H' (H P H' + R)^-1 r, with the noise held and the points free to move."""
    noise = 3.0
    noise_model = NoiseModel(point_sd=1e6, noise_range=(noise, noise), initial_noise=noise, outlier=1e6, iterations=1)
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain), noise_model)
    true, estimate, betas, transl, _ = people(wrong=1e-3)
    posed = chain.forward(estimate, chain.rest(betas))
    estimate = PosedEstimate(
        posed.world[:, :, :3].permute(3, 0, 1, 2),
        betas,
        chain.rest(betas).joints[0].t() + transl,
        torch.full((N,), 0.2),
    )
    exact = estimate.to(torch.float64)
    now, H = project_with_jacobian(exact, *kalman.linearized.linearize(exact))
    target = (drawn(chain, true, betas, transl)[..., :2] - torch.tensor([320.0, 240.0])) / F / 0.2
    free = torch.tensor([noise_model.lateral_sd, noise_model.lateral_sd, noise_model.log_depth_sd]).double() ** 2
    P = torch.block_diag(covariance().double(), torch.diag(free))
    r = (target.double() - now).flatten(1)
    A = H @ P @ H.transpose(1, 2) + (noise * PIXEL) ** 2 * torch.eye(50).double()
    expected = (P @ H.transpose(1, 2) @ torch.linalg.solve(A, r[..., None]))[..., 0]
    result = kalman.update(estimate, target, torch.ones(N, 25)).bodies
    torch.testing.assert_close(result.betas, betas + expected[:, 72:POSE_SIZE].float(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(result.rotation, estimate.corrected(expected.float()).rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.pelvis, estimate.corrected(expected.float()).pelvis, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("noise", "stiffness"), [(1.0, 1 / 16), (2.5, 1.0), (6.0, 16.0)])
def test_points_are_held_by_the_fourth_power_of_the_noise(
    chain: KinematicChain, noise: float, stiffness: float
) -> None:
    """Keypoints of half the least usual noise hold the points 16 times less, of twice the most 16 times more."""
    noise_model = NoiseModel(
        usual_noise=(2.0, 3.0), noise_range=(noise, noise), initial_noise=noise, outlier=1e6, iterations=1
    )
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain), noise_model)
    true, estimate, betas, transl, _ = people(wrong=1e-3)
    posed = chain.forward(estimate, chain.rest(betas))
    root = chain.rest(betas).joints[0].t() + transl
    estimate = PosedEstimate(posed.world[:, :, :3].permute(3, 0, 1, 2), betas, root, torch.full((N,), 0.2))
    exact = estimate.to(torch.float64)
    linear = kalman.linearized.linearize(exact)
    now, H = project_with_jacobian(exact, *linear)
    G = point_jacobian(*linear[1:]).unflatten(1, (25, 3))
    G = (
        torch.nn.functional.pad((G - G.mean(1, keepdim=True)).flatten(1, 2), (0, 3)) / noise_model.point_sd
    )  # about their middle
    keypoints = (drawn(chain, true, betas, transl)[..., :2] - torch.tensor([320.0, 240.0])) / F / 0.2
    free = torch.tensor([noise_model.lateral_sd, noise_model.lateral_sd, noise_model.log_depth_sd]).double() ** 2
    precision = torch.block_diag(covariance().double(), torch.diag(free)).inverse() + stiffness * G.mT @ G
    R = (noise * PIXEL) ** 2
    residual = (keypoints.double() - now).flatten(1)[..., None]
    step = torch.linalg.solve(precision + H.mT @ H / R, H.mT @ residual / R)[..., 0]
    result = kalman.update(estimate, keypoints, torch.ones(N, 25)).bodies
    expected = estimate.corrected(step.float())
    torch.testing.assert_close(result.betas, betas + step[:, 72:POSE_SIZE].float(), atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(result.rotation, expected.rotation, atol=2e-5, rtol=0)
    torch.testing.assert_close(result.pelvis, expected.pelvis, atol=1e-4, rtol=0)


def test_exact_keypoints_are_met_and_rows_do_not_see_each_other(chain: KinematicChain) -> None:
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain))
    true, estimate, betas, transl, K = people(40)
    keypoints = drawn(chain, true, betas, transl)
    before = error(chain, (estimate, betas, transl), keypoints).mean()
    result = kalman(estimate, betas, transl, keypoints, K)
    assert error(chain, result, keypoints).mean() < 0.1 * before
    part = torch.tensor([7, 3, 30])
    alone = kalman(estimate[part], betas[part], transl[part], keypoints[part], K[part])
    for a, b in zip(alone, result, strict=True):
        torch.testing.assert_close(a, b[part], atol=1e-6, rtol=1e-6)


def test_one_wild_keypoint_hardly_matters(chain: KinematicChain) -> None:
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain))
    true, estimate, betas, transl, K = people(20)
    keypoints = drawn(chain, true, betas, transl)
    good = kalman(estimate, betas, transl, keypoints, K)
    wild = keypoints.clone()
    wild[:, 4, :2] += 120  # a wrist far away
    result = kalman(estimate, betas, transl, wild, K)
    others = [k for k in range(25) if k != 4]
    away = error(chain, result, keypoints)[:, others].mean()
    assert away < error(chain, (estimate, betas, transl), keypoints)[:, others].mean()
    assert away < error(chain, good, keypoints)[:, others].mean() + 4


def test_a_position_behind_the_camera_or_far_off_is_corrected_and_scores_have_no_unit(chain: KinematicChain) -> None:
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain))
    true, estimate, betas, transl, K = people(6)
    keypoints = drawn(chain, true, betas, transl)
    usual = kalman(estimate, betas, transl, keypoints, K)
    lost, loud = transl.clone(), keypoints.clone()
    lost[0, 2], lost[1], lost[3, 0] = -4, 0, 9
    loud[..., 2] = 30
    for result in (kalman(estimate, betas, lost, keypoints, K), kalman(estimate, betas, transl, loud, K)):
        assert (error(chain, result, keypoints).mean(1) < error(chain, usual, keypoints).mean(1) + 0.5).all()
        torch.testing.assert_close(result[2], usual[2], atol=0.15, rtol=0)


def test_rows_that_cannot_be_updated_stay(chain: KinematicChain) -> None:
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain))
    true, estimate, betas, transl, K = people(6)
    keypoints = drawn(chain, true, betas, transl)
    usual = kalman(estimate, betas, transl, keypoints, K)
    keypoints[0, :, 2] = 0
    keypoints[1, 2:, 2] = 0
    keypoints[2, :, :2] = torch.tensor([100.0, 100.0])  # all in one place
    estimate[3] = torch.nan
    result = kalman(estimate, betas, transl, keypoints, K)
    for row in (0, 1, 2):
        for a, b in zip(result[:3], (estimate, betas, transl), strict=True):
            torch.testing.assert_close(a[row], b[row], atol=0, rtol=0)
    for a, b in zip(result[:3], usual[:3], strict=True):
        torch.testing.assert_close(a[4:], b[4:], atol=1e-5, rtol=1e-4)


def test_noise_is_estimated_from_the_residuals(chain: KinematicChain) -> None:
    """Noisy keypoints are followed less than exact ones, without being told; and shape stays where it must."""
    kalman = KalmanUpdate(covariance(), LinearizedBody(chain))
    true, estimate, betas, transl, K = people(60)
    keypoints = drawn(chain, true, betas, transl)
    noisy = keypoints.clone()
    noisy[..., :2] += 8 * torch.randn(noisy[..., :2].shape, generator=torch.Generator().manual_seed(5))
    left = error(chain, kalman(estimate, betas, transl, noisy, K), noisy).mean()
    given_noise = dataclasses.replace(kalman.noise_model, noise_range=(1.0, 1.0), initial_noise=1.0)
    pulled = error(
        chain, KalmanUpdate(covariance(), kalman.linearized, given_noise)(estimate, betas, transl, noisy, K), noisy
    ).mean()
    assert left > 1.3 * pulled
    kept = kalman(estimate, betas, transl, noisy, K, keep_shape=True)
    assert torch.equal(kept[1], betas)
