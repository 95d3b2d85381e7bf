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
from stages.datasets.base import Dataset
from stages.datasets.protocols import Protocol, protocol_of
from stages.errors import InputError
from stages.evaluation.scorer import make_scorer, threads
from stages.params import EvaluateParams, check

MEANS = ("mpjpe", "pa_mpjpe", "mpve", "occ_mpjpe", "occ_pa_mpjpe", "acceleration", "error_2d", "pck")


def run(meshes: Any, dataset: Dataset, out: Path | None, params: EvaluateParams, run: Any) -> Any:
    """Score every row of `meshes` (path or Artefact) against `dataset`; `out` None = in memory.

    Raises ArtefactError when the rows or the body topology differ.
    """
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.table import Artefact
    from stages.engine.job import Job
    from stages.engine.runner import run_rows

    params = check(params)
    table = meshes if isinstance(meshes, Artefact) else open_artefact(meshes, "meshes")
    protocol = protocol_of(params.protocol or dataset.protocol)
    dataset.check(protocol)
    with threads() as pool:
        score, regressor = make_scorer(table, dataset, protocol, pool)
        job = Job(
            stage="evaluate",
            kind="scores",
            params={"dataset": dataset.name, "protocol": protocol.name, "regressor": regressor},
            inputs={"meshes": table, "detections": dataset.detections},
            columns=required_columns("scores"),
            group_attrs={"errors": {"joints": list(protocol.joints)}},
            attrs={
                "protocol": _described(protocol, regressor),
                "dataset": dataset.name,
                "subset": dataset.subset,
            },
            batch_size=256,
            finish=summarise,
        )
        return run_rows(job, lambda: score, out, run)


def _described(protocol: Protocol, regressor: str) -> dict[str, Any]:
    """Root attribute `protocol`."""
    return {
        **dataclasses.asdict(protocol),
        "regressor": regressor,
        "line": f"{protocol.line()} Regressor: {regressor}.",
    }


def summarise(table: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Root attribute `summary`: means over scored rows, how many there are and how many were left out (Job.finish)."""
    ok = table.rows["status"] == OK
    summary: dict[str, Any] = {"rows": len(ok), "failed": int((~ok).sum())}
    for name in MEANS:
        have = table.n_rows and table.has(f"errors/{name}")
        values = table.read(f"errors/{name}")[ok].astype(np.float64) if have else np.zeros(0)
        values = values[np.isfinite(values)]
        if name in ("mpjpe", "error_2d"):
            summary["scored"] = max(summary.get("scored", 0), len(values))
        summary[name] = float(values.mean()) if len(values) else None
    return {}, {"summary": summary}


def mean_rows(scores: Any) -> dict[str, Any]:
    """The summary of a scores artefact (path or Artefact). Raises InputError if it has none."""
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.table import Artefact

    table = scores if isinstance(scores, Artefact) else open_artefact(scores, "scores")
    summary = table.attrs.get("summary")
    if not isinstance(summary, dict):
        raise InputError(f"{table.path}: no summary")
    protocol = table.attrs["protocol"]
    return {"dataset": table.attrs.get("dataset"), "protocol": protocol["name"], "line": protocol["line"], **summary}
