"""Artefacts as HDF5 files. The only module that imports h5py.

A file is trusted only after `open_artefact` has seen that it holds nothing but plain, bounded arrays of the documented
names, types and shapes. Files are written whole or not at all: engine/assembly.py writes beside the target and renames.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stages.artefacts.kinds import KINDS, SCHEMA, identify_foreign
from stages.artefacts.schema import check_tables
from stages.artefacts.table import Artefact
from stages.errors import ArtefactError, InputError

CHUNK_BYTES = 1 << 20
LIMITS = {"bytes": 1 << 42, "chunk": 1 << 26, "ratio": 100, "attribute": 1 << 26}
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
JSON_ATTRS = ("params", "inputs", "model", "protocol", "summary", "joints")
LONG = "long_attributes"  # HDF5 holds at most 64 kB in an attribute; longer texts become u1 arrays in this group


def open_artefact(path: str | os.PathLike[str], kind: str | None = None) -> Artefact:
    """Open an artefact file, of the given kind if one is given.

    Raises ArtefactError (one line: what, which path inside the file) for a file that is missing, damaged, foreign, of
    another kind or of a newer schema; InputError if there is no such file. Contents are read later, checksums verified.
    """
    path = Path(path)
    file = _open_file(path)
    try:
        with _damage(path):
            columns, attrs, group_attrs = _read_tree(file, path)
        stored = str(attrs.get("kind", ""))
        if not stored.startswith("hmr/") or stored[4:] not in KINDS:
            raise ArtefactError(f"{path}: {f'unknown kind {stored!r}' if stored else 'not an hmr artefact (no kind)'}")
        major = str(attrs.get("schema", "")).split(".")[0]
        if major != SCHEMA.split(".")[0]:
            raise ArtefactError(f"{path}: schema {attrs.get('schema')!r}, this hmr reads {SCHEMA}", "update hmr")
        if kind is not None and stored[4:] != kind:
            raise ArtefactError(f"{path} holds {stored[4:]}, {kind} are needed here", f"give a *.{kind}.h5 file")
        shapes = {n: (d.dtype, tuple(d.shape)) for n, d in columns.items() if not n.startswith(LONG)}
        check_tables(str(path), stored[4:], shapes, group_attrs, str(attrs["schema"]))
        stored_columns = {name: StoredColumn(dataset, path, name) for name, dataset in columns.items()}
        return Artefact(stored[4:], path, attrs, group_attrs, stored_columns, close=file.close)
    except BaseException:
        file.close()
        raise


class StoredColumn:
    """A column of an open file, read on demand. Raises ArtefactError where HDF5 finds damage."""

    def __init__(self, dataset: h5py.Dataset, path: Path, name: str) -> None:
        self._dataset, self._path, self._name = dataset, path, name
        self.shape, self.dtype = dataset.shape, dataset.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        with _damage(self._path, self._name):
            return self._dataset[rows]

    def whole(self) -> np.ndarray:
        """The whole column, text decoded."""
        with _damage(self._path, self._name):
            is_text = h5py.check_string_dtype(self.dtype)
            return self._dataset.asstr()[()] if is_text else self._dataset[()]


def _open_file(path: Path) -> h5py.File:
    if not path.exists():
        near = next((p for p in path.absolute().parents if p.exists()), Path("/"))
        raise InputError(f"{path}: no such file", f"the nearest folder that exists is {near}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, an artefact file is needed")
    try:
        with path.open("rb") as raw:
            head = raw.read(512)
    except PermissionError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from error
    if not head:
        raise ArtefactError(f"{path} is empty", "make it again")
    if not head.startswith(b"\x89HDF\r\n\x1a\n"):
        what, hint = identify_foreign(head)
        raise ArtefactError(f"{path} is not an HDF5 file{what and f' but {what}'}", hint)
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise ArtefactError(f"{path} is damaged: {_one_line(error)}", "make it again") from error


def _read_tree(file: h5py.File, path: Path) -> tuple[dict[str, h5py.Dataset], dict[str, Any], dict[str, Any]]:
    """All datasets by "group/name" and all attributes; everything that could do harm is checked first."""
    columns: dict[str, h5py.Dataset] = {}
    group_attrs: dict[str, Any] = {}
    for group_name in file:
        group = _child(file, group_name, path)
        if not isinstance(group, h5py.Group):
            raise ArtefactError(f"{path}: /{group_name} is not a group")
        group_attrs[group_name] = _read_attrs(group, path)
        for name in group:
            dataset = _child(group, name, path)
            if not isinstance(dataset, h5py.Dataset):
                raise ArtefactError(f"{path}: /{group_name}/{name} is not an array")
            _check_dataset(dataset, path, f"/{group_name}/{name}")
            columns[f"{group_name}/{name}"] = dataset
    attrs = _read_attrs(file, path)
    for name in [n for n in columns if n.startswith(LONG + "/")]:
        dataset = columns.pop(name)
        if dataset.dtype != np.uint8 or dataset.size > LIMITS["attribute"]:
            raise ArtefactError(f"{path}: /{name} is not a text")
        attrs[name.split("/")[1]] = _decode(name.split("/")[1], dataset[()].tobytes().decode())
    group_attrs.pop(LONG, None)
    return columns, attrs, group_attrs


def _child(group: h5py.Group, name: str, path: Path) -> Any:
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ArtefactError(f"{path}: {group.name.rstrip('/')}/{name} is a link, which hmr does not follow")
    return group[name]


def _check_dataset(dataset: h5py.Dataset, path: Path, where: str) -> None:
    """Refuse storage outside the file, types that are not numbers or text, and sizes that the file does not hold."""
    plan, dtype = dataset.id.get_create_plist(), dataset.dtype
    if plan.get_external_count() or dataset.is_virtual:
        raise ArtefactError(f"{path}: {where} keeps its data in other files, which hmr does not follow")
    if dtype.kind not in "fiub" and h5py.check_string_dtype(dtype) is None:
        raise ArtefactError(f"{path}: {where} is neither numbers nor text ({_type_name(dtype)})")
    filters = {plan.get_filter(i)[0] for i in range(plan.get_nfilters())}
    if filters - FILTERS:
        raise ArtefactError(f"{path}: {where} is stored with filter {min(filters - FILTERS)}, which hmr does not run")
    declared, held = dataset.size * dtype.itemsize, dataset.id.get_storage_size()
    chunk = int(np.prod(dataset.chunks or (0,), dtype=object)) * dtype.itemsize
    ratio = LIMITS["ratio"] if filters & {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF} else 1
    if declared > LIMITS["bytes"] or chunk > LIMITS["chunk"] or declared > max(held * ratio, 1 << 16 if held else 0):
        raise ArtefactError(f"{path}: {where} declares {declared:,} bytes and holds {held:,}")


def _type_name(dtype: np.dtype) -> str:
    return (
        "references" if h5py.check_ref_dtype(dtype) else "variable-length arrays" if dtype.kind == "O" else str(dtype)
    )


def _read_attrs(item: Any, path: Path) -> dict[str, Any]:
    attrs = {}
    for name in item.attrs:
        dtype = item.attrs.get_id(name).dtype
        if dtype.kind not in "fiub" and h5py.check_string_dtype(dtype) is None:
            raise ArtefactError(f"{path}: attribute {name} of {item.name} is neither a number nor a text")
        value = item.attrs[name]
        value = value.decode() if isinstance(value, bytes) else value.tolist() if hasattr(value, "tolist") else value
        attrs[name] = _decode(name, value)
    return attrs


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, str) and (name in JSON_ATTRS or value[:1] in ("[", "{")):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


@contextlib.contextmanager
def _damage(path: Path | None, where: str = "") -> Iterator[None]:
    """Turn what HDF5 raises for a damaged file into an ArtefactError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        spot = f" at /{where}" if where else ""
        raise ArtefactError(f"{path} is damaged{spot}: {_one_line(error)}", "make it again") from error


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]


