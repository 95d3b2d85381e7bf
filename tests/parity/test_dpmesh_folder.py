"""--fixtures works on any folder in the format of fixtures/parity/dpmesh: cases with other names, fewer rows, other
formulas, with and without an index of their own. Made here of parts of the cases there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.dpmesh_parity import Case, evaluate
from tests.helpers.dpmesh_runners import RUNNERS, cases_of, runner_of
from tests.helpers.fixtures import PARITY, Fixtures

OURS = PARITY / "dpmesh"


def part_of(stored: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The first rows of a case: whole arrays, and the recorded positions of large ones that lie in those rows."""
    made = {}
    for name, value in stored.items():
        stem, _, kind = name.rpartition(".")
        if kind == "shape" and f"{stem}.index" in stored:
            within = stored[f"{stem}.index"] < np.prod(value) // value[0] * rows
            made[name] = np.array([rows, *value[1:]])
            made[f"{stem}.index"], made[f"{stem}.value"] = (stored[f"{stem}.{k}"][within] for k in ("index", "value"))
        elif kind not in ("index", "value", "mean", "std"):
            made[name] = value[:rows] if value.ndim and len(value) > 1 else value
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("new") / "dpmesh"
    root.mkdir()
    index = json.loads((OURS / "fixtures.json").read_text())
    cases: dict[str, Any] = {}

    def case(of: str, name: str, rows: int, **inputs: Any) -> None:
        stored = dict(np.load(OURS / f"{of}.npz"))
        np.savez(root / f"{name}.npz", **part_of(stored, rows))
        cases[name] = copy.deepcopy(index["cases"][of]) | {"file": f"{name}.npz"}
        cases[name]["inputs"] |= inputs

    case("heatmap", "heatmap_two", 2)
    z = {"array": "dpmesh.vposer.z", "shape": [8, 32], "then": "4 * x / 4"}
    case("vposer", "vposer_again", 8, z=z)
    metrics = index["cases"]["metrics"]["inputs"]
    case(
        "metrics", "metrics_seed2", 2, gt=metrics["gt"].replace("0..2", "0..1"),
        pred=metrics["pred"].partition("; pred2")[0],
    )  # fmt: skip
    stored = dict(np.load(OURS / "smpl.npz"))
    kept = part_of(stored, 1)
    for name in ("pose", "shape", "trans"):  # inputs that are stored count before those that are described
        described = index["cases"]["smpl"]["inputs"][name]
        fixtures = Fixtures("dpmesh")
        drawn = torch.from_numpy(fixtures.weights.array(described["array"], tuple(described["shape"]))).numpy()
        kept[f"in.{name}"] = np.float32(evaluate(described.get("then", "x"), {"x": drawn}))[:1]
    np.savez(root / "smpl_one.npz", **kept)
    cases["smpl_one"] = index["cases"]["smpl"] | {"file": "smpl_one.npz"}
    (root / "fixtures.json").write_text(json.dumps(index | {"cases": cases}))
    return root


@torch.no_grad()
def run(fixtures: Fixtures, name: str) -> None:
    case = Case(fixtures, name)
    case.compare(RUNNERS[runner_of(name)](case))


@pytest.mark.parametrize("name", ["heatmap_two", "vposer_again", "metrics_seed2", "smpl_one"])
def test_a_folder_with_its_own_index(folder: Path, name: str) -> None:
    for root in (folder, folder.parent):
        fixtures = Fixtures("dpmesh", root)
        assert fixtures.held and set(cases_of(fixtures)) == {"heatmap_two", "vposer_again", "metrics_seed2", "smpl_one"}
    run(fixtures, name)


def test_a_folder_without_an_index(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "dpmesh"
    bare.mkdir()
    for name in ("heatmap_two", "smpl_one"):
        (bare / f"{name}.npz").write_bytes((folder / f"{name}.npz").read_bytes())
    fixtures = Fixtures("dpmesh", bare)
    assert set(cases_of(fixtures)) == {"heatmap_two", "smpl_one"}
    for name in cases_of(fixtures):
        run(fixtures, name)


def test_files_beside_an_index_that_does_not_name_them_are_run(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "dpmesh"
    root.mkdir()
    (root / "fixtures.json").write_bytes((OURS / "fixtures.json").read_bytes())
    (root / "heatmap_7.npz").write_bytes((folder / "heatmap_two.npz").read_bytes())
    fixtures = Fixtures("dpmesh", root)
    assert set(cases_of(fixtures)) - set(fixtures.index("fixtures.json")["cases"]) == {"heatmap_7"}
    run(fixtures, "heatmap_7")


def test_wrong_outputs_do_not_pass(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "dpmesh"
    bare.mkdir()
    stored = dict(np.load(folder / "heatmap_two.npz"))
    stored["out.heatmap.value"] = stored["out.heatmap.value"] * 1.001
    np.savez(bare / "heatmap_two.npz", **stored)
    with pytest.raises(AssertionError, match="heatmap: "):
        run(Fixtures("dpmesh", bare), "heatmap_two")


def test_formulas() -> None:
    x = np.float32([-2, 0.5])
    for text, value in {
        "x / 4": x / 4, "2 x + 1": 2 * x + 1, "min(|x|, 1)": [1, 0.5], "clip(0.5 + 0.25 * x, 0, 1)": [0, 0.625],
        "x + [1, 2]": [-1, 2.5], "1e-3 * x": x / 1000,
    }.items():  # fmt: skip
        np.testing.assert_allclose(evaluate(text, {"x": x}), value, rtol=1e-6)
    with pytest.raises(AssertionError, match="not understood"):
        evaluate("__import__('os')", {"x": x})
