"""One body for several views: the derivative, exact keypoints, wrong views, what must not matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_rot6d_columns, rot6d_columns_to_matrix
from stages.models.scorehmr.body25 import chain_of
from stages.models.scorehmr.kalman_update import NOT_UPDATED, KalmanUpdate
from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.models.scorehmr.linearized_body import LinearizedBody, PosedEstimate
from stages.models.scorehmr.multiview import (
    STATE_SIZE,
    MultiviewUpdate,
    ViewBatch,
    Views,
    corrected_in_world,
    pelvis_from_rays,
)
from stages.smpl.body import load_body
from tests.helpers.rig_world import ring

F, VIEWS, PEOPLE = 700.0, 4, 3


@pytest.fixture(scope="module")
def chain() -> KinematicChain:
    return chain_of(load_body("embedded"))


def covariance() -> torch.Tensor:
    """Errors of 0.2 rad, the neighbour's in the same direction, and of one unit of each beta."""
    mix = torch.eye(82) + 0.4 * torch.diag(torch.ones(79), 3)
    scale = torch.cat([torch.full((72,), 0.2), torch.ones(10)])
    return mix @ mix.t() * scale * scale[:, None]


@pytest.fixture(scope="module")
def update(chain: KinematicChain) -> MultiviewUpdate:
    linearized = LinearizedBody(chain)
    return MultiviewUpdate(linearized, KalmanUpdate(covariance(), linearized))


def scene(chain: KinematicChain, wrong: float = 0.1, people: int = PEOPLE) -> tuple[ViewBatch, torch.Tensor]:
    """People in all views: exact keypoints, estimates off by `wrong` rad and metres. -> rows, true points (n, 25, 3) in
    each row's camera."""
    g = torch.Generator().manual_seed(0)
    R, t = (torch.from_numpy(v).float() for v in ring(VIEWS))
    local = 0.3 * torch.randn(people, 24, 3, generator=g)
    betas, at = 0.7 * torch.randn(people, 10, generator=g), 0.4 * torch.randn(people, 3, generator=g)
    at[:, 1] += 1.0
    who = torch.arange(people).repeat(VIEWS)
    view = torch.arange(VIEWS).repeat_interleave(people)
    rotmat = axis_angle_to_matrix(local)[who]
    rotmat[:, 0] = R[view] @ rotmat[:, 0]
    pelvis = (R[view] @ at[who][..., None])[..., 0] + t[view]
    pose = matrix_to_rot6d_columns(rotmat).flatten(1)
    transl = pelvis - chain.rest(betas[who]).joints[0].t()
    points = chain.forward(pose, chain.rest(betas[who])).points.permute(2, 0, 1) + transl[:, None]
    xy = F * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0])
    keypoints = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    n = len(who)
    off = axis_angle_to_matrix(wrong * torch.randn(n, 24, 3, generator=g)) @ rotmat
    K = torch.tensor([[F, 0, 320], [0, F, 240], [0, 0, 1]]).expand(n, 3, 3)
    estimate = transl + wrong * torch.randn(n, 3, generator=g)
    pose = matrix_to_rot6d_columns(off).flatten(1)
    rows = ViewBatch(pose, 0 * betas[who], estimate, keypoints, K, R[view], t[view], who, torch.zeros(n))
    return rows, points


