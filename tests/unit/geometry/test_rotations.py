"""Rotations: conventions against recorded cases and hand-made matrices."""

import numpy as np
import torch

from stages.geometry import rotations as rot
from tests.helpers.fixtures import PARITY


def test_axis_angle_round_trip_and_known_quarter_turn():
    torch.manual_seed(0)
    aa = torch.randn(4, 5, 3, dtype=torch.float64)
    matrix = rot.axis_angle_to_matrix(aa)
    assert matrix.shape == (4, 5, 3, 3)
    assert torch.allclose(rot.axis_angle_to_matrix(rot.matrix_to_axis_angle(matrix)), matrix, atol=1e-9)
    quarter = rot.axis_angle_to_matrix(torch.tensor([0.0, 0.0, torch.pi / 2]))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(rot.about("z", 90, degrees=True), quarter, atol=1e-6)


def test_gradient_is_finite_at_zero_and_right_elsewhere():
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    rot.axis_angle_to_matrix(zero)[:, 2, 1].sum().backward()
    assert zero.grad is not None and torch.allclose(zero.grad, torch.tensor([[1.0, 0, 0]] * 2, dtype=torch.float64))
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rot.axis_angle_to_matrix, (x,))


def test_the_two_6d_orders():
    torch.manual_seed(1)
    matrix = rot.axis_angle_to_matrix(torch.randn(7, 3, dtype=torch.float64))
    columns, interleaved = rot.matrix_to_rot6d_columns(matrix), rot.matrix_to_rot6d_interleaved(matrix)
    assert torch.equal(columns[:, :3], matrix[:, :, 0]) and torch.equal(interleaved[:, ::2], matrix[:, :, 0])
    assert torch.allclose(rot.rot6d_columns_to_matrix(columns * 3), matrix)
    assert torch.allclose(rot.rot6d_interleaved_to_matrix(interleaved * 3), matrix)
    assert not torch.allclose(rot.rot6d_columns_to_matrix(interleaved), matrix, atol=0.1)


def test_degenerate_6d_is_finite():
    for x in (torch.zeros(1, 6), torch.ones(1, 6)):
        assert torch.isfinite(rot.rot6d_columns_to_matrix(x)).all()
        assert torch.isfinite(rot.rot6d_interleaved_to_matrix(x)).all()


def test_slerp_and_geodesic():
    a, b = (
        rot.about("x", torch.tensor([0.0, 20.0]), degrees=True),
        rot.about("x", torch.tensor([40.0, 80.0]), degrees=True),
    )
    middle = rot.slerp(a, b, torch.tensor([0.25, 0.5]))
    assert torch.allclose(middle, rot.about("x", torch.tensor([10.0, 50.0]), degrees=True), atol=1e-6)
    assert torch.allclose(rot.geodesic(a, b) * 180 / torch.pi, torch.tensor([40.0, 60.0]), atol=1e-3)


def test_recorded_scorehmr_columns():
    case = np.load(PARITY / "scorehmr" / "geometry.npz")
    got = rot.rot6d_columns_to_matrix(torch.from_numpy(case["x6"]).reshape(5, 24, 6))
    assert np.abs(got.numpy() - case["rotmat"]).max() < 5e-6  # a float64 run of ours lies 8e-7 away
    assert np.abs(rot.axis_angle_to_matrix(torch.from_numpy(case["aa"])).numpy() - case["aa_rotmat"]).max() < 2e-6
