"""What an artefact says of its origin: the header of a job, fingerprints, and what makes two jobs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import ROWS, SCHEMA
from stages.artefacts.schema import find_column
from stages.artefacts.table import Artefact
from stages.engine.job import Job
from stages.errors import ArtefactError
from stages.params import to_json


def make_header(job: Job, per: str, n: int, part_rows: int, out: Path | None, rows_print: str) -> dict[str, Any]:
    """The root attributes of what the job makes, and what its parts need to be joined by."""
    params = json.loads(to_json(job.params)) if dataclasses.is_dataclass(job.params) else dict(job.params or {})
    inputs = [{"role": r, "kind": a.kind, "fingerprint": a.fingerprint} for r, a in job.inputs.items()]
    model = dict(job.model) if job.model else None
    for column in job.columns:
        find_column(job.kind, column.name)
    program = os.path.basename(sys.argv[0] or "python")
    identity = {
        "kind": job.kind, "schema": SCHEMA, "stage": job.stage, "params": params, "rows": rows_print,
        "inputs": [[i["role"], i["fingerprint"]] for i in inputs],
        "model": model and {k: model.get(k) for k in ("name", "sha256")},
    }  # fmt: skip
    header: dict[str, Any] = {
        "kind": f"hmr/{job.kind}", "schema": SCHEMA, "stage": job.stage, "params": params, "inputs": inputs,
        "model": model, "rows_fingerprint": rows_print, "hmr_version": _version(),
        "fingerprint": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["hmr" if program == "app.py" else program, *sys.argv[1:]]),
        **job.attrs,
        "per": per, "n": n, "part_rows": part_rows, "group_attrs": {g: dict(a) for g, a in job.group_attrs.items()},
        "columns": [[c.name, c.dtype, list(c.shape), c.optional] for c in job.columns],
        "finish": job.stage if job.finish else "",
    }  # fmt: skip
    root = next((r for a in job.inputs.values() if (r := getattr(a, "root", None)) is not None), None)
    if root is not None and "root" not in header:
        header["root"] = _relative(root, out)
    return header


def _relative(root: Path, out: Path | None) -> str:
    """Where the pictures are, as seen from the target; no absolute path goes into a file."""
    if out is None:
        return str(Path(root).absolute())
    try:
        return Path(os.path.relpath(root, out.absolute().parent)).as_posix()
    except ValueError:  # another drive
        return ""


def _version() -> str:
    try:
        return version("hmr")
    except PackageNotFoundError:
        return "unknown"


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    """What makes two jobs different, old -> new, in one line."""
    found = []
    old, new = have.get("params") or {}, want.get("params") or {}
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            found.append(f"{name} {old.get(name)!r} -> {new.get(name)!r}")
    olds = {i["role"]: i["fingerprint"] for i in have.get("inputs") or []}
    news = {i["role"]: i["fingerprint"] for i in want.get("inputs") or []}
    for role in sorted({*olds, *news}):
        if olds.get(role) != news.get(role):
            found.append(f"input {role} {(olds.get(role) or 'none')[:12]} -> {(news.get(role) or 'none')[:12]}")
    for name in ("kind", "schema", "stage", "part_rows"):
        if name in have and have.get(name) != want.get(name):
            found.append(f"{name} {have.get(name)} -> {want.get(name)}")
    old_model, new_model = have.get("model") or {}, want.get("model") or {}
    if any(old_model.get(k) != new_model.get(k) for k in ("name", "sha256")):
        found.append(f"model {_model_name(old_model)} -> {_model_name(new_model)}")
    return "; ".join(found) or "another origin"


def _model_name(model: Mapping[str, Any]) -> str:
    return f"{model.get('name', 'none')} {str(model.get('sha256') or '')[:12]}".strip()


def estimate(job: Job, header: Mapping[str, Any]) -> int:
    """Bytes of parts and target together, as far as the sizes of the columns are known."""
    row = 0
    for column in (*ROWS, *job.columns):
        if column.dtype != "str":
            joints = len((job.group_attrs.get(column.name.split("/")[0]) or {}).get("joints") or ()) or 1
            size = [joints if s == "J" else 1 if isinstance(s, str) else s for s in column.shape[1:]]
            row += np.dtype(column.dtype.split("|")[0]).itemsize * int(np.prod(size))
    return int(2.1 * row * int(header["n"]))


def check_rows_agree(inputs: Mapping[str, Artefact]) -> None:
    """Raise ArtefactError with both fingerprints and the first differing row unless all inputs have the same rows."""
    (first_role, first), *others = inputs.items()
    for role, other in others:
        if other.rows_fingerprint == first.rows_fingerprint:
            continue
        prints = f"{first_role} {first.rows_fingerprint[:12]}, {role} {other.rows_fingerprint[:12]}"
        raise ArtefactError(
            f"the rows of {first.path or first_role} and {other.path or role} differ ({prints}): "
            + _first_difference(first, other),
            "use artefacts made from the same detections",
        )


def _first_difference(a: Artefact, b: Artefact) -> str:
    if a.n_rows != b.n_rows:
        return f"{a.n_rows} and {b.n_rows} rows"
    for row in range(a.n_rows):
        i, j = int(a.rows["frame"][row]), int(b.rows["frame"][row])
        if a.frames["name"][i] != b.frames["name"][j]:
            return f"row {row} is in {a.frames['name'][i]!r} and {b.frames['name'][j]!r}"
        if not np.array_equal(a.rows["box"][row], b.rows["box"][row], equal_nan=True):
            return f"row {row} has box {a.rows['box'][row].tolist()} and {b.rows['box'][row].tolist()}"
    return "the frames differ"
