"""Whole tables from parts: a pass over every part for its shapes, then a copy part by part in constant memory."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import CHUNK_BYTES, Writer, amend, open_artefact
from stages.artefacts.kinds import Column
from stages.artefacts.schema import rows_fingerprint
from stages.artefacts.table import Artefact, in_memory
from stages.artefacts.validate import check_file
from stages.engine.header import Header
from stages.engine.parts import Parts, Tables
from stages.errors import ArtefactError
from stages.files.atomic import check_space, disk_errors, fsync_folder, replacing
from stages.files.locks import write_lock

# What a job's `finish` does: the whole table in; row columns to replace (not frame, not box) and root attributes out.
Finish = Callable[[Artefact], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]
Read = Callable[[int, tuple[str, ...]], tuple[dict[str, Any], Tables]]
TABLES = ("frames/", "rows/")


class TablePlan:
    """Names, types and shapes of the whole table, from the header and a first pass over every part
    (read(part, only) -> shapes, columns). `tables`: whole frames and rows, which are small enough for memory."""

    def __init__(self, header: Header, tables: Tables, read: Read) -> None:
        self.header, self.read, self.columns = header, read, header.columns
        self.sizes: dict[str, tuple[Any, ...]] = {}  # (dtype, *shape of a row)
        self.hints: dict[str, tuple[Any, ...]] = {}  # the same from parts without rows
        pieces: dict[str, list[np.ndarray]] = {}
        self.counts = []
        for part, (start, stop) in enumerate(header.parts.ranges()):
            shapes, part_tables = read(part, TABLES)
            per = header.parts.per
            if per != "whole" and (n := len(part_tables[f"{per}/status"])) != stop - start:
                raise ArtefactError(f"part {part} has {n} {per}, not {stop - start}")
            self.counts.append(len(part_tables["rows/status"]))
            for name, values in part_tables.items():
                pieces.setdefault(name, []).append(values)
            for column in self.columns:
                if column.name in shapes:
                    dtype, (count, *size) = shapes[column.name]
                    self._bind(column.name, (dtype, *size), count)
        self.n_rows = sum(self.counts)
        self.tables = tables | {name: np.concatenate(values) for name, values in pieces.items()}

    def _bind(self, name: str, size: tuple[Any, ...], count: int) -> None:
        first = (self.sizes if count else self.hints).setdefault(name, size)
        if count and first != size:
            raise ArtefactError(f"{name} changes from part to part: {first} and {size}", "one model, one shape")

    def fill(self, alloc: Callable[[str, Any, tuple[int, ...]], Any]) -> None:
        """Copy every column, part by part, into the array that `alloc(name, dtype, shape)` returns."""
        targets = {}
        for column in self.columns:
            if column.name in self.sizes or column.name in self.hints or not column.optional:
                dtype, *size = self.sizes.get(column.name) or self._declared_size(column)
                targets[column.name] = alloc(column.name, dtype, (self.n_rows, *size))
        start = 0
        for part, count in enumerate(self.counts):
            values = self.read(part, ("",))[1] if count else {}
            for name, target in targets.items() if count else ():
                rows = values.get(name)
                target[start : start + count] = (
                    empty_rows(count, target.shape[1:], target.dtype) if rows is None else rows
                )
            start += count

    def bytes_needed(self) -> int:
        """An upper bound of the artefact's size: columns with whole chunks, tables twice (see amend), attributes."""
        tables = sum(
            (len(v) * max([1, *(len(str(x).encode("utf-8", "replace")) for x in v)]) if v.dtype == object else v.nbytes)
            for v in self.tables.values()
        )
        columns = 0
        for column in self.columns:
            dtype, *size = self.sizes.get(column.name) or self._declared_size(column)
            row = np.dtype(dtype).itemsize * int(np.prod(size, dtype=object))
            columns += row * self.n_rows + CHUNK_BYTES + 64 * (1 + row * self.n_rows // CHUNK_BYTES)
        texts = len(json.dumps(self.header.to_json(), default=str))
        return 2 * tables + columns + 2 * texts + (1 << 17)

    def _declared_size(self, column: Column) -> tuple[Any, ...]:
        """dtype and row shape of a column that no row has filled: what is declared, J by the joints' names, other
        letters as in an empty part, else 0."""
        joints = self.header.group_attrs.get(column.name.split("/")[0], {}).get("joints", ())
        dtype, *hint = self.hints.get(column.name, (column.dtype.split("|")[0], *[0] * (len(column.shape) - 1)))
        if "..." in column.shape:
            return (dtype, *hint)
        size = (
            s if isinstance(s, int) else len(joints) if s == "J" else h
            for s, h in zip(column.shape[1:], hint, strict=True)
        )
        return (dtype, *size)


def empty_rows(n: int, size: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What failed rows hold: NaN, or 0 where the type has none."""
    return np.full((n, *size), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)


def join_in_memory(header: Header, tables: Tables, parts: list[Tables], finish: Finish | None) -> Artefact:
    """The whole table from parts in memory."""
    shapes = [{n: [v.dtype.str, v.shape] for n, v in part.items()} for part in parts]
    plan = TablePlan(
        header, tables, lambda i, only: (shapes[i], {n: v for n, v in parts[i].items() if n.startswith(only)})
    )
    columns: Tables = {}

    def alloc(name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        columns[name] = np.empty(shape, dtype)
        return columns[name]

    plan.fill(alloc)
    frames, rows = _split(plan.tables)
    whole = in_memory(
        header.kind, frames=frames, rows=rows, columns=columns, group_attrs=header.group_attrs,
        attrs=header.root_attrs() | {"rows_fingerprint": rows_fingerprint(frames, rows)},
    )  # fmt: skip
    if finish:
        more_rows, more_attrs = finish(whole)
        whole.rows.update({n: np.asarray(v) for n, v in more_rows.items()})
        whole.attrs.update(more_attrs)
    return whole


def join_on_disk(parts: Parts, header: Header, finish: Finish | None) -> Path:
    """Make the target of whole parts: temporary file, full check, rename, delete the parts. Raises MachineError."""
    out = parts.out
    with write_lock(out.with_name(out.name + ".merging"), out):
        plan = TablePlan(header, parts.tables(), lambda i, only: parts.read(i, header, only))
        check_space(out, sum(path.stat().st_size for path in parts.folder.glob("part-*.npz")))
        # One name for every process, since only the holder of the lock writes: killed runs leave one file at most.
        with disk_errors(out), replacing(out, temporary=out.with_name(out.name + ".tmp")) as temporary:
            write_table(temporary, plan)
            if finish:
                with open_artefact(temporary) as whole:
                    rows, attrs = finish(whole)
                amend(temporary, rows, attrs)
            check_file(temporary)
        fsync_folder(out.parent)
        parts.discard()
    return out


def write_table(path: Path, plan: TablePlan) -> None:
    """A whole artefact at `path`, not yet synced or renamed."""
    try:
        with Writer(path, reserve=plan.bytes_needed()) as writer:
            attrs = plan.header.root_attrs() | {"rows_fingerprint": rows_fingerprint(*_split(plan.tables))}
            writer.attrs(attrs, plan.header.group_attrs)
            for name, values in plan.tables.items():
                writer.put(name, values)
            plan.fill(writer.alloc)
    except RuntimeError as error:  # what HDF5 raises for a write that failed
        raise OSError(errno.EIO, str(error)) from error


def _split(tables: Mapping[str, np.ndarray]) -> tuple[Tables, Tables]:
    return (
        {n[7:]: v for n, v in tables.items() if n.startswith("frames/")},
        {n[5:]: v for n, v in tables.items() if n.startswith("rows/")},
    )
