"""Scores as Markdown or LaTeX tables, our rows beside the published ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.files.folders import packaged

# The errors that are averaged over rows (errors/NAME in scores), with the headings of their columns in tables.
TITLES = {
    "mpjpe": "MPJPE",
    "pa_mpjpe": "PA-MPJPE",
    "mpve": "MPVE",
    "occ_mpjpe": "OCC-MPJPE",
    "occ_pa_mpjpe": "OCC-PA-MPJPE",
    "acceleration": "Accel",
    "error_2d": "2D px",
    "pck": "PCK",
}


@functools.cache
def published() -> dict[str, Any]:
    """The papers' own tables: {data set: {protocol, source, rows, methods: {name: [mpjpe, pa_mpjpe, mpve, accel]}}}."""
    text = packaged("datasets/published.json").read_text()
    return json.loads(text)["tables"]


def published_rows(dataset: str) -> list[dict[str, Any]]:
    """The published rows of a data set, as table rows; none for one that no paper reports."""
    table = published().get(dataset, {"methods": {}})
    names = ("mpjpe", "pa_mpjpe", "mpve", "acceleration")
    return [{"method": m, **dict(zip(names, values, strict=False))} for m, values in table["methods"].items()]


def source(dataset: str) -> str:
    """Where the published rows of a data set are from, and the protocol they follow."""
    entry = published()[dataset]
    return f"{entry['source']}; protocol {entry['protocol']}"


def table(rows: Sequence[Mapping[str, Any]], style: str = "markdown", first: str = "method") -> str:
    """Rows (a name under `first`, numbers under TITLES' keys) as Markdown or LaTeX; empty columns are left out."""
    keys = [key for key in TITLES if any(row.get(key) is not None for row in rows)]
    head = [first.replace("_", " "), *(TITLES[key] for key in keys)]
    body = [[str(row[first]), *(_number(row.get(key), key) for key in keys)] for row in rows]
    if style == "latex":
        lines = [" & ".join(map(_escape, line)) + r" \\" for line in [head, *body]]
        lines.insert(1, r"\midrule")
        spec = "l" + "r" * len(keys)
        return "\n".join([rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        _line(head, widths),
        "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|",
    ]
    return "\n".join([*lines, *(_line(line, widths) for line in body)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(padded) + " |"


def _number(value: Any, key: str) -> str:
    return "-" if value is None else f"{value:.3f}" if key == "pck" else f"{value:.1f}"


def _escape(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%")
