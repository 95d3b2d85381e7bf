"""Every case of fixtures/parity/dpmesh (or of --fixtures DIR) against the recorded outputs of the official modules.

The cases are read from fixtures.json; a new case runs by the longest of RUNNERS' names that begins its own
(full_small_2 -> full). Batch sizes, numbers of rows, formulas and weights are what the folder says. Outputs are the
reference's, hence its one focal length per batch and its quirk in a batch of exactly three people. Full-size networks
are marked `full`.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.dpmesh_parity import Case
from tests.helpers.dpmesh_runners import RUNNERS, cases_of, runner_of
from tests.helpers.fixtures import fixtures_of

LARGE = "vae", "controlnet", "unet", "full"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_name" not in metafunc.fixturenames:
        return
    fixtures = fixtures_of(metafunc.config, "dpmesh")
    cases = cases_of(fixtures)
    if not cases:
        metafunc.parametrize("case_name", [pytest.param("", marks=pytest.mark.skip("no case of DPMesh there"))])
        return
    big = {n for n, spec in cases.items() if spec["manifest"] == "manifest.json" and n.startswith(LARGE)}
    metafunc.parametrize("case_name", [pytest.param(n, marks=pytest.mark.full) if n in big else n for n in cases])


@torch.no_grad()
def test_case(case_name: str, pytestconfig: pytest.Config) -> None:
    case = Case(fixtures_of(pytestconfig, "dpmesh"), case_name)
    case.compare(RUNNERS[runner_of(case_name)](case))
