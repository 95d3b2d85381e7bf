"""Whole tables from parts: one look at every part, then a copy part by part, so memory does not grow with the rows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefact import Artefact, Writer, memory, open_artefact, rows_fingerprint
from stages.columns import Column
from stages.disk import check_space, disk, marked, replace
from stages.errors import ArtefactError
from stages.parts import Parts, n_parts, part_range, root_attrs

Finish = Callable[[Artefact], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]


class Plan:
    """What the whole table will look like, from the header and a first look at every part."""

    def __init__(
        self,
        header: Mapping[str, Any],
        tables: Mapping[str, np.ndarray],
        look: Callable[[int], dict[str, Any]],
        read: Callable[[int, str], dict[str, np.ndarray]],
    ) -> None:
        self.header, self.read, self.count = header, read, n_parts(header)
        self.columns = [Column(n, d, tuple(s), optional=o) for n, d, s, o in header["columns"]]
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.starts, stop = [], 0
        for part in range(self.count):
            shapes = look(part)
            self.starts.append(stop)
            a, b = part_range(header, part)
            if header["per"] == "frames" and shapes["frames/status"][1][0] != b - a:
                raise ArtefactError(f"part {part} has {shapes['frames/status'][1][0]} frames, not {b - a}")
            stop += shapes["rows/status"][1][0]
            for column in self.columns:
                if column.name in shapes:
                    size = tuple(shapes[column.name][1][1:])
                    if self.sizes.setdefault(column.name, size) != size:
                        raise ArtefactError(
                            f"{column.name} changes its shape from row to row: {self.sizes[column.name]} and {size}",
                            "the model must give one shape",
                        )
        self.n_rows = stop if header["per"] == "frames" else int(header["n"])
        self.tables = self._tables(dict(tables))

    def _tables(self, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Whole frames and rows: small, so in memory."""
        parts: dict[str, list[np.ndarray]] = {}
        for part in range(self.count):
            for name, values in (self.read(part, "rows/") | self.read(part, "frames/")).items():
                parts.setdefault(name, []).append(values)
        tables.update({name: np.concatenate(values) for name, values in parts.items()})
        return tables

    def fill(self, alloc: Callable[[str, Any, tuple[int, ...]], Any]) -> None:
        """Copy every column, part by part, into what `alloc(name, dtype, shape)` gives."""
        targets = {}
        for column in self.columns:
            if column.name in self.sizes or not column.optional:
                size = self.sizes.get(column.name) or self._unseen_size(column)
                targets[column.name] = alloc(column.name, column.dtype, (self.n_rows, *size))
        for part, start in enumerate(self.starts):
            values = self.read(part, "")
            stop = start + len(values["rows/status"])
            for name, target in targets.items():
                if stop > start and name in values:
                    target[start:stop] = values[name]
                elif stop > start:
                    target[start:stop] = empty_rows(stop - start, target.shape[1:], target.dtype)

    def _unseen_size(self, column: Column) -> tuple[int, ...]:
        """The shape of a row of a column that no row has filled: joints are known by name, other letters become 0."""
        joints = self.header["group_attrs"].get(column.name.split("/")[0], {}).get("joints", ())
        known = {"J": len(joints)}
        return tuple(known.get(s, 0) if isinstance(s, str) else s for s in column.shape[1:])


def empty_rows(n: int, size: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What failed rows hold: NaN, or 0 where the type has none."""
    return np.full((n, *size), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)


def join_in_memory(
    header: Mapping[str, Any], tables: Mapping[str, np.ndarray], parts: list[Any], finish: Finish | None
) -> Artefact:
    """The whole table from parts in memory."""
    shapes = [{n: (v.dtype, v.shape) for n, v in part.items()} for part in parts]
    plan = Plan(
        header, tables, shapes.__getitem__, lambda i, only: {n: v for n, v in parts[i].items() if n.startswith(only)}
    )
    columns: dict[str, np.ndarray] = {}
    plan.fill(lambda name, dtype, shape: columns.setdefault(name, np.empty(shape, dtype)))

    def build(extra_rows: Mapping[str, Any], extra_attrs: Mapping[str, Any]) -> Artefact:
        split = {
            g: {n.split("/")[1]: v for n, v in plan.tables.items() if n.startswith(g)} for g in ("frames/", "rows/")
        }
        return memory(
            header["kind"][4:], frames=split["frames/"], rows={**split["rows/"], **extra_rows}, columns=columns,
            group_attrs=header["group_attrs"], attrs={**root_attrs(header), **extra_attrs},
        )  # fmt: skip

    return build(*finish(build({}, {}))) if finish else build({}, {})


def join_on_disk(parts: Parts, finish: Finish | None, check: Callable[[Path], None]) -> Path:
    """Make the target of whole parts: temporary file, full check, rename, delete the parts."""
    with marked(parts.out.with_name(parts.out.name + ".merging"), parts.out):
        header = parts.header()
        if header is None:
            raise ArtefactError(f"{parts.folder} holds no parts of a run")
        temporary = parts.out.with_name(parts.out.name + ".tmp")
        plan = Plan(
            header,
            parts.tables(),
            lambda i: parts.read(i, header, names=True),
            lambda i, only: parts.read(i, header, only),
        )
        try:
            with disk(parts.out):
                _check_space(parts)
                write_table(
                    temporary, header["kind"][4:], root_attrs(header), header["group_attrs"], plan.tables, plan.fill
                )
                if finish:
                    with open_artefact(temporary) as whole:
                        rows, attrs = finish(whole)
                    tables = plan.tables | {f"rows/{n}": np.asarray(v) for n, v in rows.items()}
                    attrs = {**root_attrs(header), **attrs}
                    write_table(temporary, header["kind"][4:], attrs, header["group_attrs"], tables, plan.fill)
                check(temporary)
                replace(temporary, parts.out)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    parts.discard()
    return parts.out


def write_table(
    path: Path,
    kind: str,
    attrs: Mapping[str, Any],
    group_attrs: Mapping[str, Any],
    tables: Mapping[str, np.ndarray],
    fill: Callable[..., None],
) -> None:
    """A whole artefact at `path`, fsynced, not yet renamed."""
    try:
        with Writer(path) as writer:
            stamped = dict(attrs)
            stamped["rows_fingerprint"] = rows_fingerprint(*_split(tables))
            writer.attrs({**stamped, "kind": f"hmr/{kind}"}, group_attrs)
            for name, values in tables.items():
                writer.put(name, values)
            fill(writer.alloc)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    except RuntimeError as error:  # what h5py says when closing on a full disk
        raise OSError(errno.ENOSPC, str(error)) from error


def _split(tables: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return (
        {n[7:]: v for n, v in tables.items() if n.startswith("frames/")},
        {n[5:]: v for n, v in tables.items() if n.startswith("rows/")},
    )


def _check_space(parts: Parts) -> None:
    need = sum(path.stat().st_size for path in parts.folder.glob("part-*.h5"))
    check_space(parts.out, need)
