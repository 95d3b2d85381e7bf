"""What an artefact says of its origin: how the header of a job is made, and in what two jobs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import ROWS, SCHEMA
from stages.artefacts.schema import find_column
from stages.artefacts.table import Artefact
from stages.engine.header import Header, PartPlan
from stages.engine.job import Job
from stages.errors import ArtefactError
from stages.files.package import installed_version
from stages.params.stored import to_json


def make_header(job: Job, parts: PartPlan, out: Path | None, rows_fingerprint: str) -> Header:
    """The header of `job`. Raises ArtefactError for a column that its kind does not have."""
    for column in job.columns:
        find_column(job.kind, column.name)
    params = json.loads(to_json(job.params)) if dataclasses.is_dataclass(job.params) else dict(job.params or {})
    model = dict(job.model) if job.model else None
    identity = {
        "kind": job.kind,
        "schema": SCHEMA,
        "stage": job.stage,
        "params": params,
        "rows": rows_fingerprint,
        "inputs": [[role, table.fingerprint] for role, table in job.inputs.items()],
        "model": model and {k: model.get(k) for k in ("name", "sha256")},
    }
    root = next((r for table in job.inputs.values() if (r := getattr(table, "root", None)) is not None), None)
    return Header(
        kind=job.kind,
        stage=job.stage,
        params=params,
        inputs=tuple({"role": r, "kind": t.kind, "fingerprint": t.fingerprint} for r, t in job.inputs.items()),
        model=model,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        rows_fingerprint=rows_fingerprint,
        hmr_version=installed_version(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=_command(),
        parts=parts,
        columns=job.columns,
        group_attrs={group: dict(attrs) for group, attrs in job.group_attrs.items()},
        attrs=({} if root is None else {"root": _relative(root, out)}) | dict(job.attrs),
        finish=job.stage if job.finish else "",
    )


def _command() -> str:
    program = os.path.basename(sys.argv[0] or "python")
    return shlex.join(["hmr" if program == "app.py" else program, *sys.argv[1:]])


def _relative(root: Path, out: Path | None) -> str:
    """Where the images are, as seen from the target; no absolute path goes into a file."""
    if out is None:
        return str(Path(root).absolute())
    try:
        return Path(os.path.relpath(root, out.absolute().parent)).as_posix()
    except ValueError:  # another drive
        return ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what two jobs differ, by their root attributes or stored headers: old -> new, in one line."""
    lines = []
    old_params, new_params = old.get("params") or {}, new.get("params") or {}
    for name in sorted({*old_params, *new_params}):
        if old_params.get(name) != new_params.get(name):
            lines.append(f"{name} {old_params.get(name)!r} -> {new_params.get(name)!r}")
    old_inputs = {i["role"]: i["fingerprint"] for i in old.get("inputs") or []}
    new_inputs = {i["role"]: i["fingerprint"] for i in new.get("inputs") or []}
    for role in sorted({*old_inputs, *new_inputs}):
        before, after = old_inputs.get(role) or "none", new_inputs.get(role) or "none"
        if before != after:
            lines.append(f"input {role} {before[:12]} -> {after[:12]}")
    for name in ("kind", "schema", "stage", "part_rows"):
        if name in old and old.get(name) != new.get(name):
            lines.append(f"{name} {old.get(name)} -> {new.get(name)}")
    old_model, new_model = old.get("model") or {}, new.get("model") or {}
    if any(old_model.get(k) != new_model.get(k) for k in ("name", "sha256")):
        lines.append(f"model {_model_name(old_model)} -> {_model_name(new_model)}")
    return "; ".join(lines) or "another origin"


def _model_name(model: Mapping[str, Any]) -> str:
    return f"{model.get('name', 'none')} {str(model.get('sha256') or '')[:12]}".strip()


def estimate_bytes(header: Header) -> int:
    """Bytes of parts and target together, as far as the sizes of the columns are known."""
    row = 0
    for column in (*ROWS, *header.columns):
        if column.dtype != "str":
            joints = len(header.group_attrs.get(column.name.split("/")[0], {}).get("joints") or ()) or 1
            shape = [joints if s == "J" else 1 if isinstance(s, str) else s for s in column.shape[1:]]
            row += np.dtype(column.dtype.split("|")[0]).itemsize * int(np.prod(shape))
    return int(2.1 * row * header.parts.n)


def check_rows_agree(inputs: Mapping[str, Artefact]) -> None:
    """Raise ArtefactError with both fingerprints and the first differing row unless all inputs have the same rows."""
    (first_role, first), *others = inputs.items()
    for role, other in others:
        if other.rows_fingerprint == first.rows_fingerprint:
            continue
        fingerprints = f"{first_role} {first.rows_fingerprint[:12]}, {role} {other.rows_fingerprint[:12]}"
        raise ArtefactError(
            f"the rows of {first.path or first_role} and {other.path or role} differ ({fingerprints}): "
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
