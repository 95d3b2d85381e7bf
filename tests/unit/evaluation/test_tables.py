"""Tables that can be pasted, and the paired bootstrap."""

from __future__ import annotations

import numpy as np

from stages.evaluation import tables
from stages.evaluation.compare import interval

ROWS = [{"method": "a_b", "mpjpe": 70.94, "pa_mpjpe": 48.0}, {"method": "ours", "mpjpe": 70.0, "pa_mpjpe": None}]


def test_markdown_lines_up_and_leaves_out_empty_columns() -> None:
    lines = tables.table(ROWS).splitlines()
    assert lines[0].split("|")[1:-1] == [" method ", " MPJPE ", " PA-MPJPE "]
    assert len({len(line) for line in lines}) == 1
    assert "70.9" in lines[2] and lines[3].rstrip(" |").endswith("-")


def test_latex_escapes() -> None:
    text = tables.table(ROWS, "latex")
    assert r"a\_b & 70.9 & 48.0 \\" in text and text.startswith(r"\begin{tabular}{lrr}")


def test_published_numbers_name_their_source_and_protocol() -> None:
    from stages.datasets.protocols import PROTOCOLS

    for name, table in tables.published().items():
        assert table["protocol"] in PROTOCOLS and table["source"], name
    assert {"method": "DPMesh", "mpjpe": 82.2, "pa_mpjpe": 56.6, "mpve": 105.4} in tables.published_rows("3dpw-pc")
    assert tables.published_rows("synth-oc") == []


def test_the_interval_covers_a_known_mean() -> None:
    rng = np.random.default_rng(1)
    covered = sum(low < 2.0 < high for low, high in (interval(rng.normal(2, 5, 80)) for _ in range(60)))
    assert covered >= 50
    assert interval(np.full(10, -3.0)) == (-3.0, -3.0)
