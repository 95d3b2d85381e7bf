"""Our metrics against the numbers of the three authors' programs."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluation import metrics
from tests.helpers.fixtures import fixtures_of

# Rows of the H36M regressor that the papers keep: all but pelvis, torso and nose.
H36M14 = [1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16]


def load(config: pytest.Config, family: str, stem: str) -> list[dict[str, np.ndarray]]:
    cases = fixtures_of(config, family).cases(stem)
    if not cases:
        pytest.skip(f"no {family}/{stem}*.npz")
    return [dict(np.load(path)) for path in cases]


def test_scorehmr(pytestconfig: pytest.Config) -> None:
    for case in load(pytestconfig, "scorehmr", "metrics"):
        truth = case["gt"]
        for name in ("", "_rotated", "_mirror", "_flat"):
            pred = case[f"pred{name}"]
            np.testing.assert_allclose(metrics.mpjpe(pred, truth), case[f"mpjpe{name}"], atol=0.01)
            np.testing.assert_allclose(metrics.pa_mpjpe(pred, truth), case[f"pa_mpjpe{name}"], atol=0.01)
        np.testing.assert_allclose(metrics.align(case["pred"], truth), case["aligned"], atol=1e-5)
        np.testing.assert_allclose(metrics.acceleration_error(case["pred"], truth), case["accel"], atol=0.01)
        np.testing.assert_allclose(
            metrics.acceleration_error(case["pred"], truth, case["vis"]), case["accel_vis"], atol=0.01
        )
        keep = [*range(25, 37), 37, 43]
        truth44 = case["ev_gt"][..., :3]
        for name in ("reg", "opt"):
            pred44 = case[f"ev_{name}"]
            a, b = metrics.centred(pred44, pred44[:, 39])[:, keep], metrics.centred(truth44, truth44[:, 39])[:, keep]
            np.testing.assert_allclose(metrics.mpjpe(a, b), case[f"ev_{name}_mpjpe"], atol=0.01)
            np.testing.assert_allclose(metrics.pa_mpjpe(a, b), case[f"ev_{name}_re"], atol=0.01)


def test_postometro(pytestconfig: pytest.Config) -> None:
    weights = fixtures_of(pytestconfig, "postometro").weights
    for case in load(pytestconfig, "postometro", "metrics_losses"):
        truth, has = case["gt_joints"][..., :3], case["has_3d"] == 1
        hips = [2, 3]
        pred = case["pred_joints"]
        a, b = (metrics.centred(x, x[:, hips].mean(1)) for x in (pred, truth))
        np.testing.assert_allclose(metrics.mpjpe(a[has], b[has]) / metrics.MM, case["mpjpe"], rtol=2e-5)
        np.testing.assert_allclose(metrics.pa_mpjpe(pred, truth) / metrics.MM, case["pampjpe"], rtol=2e-4)
        mirrored = metrics.pa_mpjpe(pred * [-1, 1, 1], truth) / metrics.MM
        np.testing.assert_allclose(mirrored, case["pampjpe_mirrored"], rtol=2e-4)
        mesh = {side: weights.array(f"postometro/metrics/{side}_vertices", (5, 1723, 3)) for side in ("pred", "gt")}
        pred_mesh = np.float32(0.4) * mesh["pred"]
        has_smpl = case["has_smpl"] == 1
        mpvpe = metrics.mpjpe(pred_mesh, pred_mesh + np.float32(0.03) * mesh["gt"])[has_smpl] / metrics.MM
        np.testing.assert_allclose(mpvpe, case["mpvpe"], rtol=2e-5)


def test_dpmesh(pytestconfig: pytest.Config) -> None:
    for case in load(pytestconfig, "dpmesh", "metrics"):
        pred, truth = case["out.h36m14_pred"], case["out.h36m14_gt"]
        np.testing.assert_allclose(metrics.mpjpe(pred, truth), case["out.mpjpe"], rtol=2e-5)
        np.testing.assert_allclose(metrics.pa_mpjpe(pred, truth), case["out.pa_mpjpe"], rtol=2e-5)
