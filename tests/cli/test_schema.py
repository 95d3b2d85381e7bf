"""`hmr schema`: the documentation is what is checked, column by column."""

from __future__ import annotations

import json

import pytest

from stages.artefacts.kinds import KINDS
from tests.helpers.cli import hmr


def test_all_kinds_are_listed() -> None:
    done = hmr("schema")
    assert done.returncode == 0 and all(f"{kind}: " in done.stdout for kind in KINDS)


@pytest.mark.parametrize("kind", ["meshes", "features"])
def test_columns_have_type_shape_and_meaning(kind: str) -> None:
    done = hmr("schema", kind)
    assert done.returncode == 0 and "rows/box" in done.stdout and "(R, 4)" in done.stdout and "[px]" in done.stdout
    table = json.loads(hmr("schema", kind, "--json").stdout)
    assert {c.name for c in KINDS[kind].columns} <= {c["name"] for c in table["columns"]}
    assert all(c["dtype"] and c["shape"] and c["meaning"] for c in table["columns"])


def test_unknown_kind() -> None:
    done = hmr("schema", "meals")
    assert done.returncode == 2 and "no kind 'meals'" in done.stderr and "meshes" in done.stderr
