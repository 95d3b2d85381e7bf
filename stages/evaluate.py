"""Errors of meshes against the ground truth of a data set, row by row, and their means.

    hmr eval synth-oc --meshes people.meshes.h5 -o people.scores.h5

In: a meshes artefact and a data set whose rows are the same. Out: a scores artefact with the error of every row and the
summary (means over rows in float64, so shards and batches change nothing). Rows that failed before are left out and
counted; a row without truth is NaN.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import OK, required_columns
from stages.artefacts.table import Artefact
from stages.datasets.base import Dataset
from stages.datasets.protocols import Protocol, protocol_of
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import InputError
from stages.evaluation.scorer import Scorer, threads
from stages.evaluation.tables import TITLES
from stages.loaders.people import as_artefact
from stages.params import EvaluateParams
from stages.params.rules import check


def run(
    meshes: Path | Artefact,
    dataset: Dataset,
    out: Path | None,
    params: EvaluateParams = EvaluateParams(),
    run: RunOptions = RunOptions(),
) -> Path | Artefact:
    """Score every row of `meshes` against `dataset`; `out` None = in memory.

    Raises ArtefactError when the rows or the body topology differ.
    """
    params = check(params)
    table = as_artefact(meshes, "meshes")
    protocol = protocol_of(params.protocol or dataset.protocol)
    dataset.check(protocol)
    with threads() as pool:
        scorer = Scorer(table, dataset, protocol, pool)
        job = Job(
            stage="evaluate",
            kind="scores",
            params={"dataset": dataset.name, "protocol": protocol.name, "regressor": scorer.regressor},
            inputs={"meshes": table, "detections": dataset.detections},
            columns=required_columns("scores"),
            group_attrs={"errors": {"joints": list(protocol.joints)}},
            attrs={
                "protocol": _described(protocol, scorer.regressor),
                "dataset": dataset.name,
                "subset": dataset.subset,
            },
            batch_size=256,
            finish=summarise,
        )
        return run_rows(job, lambda: scorer, out, run)


def _described(protocol: Protocol, regressor: str) -> dict[str, Any]:
    """Root attribute `protocol`."""
    return {
        **dataclasses.asdict(protocol),
        "regressor": regressor,
        "line": f"{protocol.line()} Regressor: {regressor}.",
    }


def summarise(table: Artefact) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Root attribute `summary`: means over scored rows, how many there are and how many were left out (Job.finish)."""
    ok = table.rows["status"] == OK
    summary: dict[str, Any] = {"rows": len(ok), "failed": int((~ok).sum())}
    for name in TITLES:
        has_column = table.n_rows and table.has(f"errors/{name}")
        values = table.read(f"errors/{name}")[ok].astype(np.float64) if has_column else np.zeros(0)
        values = values[np.isfinite(values)]
        if name in ("mpjpe", "error_2d"):
            summary["scored"] = max(summary.get("scored", 0), len(values))
        summary[name] = float(values.mean()) if len(values) else None
    return {}, {"summary": summary}


def mean_rows(scores: Path | Artefact) -> dict[str, Any]:
    """The summary of a scores artefact. Raises InputError if it has none."""
    table = as_artefact(scores, "scores")
    summary = table.attrs.get("summary")
    if not isinstance(summary, dict):
        raise InputError(f"{table.path}: no summary")
    protocol = table.attrs["protocol"]
    return {"dataset": table.attrs.get("dataset"), "protocol": protocol["name"], "line": protocol["line"], **summary}
