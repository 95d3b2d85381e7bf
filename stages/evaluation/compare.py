"""Is one set of scores better than another? Means, their difference, and a paired bootstrap interval.

Rows are paired by position, so both must come from the same detections; rows that either could not score are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.engine.provenance import check_rows_agree
from stages.errors import ArtefactError
from stages.evaluation.tables import TITLES
from stages.loaders.people import as_artefact

RESAMPLES, SEED, CHUNK = 2_000, 0, 50


def compare(first: Path | Artefact, second: Path | Artefact, *, share: float = 0.95) -> dict[str, Any]:
    """{metric: {a, b, difference (b - a), low, high, rows}} in mm; low to high holds `share` of the resamples.

    Raises ArtefactError when rows or protocols differ.
    """
    a, b = (as_artefact(scores, "scores") for scores in (first, second))
    check_rows_agree({"a": a, "b": b})
    lines = [x.attrs["protocol"]["line"] for x in (a, b)]
    if lines[0] != lines[1]:
        names = " and ".join(x.attrs["protocol"]["name"] for x in (a, b))
        raise ArtefactError(f"the scores follow different protocols: {names}", "score both with one --protocol")
    ok = (a.rows["status"] == OK) & (b.rows["status"] == OK)
    result = {}
    for name in (n for n in TITLES if a.has(f"errors/{n}") and b.has(f"errors/{n}")):
        x, y = (table.read(f"errors/{name}")[ok].astype(np.float64) for table in (a, b))
        both = np.isfinite(x) & np.isfinite(y)
        if both.any():
            low, high = interval(y[both] - x[both], share)
            mean_a, mean_b = float(x[both].mean()), float(y[both].mean())
            means = {"a": mean_a, "b": mean_b, "difference": mean_b - mean_a}
            result[name] = means | {"low": low, "high": high, "rows": int(both.sum())}
    return result


def interval(differences: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The bootstrap interval of the mean of paired differences (n,): percentiles over resamples of rows, fixed seed."""
    rng, n = np.random.default_rng(SEED), len(differences)
    means = [differences[rng.integers(0, n, (CHUNK, n))].mean(1) for _ in range(0, RESAMPLES, CHUNK)]
    low, high = np.quantile(np.concatenate(means), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
