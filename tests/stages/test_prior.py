"""The embedded prior does what its card says, on people of a subject that nothing was trained on (make test-slow)."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import fixtures


@pytest.mark.slow
def test_refinement_from_the_embedded_recoverer() -> None:
    from benchmarks.prior import EMBEDDED, FOURTEEN, RECOVERER, compare, draw, network_of, recovered
    from stages.files.checkpoints import read_checkpoint
    from stages.models.scorehmr.refiner import ScoreHmrRefiner
    from stages.smpl.body import load_body

    poses = fixtures.find("mocap") / "mocap_smpl24.npz"
    body = load_body("embedded")
    refiner = ScoreHmrRefiner.load(read_checkpoint(EMBEDDED), body=body)
    network = network_of(RECOVERER, body)
    for missing, px in ((0.0, 0.0), (0.0, 3.0), (0.32, 3.0)):
        batch = draw(body, poses, "cmu", ("cmu14",), missing, px, 300)
        with torch.no_grad():
            truth = batch.joints.permute(2, 1, 0).numpy()[:, FOURTEEN]
            row = compare(refiner, refiner.preset("default"), recovered(network, body, batch), truth)
        assert row["score"][0] <= 0.75 * row["start"][0]
        assert row["score"][2] <= row["start"][2] + 0.3
        assert row["score"][2] < row["fit"][2]
