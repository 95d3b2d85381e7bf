"""Artefacts: tables of rows with documented columns; `Artefact` is the same read-only table from file or memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import SCHEMA
from stages.artefacts.schema import check_tables, find_column, frame_tables, rows_fingerprint
from stages.errors import ArtefactError

Arrays = Mapping[str, np.ndarray]


class Artefact:
    """A read-only table of frames and rows. Use as a context manager; `read` raises ArtefactError on damaged data.

    `frames` and `rows` are dicts of whole columns, keyed without the group ("name", "box"); all other columns are read
    on demand by "group/name".
    """

    def __init__(
        self,
        kind: str,
        path: Path | None,
        attrs: dict[str, Any],
        group_attrs: dict[str, dict[str, Any]],
        columns: Mapping[str, Any],
        close: Callable[[], None] | None = None,
    ) -> None:
        self.kind, self.path, self.attrs, self._group_attrs, self._columns = kind, path, attrs, group_attrs, columns
        self._close = close
        self.frames = {n.split("/")[1]: self._whole(n) for n in columns if n.startswith("frames/")}
        self.rows = {n.split("/")[1]: self._whole(n) for n in columns if n.startswith("rows/")}
        self.n_frames, self.n_rows = len(self.frames["name"]), len(self.rows["frame"])

    def __enter__(self) -> Artefact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._close is not None:
            self._close()

    @property
    def fingerprint(self) -> str:
        """sha256 over what made this table (kind, stage, params, inputs, model), else over its contents."""
        if not self.attrs.get("fingerprint"):
            self.attrs["fingerprint"] = content_fingerprint(self)
        return str(self.attrs["fingerprint"])

    @property
    def rows_fingerprint(self) -> str:
        """sha256 over frame names, sizes and boxes: equal for artefacts whose rows are the same."""
        if not self.attrs.get("rows_fingerprint"):
            self.attrs["rows_fingerprint"] = rows_fingerprint(self.frames, self.rows)
        return str(self.attrs["rows_fingerprint"])

    @property
    def root(self) -> Path | None:
        """The folder that frame names are relative to, as far as it is known."""
        root = self.attrs.get("root")
        return None if root is None else (self.path.parent / root if self.path else Path(root))

    def columns(self) -> list[str]:
        """Names of the columns besides frames and rows, sorted."""
        return sorted(n for n in self._columns if not n.startswith(("frames/", "rows/")))

    def has(self, name: str) -> bool:
        return name in self._columns

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._column(name).shape)

    def dtype(self, name: str) -> np.dtype:
        return self._column(name).dtype

    def group_attrs(self, group: str) -> dict[str, Any]:
        """Attributes of a group; lists such as `joints` are decoded."""
        return dict(self._group_attrs.get(group, {}))

    def read(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Column `name` (n, ...) of the given rows, of all without them. Raises ArtefactError if absent or damaged."""
        column = self._column(name)
        if rows is None:
            return np.asarray(column[()])
        if isinstance(rows, slice):
            return np.asarray(column[rows])
        index = np.asarray(rows)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        if not len(index):
            return np.asarray(column[0:0])
        low, high = int(index.min()), int(index.max()) + 1
        if low < 0 or high > column.shape[0]:
            raise IndexError(f"rows {low} to {high - 1} of {column.shape[0]}")
        if high - low > 4 * len(index) + 256:  # far apart: HDF5 reads sorted distinct points
            points, back = np.unique(index, return_inverse=True)
            return np.asarray(column[points])[back]
        block = np.asarray(column[low:high])  # close together: one slice is many times faster than points
        return block if np.array_equal(index, np.arange(low, high)) else block[index - low]

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            existing = ", ".join(self.columns()) or "none"
            raise ArtefactError(f"{self.path or 'the table'} has no column {name} (it has {existing})", "hmr info FILE")
        return self._columns[name]

    def _whole(self, name: str) -> np.ndarray:
        column = self._columns[name]
        return column if isinstance(column, np.ndarray) else column.whole()


def in_memory(
    kind: str,
    *,
    frames: Mapping[str, Any],
    rows: Mapping[str, Any],
    columns: Arrays,
    group_attrs: Mapping[str, Mapping[str, Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Artefact:
    """An artefact in memory. frames needs name, size, K; rows needs frame, box; the rest has defaults
    (stages.artefacts.kinds).

    `columns` are keyed "group/name" and are cast to the documented types. Raises ArtefactError for what does not fit.
    """
    tables = frame_tables(frames, rows)
    for name, values in columns.items():
        column = find_column(kind, name)
        values = np.asarray(values)
        tables[name] = values if column is None or "|" in column.dtype else values.astype(column.dtype, copy=False)
    groups = {g: dict(a) for g, a in (group_attrs or {}).items()}
    attrs = {"kind": f"hmr/{kind}", "schema": SCHEMA, "stage": "", "params": {}, "inputs": [], **(attrs or {})}
    shapes = {n: (a.dtype, a.shape) for n, a in tables.items()}
    check_tables("the table in memory", kind, shapes, groups, SCHEMA)
    return Artefact(kind, None, dict(attrs), groups, tables)


def content_fingerprint(artefact: Artefact) -> str:
    """sha256 over everything in the table: the identity of a table that no stage has made."""
    digest = hashlib.sha256(f"{artefact.kind} {rows_fingerprint(artefact.frames, artefact.rows)}".encode())
    for name in ("frames/K", "frames/status", "rows/score", "rows/track", "rows/status", *artefact.columns()):
        values = artefact.read(name)
        digest.update(f"{name}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
