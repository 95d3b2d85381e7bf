"""Unfinished work on disk: `out.h5.parts/` with a header (`job.npz`: provenance, frames, rows) and part files.

A part is a fixed range of rows (or frames). It carries the fingerprint of its job and appears whole or not at all.
Parts are .npz (a fifth of HDF5's cost for small arrays; the CRC-32 of the zip format is verified on reading).
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.engine.header import Header
from stages.errors import ArtefactError, MachineError
from stages.files.atomic import disk_errors, write_bytes
from stages.files.locks import lock_holder, write_lock

Tables = dict[str, np.ndarray]


def pack(meta: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> bytes:
    """A part as bytes: `meta` as JSON, text as UTF-8 of fixed length."""
    arrays = {name: _encoded(values) for name, values in columns.items()}
    text = json.dumps(meta | {"shapes": {n: [v.dtype.str, v.shape] for n, v in arrays.items()}}, default=_plain)  # type: ignore[operator]
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(path: Path, only: tuple[str, ...] = ()) -> tuple[dict[str, Any], Tables]:
    """Meta and the columns whose names start with one of `only`. Raises ArtefactError for a damaged part."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(archive["meta"].tobytes())
            return meta, {n: _decoded(archive[n]) for n in meta["shapes"] if n.startswith(only)}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, TypeError, OSError) as error:
        raise ArtefactError(f"{path} is damaged: {' '.join(str(error).split())[:120]}", "delete it") from error


def _encoded(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "OU":
        return values
    return np.array([str(v).encode("utf-8", "backslashreplace") for v in values], "S").reshape(values.shape)


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode() for v in values], object) if values.dtype.kind == "S" else values


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Parts:
    """The folder of unfinished work for the target `out`."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".parts")
        self.header_path = self.folder / "job.npz"

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.npz"

    def header(self) -> Header | None:
        """Of the job whose parts lie here, None without one. Raises ArtefactError for a damaged file, InputError for
        one of another version."""
        if not self.header_path.exists():
            return None
        return Header.from_json(unpack(self.header_path, ("none",))[0], str(self.header_path))

    def tables(self) -> Tables:
        """Frames and rows, as far as they are known before the work."""
        return unpack(self.header_path, ("frames/", "rows/"))[1]

    def create(self, header: Header, tables: Mapping[str, np.ndarray]) -> None:
        """Write the header, unless another shard has."""
        with disk_errors(self.out):
            if not self.header_path.exists():
                write_bytes(self.header_path, pack(header.to_json(), tables))

    def write(self, part: int, header: Header, columns: Mapping[str, np.ndarray]) -> None:
        """Save one part. Raises MachineError when the disk does not take it."""
        content = pack({"fingerprint": header.fingerprint, "part": part}, columns)
        with disk_errors(self.out, len(content) * (header.parts.count - part)):
            write_bytes(self.path(part), content)

    def read(self, part: int, header: Header, only: tuple[str, ...] = ("",)) -> tuple[dict[str, Any], Tables]:
        """[dtype, shape] of all columns, and the chosen columns. Raises ArtefactError if it is not of this job."""
        meta, columns = unpack(self.path(part), only)
        if meta.get("fingerprint") != header.fingerprint or meta.get("part") != part:
            raise ArtefactError(f"{self.path(part)} belongs to another run", f"delete {self.folder} or use --fresh")
        return meta["shapes"], columns

    def exists(self, part: int) -> bool:
        return self.path(part).exists()

    def finished(self, header: Header) -> set[int]:
        """Numbers of the whole parts of this job. Damaged parts are deleted, so that they are computed again."""
        whole = set()
        for part in filter(self.exists, range(header.parts.count)):
            try:
                self.read(part, header)
                whole.add(part)
            except ArtefactError:
                self.path(part).unlink(missing_ok=True)
        return whole

    def discard(self, *, locks: bool = True) -> None:
        """Delete what hmr has put here, and nothing else."""
        for pattern in ("job.npz", "part-*.npz", "*.tmp", *(("writer-*",) if locks else ())):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if locks:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    @contextlib.contextmanager
    def writing(self, shard: tuple[int, int]) -> Iterator[None]:
        """Hold the lock of one shard. Raises MachineError naming who holds it or works with other shards."""
        with disk_errors(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f"writer-{shard[0]}-of-{shard[1]}"
        with write_lock(lock, self.out):
            if who := self.busy(shard[1], but=lock):
                raise MachineError(f"{self.out} is being written by {who}", "wait for it, or stop it")
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # removes an empty folder only: nothing was done
                    self.folder.rmdir()

    def busy(self, shards: int = 0, but: Path | None = None) -> str:
        """Who writes here other than as one of `shards` shards, in words; '' for nobody."""
        for lock in self.folder.glob("writer-*-of-*"):
            count = lock.name.rpartition("-")[2]
            if lock != but and count != str(shards) and count.isdigit() and (who := lock_holder(lock)):
                return who
        return ""
