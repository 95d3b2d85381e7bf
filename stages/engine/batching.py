"""Batches of rows through a network: smaller when memory runs out, one by one around a bad row, checked outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, KINDS
from stages.engine.assembly import empty_rows
from stages.engine.job import Job
from stages.errors import ArtefactError, InputError, MachineError

Tables = dict[str, np.ndarray]


def attempt(
    compute: Callable[..., Any], index: np.ndarray, batch: list[int], report: Any, whole: bool = False
) -> Iterator[tuple[np.ndarray, Any]]:
    """compute(index), halving the batch when memory runs out, one by one when an input error hits one of many."""
    try:
        yield index, compute(index)
        return
    except ArtefactError:
        raise
    except InputError as error:
        if len(index) == 1:
            if whole:
                raise
            yield index, {"error": [error.message]}
            return
        step = 1
    except Exception as error:
        if not _out_of_memory(error):
            raise
        if len(index) == 1:
            raise MachineError(
                "out of memory with a single row", "use another --device; the same command resumes"
            ) from error
        step = batch[0] = max(1, len(index) // 2)
        report.warn(f"out of memory: going on with batches of {step}")
    while len(index):
        now, index = index[:step], index[step:]
        yield from attempt(compute, now, batch, report, whole)
        step = min(step, batch[0])


def _out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error))
    )


def store(job: Job, part: Tables, rows: np.ndarray, n: int, values: Mapping[str, Any]) -> None:
    """Put a batch's columns at `rows` of the part; failed and non-finite rows become NaN with a reason."""
    values = dict(values)
    errors = np.array(values.pop("error", None) if values.get("error") is not None else [""] * len(rows), object)
    if len(errors) != len(rows):
        raise ArtefactError(f"{job.stage}: the model returned {len(errors)} errors for {len(rows)} rows")
    bad = errors != ""
    if bad.all() and not values:
        part["rows/status"][rows], part["rows/error"][rows] = FAILED, errors
        return
    arrays = columns_of(job, values, len(rows))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and name not in KINDS[job.kind].nan_ok:
            broken = ~np.isfinite(array.reshape(len(rows), -1)).all(1) & ~bad
            errors[broken] = f"non-finite output in {name}"
            bad |= broken
    for name, array in arrays.items():
        if name not in part:
            part[name] = empty_rows(n, array.shape[1:], array.dtype)
        elif part[name].shape[1:] != array.shape[1:]:
            raise ArtefactError(
                f"{job.stage}: {name} has shape {array.shape[1:]}, before it was {part[name].shape[1:]}"
            )
        part[name][rows[~bad]] = array[~bad]
    part["rows/status"][rows[bad]], part["rows/error"][rows[bad]] = FAILED, errors[bad]


def columns_of(job: Job, values: Mapping[str, Any], n: int) -> Tables:
    """A batch's arrays in the declared types and shapes. Raises ArtefactError naming the column."""
    declared = {c.name: c for c in job.columns}
    arrays: Tables = {}
    if unknown := sorted(set(values) - set(declared)):
        raise ArtefactError(f"{job.stage}: the model returned {', '.join(unknown)}, which it does not declare")
    for name, column in declared.items():
        if name not in values:
            if column.optional:
                continue
            raise ArtefactError(f"{job.stage}: the model returned no {name}, which it declares")
        value = values[name]
        value = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        if len(value) != n or (len(value.shape) != len(column.shape) and "..." not in column.shape):
            raise ArtefactError(f"{job.stage}: {name} has shape {value.shape} for {n} rows, {column.shape} is declared")
        for want, size in zip(column.shape[1:], value.shape[1:], strict=False):
            if isinstance(want, int) and want != size:
                raise ArtefactError(f"{job.stage}: {name} has shape {value.shape}, {column.shape} is declared")
        arrays[name] = value.astype(
            column.dtype.split("|")[0] if value.dtype.str[1:] not in column.dtype else value.dtype, copy=False
        )
    return arrays