class Writer:
    """A new HDF5 file at `path`, filled column by column; `reserve` bytes of disk are allocated beforehand.

    HDF5 does not survive a full disk (h5py 3.16 ends the process). So the file starts as an image of an empty one that
    Python writes and extends to its final size: the disk is full now or not at all. Raises OSError.
    """

    def __init__(self, path: Path, reserve: int = 0) -> None:
        if reserve:
            with h5py.File("empty", "w", driver="core", backing_store=False) as empty:
                empty.flush()
                image = empty.id.get_file_image()
            with open(path, "wb") as file:
                file.write(image)
                file.flush()
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, reserve)
        self.file = h5py.File(path, "r+", locking=False)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # which also cuts the file to the size that is used

    def attrs(self, root: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Write root and group attributes; dicts, lists and None as sorted JSON."""
        for name, value in root.items():
            encoded = _encode(value)
            if isinstance(encoded, str) and len(encoded.encode()) > 60_000:
                text = np.frombuffer(encoded.encode(), np.uint8)
                self.file.require_group(LONG).create_dataset(name, data=text, chunks=text.shape, fletcher32=True)
            else:
                self.file.attrs[name] = encoded
        for group, values in groups.items():
            for name, value in values.items():
                self.file.require_group(group).attrs[name] = _encode(value)

    def alloc(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Create a column of its final size; assign slices to it: `column[a:b] = values`."""
        item = np.dtype(dtype).itemsize
        chunks = None
        if all(shape):
            rows = max(1, CHUNK_BYTES // max(1, item * int(np.prod(shape[1:], dtype=object))))
            chunks = (min(shape[0], 1 << (rows.bit_length() - 1)), *shape[1:])
        return self.file.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=chunks is not None)

    def put(self, name: str, values: np.ndarray) -> None:
        """Write a whole column; text as fixed-length UTF-8, so that the checksum covers it."""
        values = np.asarray(values)
        if values.dtype.kind in "OU":
            coded = [str(v).encode("utf-8", "backslashreplace") for v in values.ravel()]
            length = max([1, *map(len, coded)])
            text = h5py.string_dtype("utf-8", length)
            self.alloc(name, text, values.shape)[...] = np.array(coded, text).reshape(values.shape)
        else:
            self.alloc(name, values.dtype, values.shape)[...] = values


def amend(path: Path, rows: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Replace whole columns of `rows` and add root attributes in a file that is not yet a finished target."""
    with Writer(path) as writer:  # its reserve counted the tables twice, so the new columns fit
        for name, values in rows.items():
            if name in ("frame", "box"):
                raise ArtefactError(f"rows/{name} cannot change once the rows are fixed")
            del writer.file[f"rows/{name}"]
            writer.put(f"rows/{name}", np.asarray(values))
        writer.attrs(attrs, {})


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (dict, list, tuple)):
        return json.dumps(value, sort_keys=True, default=_plain)
    return str(value) if isinstance(value, os.PathLike) else value


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