def points_of(chain: KinematicChain, out: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return chain.forward(out[0], chain.rest(out[1])).points.permute(2, 0, 1) + out[2][:, None]


def miss(chain: KinematicChain, out: tuple[torch.Tensor, ...], truth: torch.Tensor) -> torch.Tensor:
    """Mean distance (n,) m of the points."""
    return (points_of(chain, out) - truth).norm(dim=-1).mean(1)


def test_the_derivative_is_that_of_the_residuals(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, _ = scene(chain)
    tangent = (rows.keypoints[..., :2] - torch.tensor([320.0, 240.0])) / F
    half_box = torch.full_like(rows.transl[:, 0], 0.2)
    views = Views(*(v.double() for v in (rows.R, rows.t, tangent, rows.keypoints[..., 2], half_box)), rows.group)
    g = torch.Generator().manual_seed(1)
    vectors, betas = torch.randn(PEOPLE, 24, 3, generator=g).double(), torch.randn(PEOPLE, 10, generator=g).double()
    pelvis = 0.3 * torch.randn(PEOPLE, 3, generator=g).double() + torch.tensor([0.0, 1.0, 0.0])
    start = PosedEstimate(axis_angle_to_matrix(vectors), betas, pelvis, torch.ones(PEOPLE).double())

    def residuals(error: torch.Tensor) -> torch.Tensor:
        now = corrected_in_world(start, error)
        points = update.linearized.linearize(now)[0] + now.pelvis[:, None]
        return views.residuals(points[rows.group]).flatten(1)

    _, J = update.linearize(start, views)
    zero = torch.zeros(PEOPLE, STATE_SIZE).double()
    for k in (0, 1, 2, 10, 44, 71, 72, 76, 81, 82, 83, 84):
        step = zero.clone()
        step[:, k] = 1e-5
        numeric = (residuals(step) - residuals(-step)) / 2e-5
        torch.testing.assert_close(-J[..., k], numeric, atol=1e-5, rtol=1e-4)  # residual = keypoint - point


def test_exact_keypoints_give_the_points_their_places(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, truth = scene(chain)
    out = update(rows)
    assert miss(chain, out, truth).max() < 0.006
    assert miss(chain, (rows.pose, rows.betas, rows.transl), truth).min() > 0.05
    # All views' bodies are one: seen from the world they are in one place.
    world = (points_of(chain, out) - rows.t[:, None]) @ rows.R
    for who in range(PEOPLE):
        of_person = world[rows.group == who]
        torch.testing.assert_close(of_person, of_person[:1].expand_as(of_person), atol=1e-4, rtol=0)


def test_known_betas_are_kept(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, _ = scene(chain)
    out = update(dataclasses.replace(rows, betas=rows.betas + 0.5, betas_known=torch.ones(len(rows.group))))
    torch.testing.assert_close(out[1], torch.full_like(out[1], 0.5), atol=1e-4, rtol=0)


def test_a_view_that_shows_somebody_else_is_outvoted(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, truth = scene(chain)
    keypoints = rows.keypoints.clone()
    keypoints[0, :, 0] += 150  # person 0 in the first view
    wrong = update(dataclasses.replace(rows, keypoints=keypoints))
    right = update(rows)
    others = rows.group != 0
    for a, b in zip(wrong, right, strict=True):
        torch.testing.assert_close(a[others], b[others])
    assert miss(chain, wrong, truth).max() < 0.01


def test_estimates_that_face_the_wrong_way_are_outvoted(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, truth = scene(chain)
    rotmat = rot6d_columns_to_matrix(rows.pose.view(-1, 24, 6))
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    rotmat[0, 0] = rotmat[0, 0] @ back
    rows = dataclasses.replace(rows, pose=matrix_to_rot6d_columns(rotmat).flatten(1))
    assert miss(chain, update(rows), truth).max() < 0.01


def test_rows_and_groups_do_not_influence_each_other(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, _ = scene(chain)
    together = update(rows)
    for who in range(PEOPLE):
        of_person = rows.group == who
        for a, b in zip(update(rows.select(of_person)), together, strict=True):
            torch.testing.assert_close(a, b[of_person], atol=1e-5, rtol=1e-5)
    order = torch.randperm(len(rows.group), generator=torch.Generator().manual_seed(2))
    mixed = ViewBatch(*(getattr(rows, f.name)[order] for f in dataclasses.fields(rows)))
    for a, b in zip(update(mixed), together, strict=True):
        torch.testing.assert_close(a, b[order], atol=1e-5, rtol=1e-5)


def test_a_single_view_is_updated_as_ever_and_nothing_seen_stays(
    chain: KinematicChain, update: MultiviewUpdate
) -> None:
    rows, _ = scene(chain)
    alone = rows.select(torch.arange(len(rows.group)) < PEOPLE)
    assert update.single is not None
    expected = update.single(alone.pose, alone.betas, alone.transl, alone.keypoints, alone.K)
    for a, b in zip(update(alone), expected, strict=True):
        torch.testing.assert_close(a, b)
    blind = dataclasses.replace(rows, keypoints=rows.keypoints * torch.tensor([1.0, 1.0, 0.0]))
    out = update(blind)
    for a, b in zip(out[:3], (rows.pose, rows.betas, rows.transl), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert (out[3] == NOT_UPDATED).all()
    assert update.bodies(blind).information.abs().max() < 1e-6  # keypoints that are not there say nothing of the shape


def test_the_shape_of_a_person_is_that_of_all_moments(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, truth = scene(chain, wrong=0.05, people=1)
    parts = [update.shape(rows.select(torch.arange(VIEWS) < k)) for k in (4, 3, 4)]
    betas = (parts[0] + parts[1] + parts[2]).betas()
    known = dataclasses.replace(rows, betas=betas.expand(VIEWS, 10), betas_known=torch.ones(VIEWS))
    assert miss(chain, update(known), truth).max() < 0.006
    assert (betas - betas.new_zeros(10)).abs().max() > 0.2  # it is not the estimates' mean


def test_lines_of_sight_of_a_wrong_view_do_not_move_people(chain: KinematicChain, update: MultiviewUpdate) -> None:
    rows, truth = scene(chain, people=1)
    points = ((truth - rows.t[:, None]) @ rows.R)[:1].double()  # from the world's origin
    tangent = (rows.keypoints[..., :2] - torch.tensor([320.0, 240.0])) / F
    tangent[0, :, 0] += 0.3
    half_box = torch.full((VIEWS,), 0.2)
    views = Views(*(v.double() for v in (rows.R, rows.t, tangent, rows.keypoints[..., 2], half_box)), rows.group)
    assert pelvis_from_rays(views, points, 1).norm() < 0.07  # 0.63 by least squares


def test_without_a_covariance_bodies_are_only_brought_together(chain: KinematicChain) -> None:
    rows, truth = scene(chain)
    out = MultiviewUpdate(LinearizedBody(chain), None)(rows)
    assert miss(chain, out, truth).max() < 0.5 * miss(chain, (rows.pose, rows.betas, rows.transl), truth).min()
    world = (points_of(chain, out) - rows.t[:, None]) @ rows.R
    of_person = world[rows.group == 1]
    torch.testing.assert_close(of_person, of_person[:1].expand_as(of_person), atol=1e-4, rtol=0)
