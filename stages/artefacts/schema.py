"""Does a table have the documented columns? Pure: names, types and shapes in, ArtefactError with one sentence out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.artefacts.kinds import FRAME_DEFAULTS, FRAMES, KINDS, ROOT_ATTRS, ROW_DEFAULTS, ROWS, SCHEMA, Column
from stages.errors import ArtefactError, UsageError

Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
FREE = "extra"  # columns of any name, for one's own use


def find_column(kind: str, name: str) -> Column | None:
    """The documented column `name` of `kind`, None for the free groups. Raises ArtefactError for an unknown one."""
    table = kind_of(kind)
    for column in (*FRAMES, *ROWS, *table.columns):
        if column.name == name:
            return column
    group = name.split("/")[0]
    if group == FREE or group == table.any_group:
        return None
    raise ArtefactError(f"{kind} have no column {name}", f"hmr schema {kind}; columns of your own belong in /{FREE}")


def kind_of(name: str) -> Any:
    """The Kind called `name`. Raises UsageError, naming the choices."""
    if name not in KINDS:
        raise UsageError(f"no kind {name!r}", f"choose one of {', '.join(KINDS)}")
    return KINDS[name]


def check_tables(where: str, kind: str, shapes: Shapes, group_attrs: Mapping[str, Any], schema: str) -> None:
    """Raise ArtefactError, naming `where` and the column, unless the columns are those of `kind`."""
    newer = schema != SCHEMA  # a later minor version may have more columns
    documented = {c.name: c for c in (*FRAMES, *ROWS, *KINDS[kind].columns)}
    for column in documented.values():
        if column.name not in shapes and not column.optional:
            raise ArtefactError(f"{where}: column /{column.name} is missing", f"hmr schema {kind}")
    sizes: dict[tuple[str, str], int] = {}
    for name in sorted(shapes, key=lambda n: (list(documented).index(n) if n in documented else len(documented), n)):
        dtype, shape = shapes[name]
        group = name.split("/")[0]
        if name not in documented and group not in (FREE, KINDS[kind].any_group) and not newer:
            raise ArtefactError(f"{where}: column /{name} is not one of {kind}", f"hmr schema {kind}")
        column = documented.get(name) or Column(name, "f2|f4|f8|i1|i2|i4|i8|u1|u2|u4|b1", ("R", "..."))
        if not any(_same_type(dtype, code) for code in column.dtype.split("|")):
            raise ArtefactError(f"{where}: /{name} has type {dtype}, {column.dtype} is needed", f"hmr schema {kind}")
        if not _fits(column.shape, shape, sizes, group):
            need = ", ".join(
                str(sizes.get(("" if s in "RF" else group, s), s)) if isinstance(s, str) else str(s)
                for s in column.shape
            )
            raise ArtefactError(f"{where}: /{name} has shape {shape}, ({need}) is needed", f"hmr schema {kind}")
    for (group, letter), size in sizes.items():
        names = group_attrs.get(group, {}).get("joints")
        if letter != "J":
            continue
        if names is None and any(a[:2] == (group, "joints") for a in KINDS[kind].group_attrs):
            raise ArtefactError(f"{where}: /{group} does not name its joints", "attribute joints: a JSON list of names")
        if names is not None and len(names) != size:
            raise ArtefactError(f"{where}: /{group} names {len(names)} joints, its columns have {size}")


def _same_type(dtype: np.dtype, code: str) -> bool:
    if code == "str":
        return dtype.kind in "OSU"
    return dtype.kind == np.dtype(code).kind and dtype.itemsize == np.dtype(code).itemsize


def _fits(
    declared: tuple[str | int, ...], shape: tuple[int, ...], sizes: dict[tuple[str, str], int], group: str
) -> bool:
    """Does `shape` agree with `declared`? Letters are bound in `sizes`: R and F for the file, others for the group."""
    if "..." in declared:
        declared = declared[: declared.index("...")]
        shape = shape[: len(declared)]
    if len(declared) != len(shape):
        return False
    for expected, size in zip(declared, shape, strict=True):
        if isinstance(expected, int):
            if expected != size:
                return False
        elif sizes.setdefault(("" if expected in "RF" else group, expected), size) != size:
            return False
    return True


def frame_tables(frames: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns of frames and rows by full name, in their types, with the defaults of stages.artefacts.kinds."""
    return {
        **_table(FRAMES, {**FRAME_DEFAULTS, **frames}, len(frames["name"])),
        **_table(ROWS, {**ROW_DEFAULTS, **rows}, len(rows["frame"])),
    }


def _table(columns: tuple[Column, ...], values: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """Whole columns of frames or rows, from values that may be single defaults."""
    table = {}
    for column in columns:
        short = column.name.split("/")[1]
        if short in values:
            dtype = object if column.dtype == "str" else column.dtype
            value = np.asarray(values[short], dtype=dtype)
            table[column.name] = np.full((n,), value, dtype) if value.ndim == 0 else value
    return table


def rows_fingerprint(frames: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """sha256 over frame names, sizes, and each row's frame and box."""
    digest = hashlib.sha256("\0".join(map(str, frames["name"])).encode("utf-8", "surrogateescape"))
    for values, dtype in ((frames["size"], "<i4"), (rows["frame"], "<i4"), (rows["box"], "<f4")):
        digest.update(np.ascontiguousarray(values, dtype).tobytes())
    return digest.hexdigest()


def describe(kind: str) -> dict[str, Any]:
    """Everything documented about a kind, for `hmr schema`. Raises UsageError for an unknown kind."""
    table = kind_of(kind)
    columns = [dataclasses.asdict(c) for c in (*FRAMES, *ROWS, *table.columns)]
    if table.any_group:
        columns.append(
            dataclasses.asdict(Column(f"{table.any_group}/<name>", "f2|f4", ("R", "..."), "", "any name and shape"))
        )
    columns.append(dataclasses.asdict(Column(f"{FREE}/<name>", "any", ("R", "..."), "", "columns of your own", True)))
    return {
        "kind": f"hmr/{kind}",
        "schema": SCHEMA,
        "meaning": table.meaning,
        "columns": columns,
        "group_attrs": [list(a) for a in table.group_attrs],
        "attrs": ROOT_ATTRS,
    }
