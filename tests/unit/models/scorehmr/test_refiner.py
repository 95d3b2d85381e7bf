"""The parts of refinement that can be checked against something simpler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, read_checkpoint
from stages.geometry import cameras
from stages.geometry.rotations import rot6d_columns_to_matrix
from stages.models.base import EstimateBatch
from stages.models.scorehmr.body25 import chain_of
from stages.models.scorehmr.denoiser import Denoiser
from stages.models.scorehmr.guidance import SmoothTerm, ViewTerm
from stages.models.scorehmr.keypoint_term import KeypointTerm, Observed
from stages.models.scorehmr.refiner import ScoreHmrRefiner
from stages.models.scorehmr.schedule import tables
from stages.models.scorehmr.translation_smoothing import ACCELERATION, NOISE, smooth_translations
from stages.models.scorehmr.weights import condition_of
from stages.smpl.body import load_body
from tests.helpers.random_chain import random_chain


@pytest.mark.parametrize("pose_dirs", [False, True])
def test_chain_gradient_equals_autograd(pose_dirs: bool) -> None:
    chain = random_chain(pose_dirs)
    g = torch.Generator().manual_seed(0)
    x, betas, force = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 144), (4, 10), (7, 3, 4)))
    posed = chain.forward(x, chain.rest(betas))
    on_x, on_betas = chain.backward(posed, force, with_betas=True)
    assert on_betas is not None
    step = 1e-6
    for k in (0, 3, 5, 7, 40, 77, 100, 143):
        d = torch.zeros_like(x)
        d[:, k] = step
        ahead, behind = (chain.forward(x + s * d, chain.rest(betas)).points for s in (1, -1))
        slope = ((ahead - behind) * force).sum((0, 1)) / (2 * step)
        torch.testing.assert_close(on_x[:, k], slope, atol=1e-7, rtol=1e-6)
    for k in range(10):
        d = torch.zeros_like(betas)
        d[:, k] = step
        ahead, behind = (chain.forward(x, chain.rest(betas + s * d)).points for s in (1, -1))
        slope = ((ahead - behind) * force).sum((0, 1)) / (2 * step)
        torch.testing.assert_close(on_betas[:, k], slope, atol=1e-7, rtol=1e-6)


def test_folded_points_are_those_of_the_mesh() -> None:
    body, g = load_body("embedded"), torch.Generator().manual_seed(0)
    x, betas = torch.randn(3, 144, generator=g), torch.randn(3, 10, generator=g)
    vertices = body.forward_rotmat(rot6d_columns_to_matrix(x.view(3, 24, 6)), betas).vertices
    chain = chain_of(body)
    got = chain.forward(x, chain.rest(betas)).points.permute(2, 0, 1)
    torch.testing.assert_close(got, body.regress(vertices, "body25"), atol=1e-5, rtol=0)
    assert len(chain.weights) < 200


def term_for(transl: torch.Tensor, camera: str) -> tuple[KeypointTerm, torch.Tensor]:
    """Exact keypoints of three people, and a start that is 10 cm beside and 40 cm behind."""
    body, g = load_body("embedded"), torch.Generator().manual_seed(0)
    x = torch.eye(3)[:, :2].t().reshape(6).repeat(3, 24) + 0.2 * torch.randn(3, 144, generator=g)
    chain, betas = chain_of(body), torch.zeros(3, 10)
    K = cameras.default_K(torch.tensor([[640.0, 480.0]])).expand(3, 3, 3)
    points = chain.forward(x, chain.rest(betas)).points.permute(2, 0, 1) + transl[:, None]
    observed = Observed(
        cameras.project(points, K),
        torch.ones(3, 25),
        K[:, [0, 1], [0, 1]],
        K[:, :2, 2],
        torch.full((3,), 100.0),
        torch.ones(3),
    )
    return KeypointTerm(chain, observed, betas, transl + torch.tensor([0.1, 0.0, 0.4]), camera=camera), x


def test_camera_is_found_in_closed_form_and_by_adam() -> None:
    truth = torch.tensor([[0.0, 0.0, 4.0], [0.5, 0.2, 6.0], [-1.0, 0.0, 3.0]])
    term, x = term_for(truth, "solve")
    term.solve_camera(x, rounds=5)
    torch.testing.assert_close(term.transl.t(), truth, atol=1e-3, rtol=0)
    term, x = term_for(truth, "adam")
    first = term.evaluate(x)[0]
    for _ in range(60):
        loss, _, _ = term.evaluate(x)
        term.move_camera()
    assert (loss < 0.5 * first).all()


def test_points_behind_the_camera_give_numbers() -> None:
    term, x = term_for(torch.tensor([[0.0, 0.0, -2.0]]).repeat(3, 1), "solve")
    loss, gradient, _ = term.evaluate(x)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and torch.isfinite(term.transl).all()


def test_unconditional_denoiser_fast_and_plain_agree() -> None:
    torch.manual_seed(0)
    net = Denoiser(0, hidden=64, blocks=2)
    x = torch.randn(5, 144)
    for t in (0, 10, 999):
        plain = net(x, torch.full((5,), t), x[:, :0])
        torch.testing.assert_close(net.condition(x[:, :0], [0, 10, 999])(x, t), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["smooth", "views", "turned"])
def test_gradients_of_terms(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 144, generator=g, dtype=torch.float64, requires_grad=True)
    if kind == "smooth":
        term = SmoothTerm(torch.tensor([False, True, True, False, True, True]))
    else:
        R = rot6d_columns_to_matrix(torch.randn(6, 6, generator=g, dtype=torch.float64)) if kind == "turned" else None
        term = ViewTerm(torch.tensor([0, 1, 0, 1, 1, 2]), 3, R)
    if kind == "turned":
        world = torch.cat([torch.einsum("nab,ncb->nca", R, x[:, :6].view(6, 2, 3)).reshape(6, 6), x[:, 6:]], 1)
    else:
        world = x if kind == "smooth" else torch.cat([0 * x[:, :6], x[:, 6:]], 1)
    if kind == "smooth":
        loss = ((x[1:] - x[:-1]) ** 2).sum(1)[[0, 1, 3, 4]].sum()
    else:
        loss = sum(300**2 * ((world[r] - world[r].mean(0)) ** 2).sum() for r in ([0, 2], [1, 3, 4], [5]))
    (slope,) = torch.autograd.grad(loss, x)
    value, gradient = term.evaluate(x.detach())
    torch.testing.assert_close(value.sum(), loss.detach(), check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


def test_translations_equal_a_dense_solve() -> None:
    g = torch.Generator().manual_seed(0)
    n = 9
    A = torch.randn(n, 3, 3, generator=g, dtype=torch.float64)
    A = 0.01 * A @ A.transpose(1, 2)
    t, consecutive = torch.randn(n, 3, generator=g, dtype=torch.float64), torch.arange(n) % 5 > 0
    M, b = np.zeros((3 * n, 3 * n)), np.zeros(3 * n)
    for i in range(n):
        information = A[i].numpy() / NOISE**2 + 1e-6 * np.eye(3)
        M[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] += information
        b[3 * i : 3 * i + 3] = information @ t[i].numpy()
    for i in range(1, n - 1):
        if consecutive[i] and consecutive[i + 1]:
            for axis in range(3):
                row = np.zeros(3 * n)
                row[[3 * i - 3 + axis, 3 * i + axis, 3 * i + 3 + axis]] = 1, -2, 1
                M += np.outer(row, row) / ACCELERATION**2
    expected = np.linalg.solve(M, b).reshape(n, 3)
    np.testing.assert_allclose(smooth_translations(A, t, consecutive), expected, atol=1e-8)


def published(tmp_path: Path, **changes: torch.Tensor | None) -> Checkpoint:
    """The layout of ScoreHMR's model-100.pt with random weights."""
    torch.manual_seed(0)
    names = {
        f"{stem}.model.{k}": v for stem in ("ema_model", "online_model") for k, v in Denoiser().state_dict().items()
    }
    names |= {f"ema_model.{k}": torch.from_numpy(v) for k, v in tables().items()}
    names |= {"initted": torch.tensor(True), "step": torch.tensor([5])}
    names = {k: v for k, v in (names | changes).items() if v is not None}
    path = tmp_path / "model-100.pt"
    torch.save({"step": 1000000, "model": {}, "opt": {"state": {}}, "ema": names}, path)
    stats = {"pose_feats": 3072, "cam_shape_feats": 1536}
    np.savez(
        tmp_path / "pare_feat_stats.npz", **{f"{k}_{w}": np.ones(n) for k, n in stats.items() for w in ("mean", "std")}
    )
    return read_checkpoint(path)


