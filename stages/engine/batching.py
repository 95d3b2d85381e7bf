"""Batches of rows through a network: smaller when memory runs out, one by one around a bad row, checked outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, KINDS
from stages.engine.assembly import empty_rows
from stages.engine.job import Job
from stages.errors import ArtefactError, InputError, MachineError

Tables = dict[str, np.ndarray]


@dataclasses.dataclass
class BatchSize:
    """Rows (or frames) at a time; smaller for the rest of a job once memory has run out."""

    rows: int
    reduced: bool = False

    def reduce(self, failed: int) -> None:
        """Halve a batch of `failed` rows that did not fit into memory."""
        self.rows, self.reduced = max(1, failed // 2), True


def in_batches(
    compute: Callable[..., Any], indices: np.ndarray, size: BatchSize, report: Any, *, all_or_none: bool = False
) -> Iterator[tuple[np.ndarray, Any]]:
    """(indices, compute(indices)) batch by batch.

    The batch is halved when memory runs out; its members go one by one when an input error hits one of several.
    all_or_none: an input error of a single one is raised, not returned as its "error". Raises MachineError when memory
    does not suffice for one.
    """
    singles = 0  # how many of the next go one by one
    while len(indices):
        batch = indices[: 1 if singles else size.rows]
        try:
            values = compute(batch)
        except ArtefactError:
            raise
        except InputError as error:
            if len(batch) > 1:
                singles = len(batch)
                continue
            if all_or_none:
                raise
            values = {"error": [error.message]}
        except Exception as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MachineError(
                    "out of memory with a single row", "use another --device; the same command resumes"
                ) from error
            size.reduce(len(batch))
            report.warn(f"out of memory: going on with batches of {size.rows}")
            continue
        yield batch, values
        indices, singles = indices[len(batch) :], max(0, singles - 1)


def _out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error))
    )


def store(job: Job, part: Tables, rows: np.ndarray, n: int, values: Mapping[str, Any]) -> None:
    """Put a batch's columns at `rows` of a part of `n` rows; failed and non-finite rows become NaN with a reason."""
    values = dict(values)
    errors = np.array(values.pop("error", None) if values.get("error") is not None else [""] * len(rows), object)
    if len(errors) != len(rows):
        raise ArtefactError(f"{job.stage}: the model returned {len(errors)} errors for {len(rows)} rows")
    failed = errors != ""
    if failed.all() and not values:
        part["rows/status"][rows], part["rows/error"][rows] = FAILED, errors
        return
    arrays = declared_columns(job, values, len(rows))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and name not in KINDS[job.kind].nan_ok:
            non_finite = ~np.isfinite(array.reshape(len(rows), -1)).all(1) & ~failed
            errors[non_finite] = f"non-finite output in {name}"
            failed |= non_finite
    for name, array in arrays.items():
        if name not in part:
            part[name] = empty_rows(n, array.shape[1:], array.dtype)
        elif part[name].shape[1:] != array.shape[1:]:
            raise ArtefactError(
                f"{job.stage}: {name} has shape {array.shape[1:]}, before it was {part[name].shape[1:]}"
            )
        part[name][rows[~failed]] = array[~failed]
    part["rows/status"][rows[failed]], part["rows/error"][rows[failed]] = FAILED, errors[failed]


def declared_columns(job: Job, values: Mapping[str, Any], n: int) -> Tables:
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
        for expected, size in zip(column.shape[1:], value.shape[1:], strict=False):
            if isinstance(expected, int) and expected != size:
                raise ArtefactError(f"{job.stage}: {name} has shape {value.shape}, {column.shape} is declared")
        arrays[name] = value.astype(
            column.dtype.split("|")[0] if value.dtype.str[1:] not in column.dtype else value.dtype, copy=False
        )
    return arrays
