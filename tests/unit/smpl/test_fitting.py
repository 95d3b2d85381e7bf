"""SMPL parameters from vertices: exact on the body's own meshes, close on noisy ones, right side up from any turn."""

from __future__ import annotations

import pytest
import torch

from stages.smpl.body import Body, load_body
from stages.smpl.fitting import fit_smpl


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def people(body: Body, n: int, spread: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "global_orient": draw(n, 3) * 1.5,
        "body_pose": draw(n, 23, 3) * spread,
        "betas": draw(n, 10),
        "transl": draw(n, 3) + torch.tensor([0.0, 0.0, 4.0]),
    }


def test_own_meshes_are_met(body: Body) -> None:
    truth = people(body, 4, 0.3)
    posed = body(**truth)
    fit = fit_smpl(body, posed.vertices)
    assert fit.residual.max() < 1e-4
    assert (fit.betas - truth["betas"]).abs().max() < 0.05
    again = body(fit.global_orient, fit.body_pose, fit.betas, fit.transl)
    assert (again.joints - posed.joints).norm(dim=-1).max() < 5e-4


def test_noise_is_averaged_and_reported(body: Body) -> None:
    posed = body(**people(body, 3, 0.3))
    noise = 0.02 * torch.randn(posed.vertices.shape, generator=torch.Generator().manual_seed(1))
    fit = fit_smpl(body, posed.vertices + noise)
    again = body(fit.global_orient, fit.body_pose, fit.betas, fit.transl)
    expected = (again.vertices - posed.vertices - noise).norm(dim=-1).mean(1)
    assert torch.allclose(fit.residual, expected, atol=1e-5)
    assert (again.vertices - posed.vertices).norm(dim=-1).mean() < 0.004  # a tenth of the noise's mean length


def test_each_row_is_alone(body: Body) -> None:
    vertices = body(**people(body, 3, 0.4)).vertices
    vertices[1] = torch.randn_like(vertices[1])  # no body at all
    together, alone = fit_smpl(body, vertices), fit_smpl(body, vertices[2:])
    assert torch.allclose(together.body_pose[2], alone.body_pose[0], atol=1e-3)
    assert together.residual[1] > 0.3 and torch.isfinite(together.residual).all()
    assert together.residual[2] < 1e-3