def test_published_layout_is_read_and_others_are_refused(tmp_path: Path) -> None:
    body = load_body("embedded")
    whole = published(tmp_path)
    assert ScoreHmrRefiner.recognises(whole.names) and condition_of(whole) == "pare"
    refiner = ScoreHmrRefiner.load(whole, body=body)
    assert refiner.published and refiner.preset("fast").plan.step == 10 and refiner.preset("paper").plan.step == 2
    name = "ema_model.model.blocks.1.block.linear_layer2.bias"
    for changes, word in (
        ({name: None}, "missing"),
        ({name: torch.full((144,), float("nan"))}, "NaN"),
        ({"ema_model.model.extra": torch.zeros(1)}, "unexpected"),
        ({"ema_model.alphas_cumprod": torch.linspace(1, 0, 1000)}, "schedule"),
    ):
        with pytest.raises(AssetError, match=word):
            ScoreHmrRefiner.load(published(tmp_path, **changes), body=body)
    again = published(tmp_path)
    (tmp_path / "pare_feat_stats.npz").unlink()
    with pytest.raises(AssetError, match="pare_feat_stats"):
        ScoreHmrRefiner.load(again, body=body)


def test_unknown_cameras_get_the_released_focal_length_and_known_ones_keep_theirs(tmp_path: Path) -> None:
    refiner = ScoreHmrRefiner.load(published(tmp_path), body=load_body("embedded"))
    n = 2
    K = cameras.default_K(torch.tensor([[640.0, 480.0]])).repeat(n, 1, 1)
    estimates = EstimateBatch(
        torch.eye(3).repeat(n, 24, 1, 1), torch.zeros(n, 10), torch.tensor([[0.3, 0.1, 4.0]]).repeat(n, 1),
        torch.zeros(n, 25, 3), K, torch.tensor([[640.0, 480.0]]).repeat(n, 1), torch.tensor([False, True]),
        torch.arange(n), features=torch.zeros(n, 4608),
    )  # fmt: skip
    reference = refiner.in_reference_camera(estimates)
    assert reference.K[:, 0, 0].tolist() == [5000.0, 800.0]
    at = cameras.project(reference.transl[:, None], reference.K)
    torch.testing.assert_close(at, cameras.project(estimates.transl[:, None], K), atol=0.02, rtol=0)
    out = refiner(estimates, refiner.preset("fast"))  # no keypoint is visible: the position in the image stays
    torch.testing.assert_close(out.transl, estimates.transl, atol=1e-3, rtol=0)
