"""Unfinished work on disk: `out.h5.parts/` with a header (`job.h5`: provenance, frames, rows) and part files.

A part is a fixed range of rows. It carries the fingerprint of its job, and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefact import Writer, read_part
from stages.disk import disk, holder, marked, write_bytes
from stages.errors import ArtefactError, MachineError

NOT_STORED = ("part_rows", "n", "per", "finish", "columns", "group_attrs")  # header attributes that end with the parts


def file_image(attrs: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> bytes:
    """A small HDF5 file as bytes: written in memory, so that a full disk is met by one plain write."""
    with Writer(None) as writer:
        writer.attrs(attrs, {})
        for name, values in columns.items():
            writer.put(name, values)
        return writer.image()


class Parts:
    """The folder of unfinished work for the target `out`."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".parts")
        self.header_path = self.folder / "job.h5"

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.h5"

    def header(self) -> dict[str, Any] | None:
        """Attributes of the job whose parts lie here, None without one."""
        return read_part(self.header_path, names=True)[0] if self.header_path.exists() else None

    def tables(self) -> dict[str, np.ndarray]:
        """Frames and rows, as far as they are known before the work."""
        return read_part(self.header_path)[1]

    def create(self, attrs: Mapping[str, Any], tables: Mapping[str, np.ndarray]) -> None:
        """Write the header, unless another shard has."""
        with disk(self.out):
            if not self.header_path.exists():
                write_bytes(self.header_path, file_image(attrs, tables))

    def write(self, part: int, attrs: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> None:
        with disk(self.out):
            write_bytes(self.path(part), file_image({**attrs, "part": part}, columns))

    def read(self, part: int, header: Mapping[str, Any], only: str = "", names: bool = False) -> dict[str, Any]:
        """Columns of a part (with `names` their types and shapes). Raises ArtefactError if it is not of this job."""
        attrs, columns = read_part(self.path(part), only, names)
        if attrs.get("fingerprint") != header["fingerprint"] or attrs.get("part") != part:
            raise ArtefactError(f"{self.path(part)} belongs to another run", f"delete {self.folder} or use --fresh")
        return columns

    def present(self, header: Mapping[str, Any]) -> set[int]:
        """Numbers of the whole parts of this job. Damaged parts count as missing and are deleted."""
        found = set()
        for part in range(n_parts(header)):
            if self.path(part).exists():
                try:
                    self.read(part, header, names=True)
                    found.add(part)
                except ArtefactError:
                    self.path(part).unlink(missing_ok=True)
        return found

    def discard(self, marks: bool = True) -> None:
        """Delete what hmr has put here, and nothing else."""
        for pattern in ("job.h5", "part-*.h5", "*.tmp", *(("writer-*",) if marks else ())):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if marks:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def clean(self) -> None:
        """Delete the temporary files of processes that are gone (the caller holds the mark)."""
        for path in self.folder.glob("*.tmp"):
            path.unlink(missing_ok=True)

    # ---- who works here --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, shard: tuple[int, int]) -> Iterator[None]:
        """Hold the mark of one shard. Raises MachineError naming the process that holds it or an overlapping one."""
        with disk(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / f"writer-{shard[0]}-of-{shard[1]}"
        with marked(mark, self.out):
            for other in self.folder.glob("writer-*"):
                _, i, _, n = other.name.split("-")
                if other != mark and (int(n) != shard[1] or int(i) == shard[0]) and (who := holder(other)):
                    raise MachineError(f"{self.out} is being written by {who}", "wait for it, or stop it")
            yield


def n_parts(header: Mapping[str, Any]) -> int:
    return -(-int(header["n"]) // int(header["part_rows"]))


def part_range(header: Mapping[str, Any], part: int) -> tuple[int, int]:
    """First row (or frame) of a part and the one after its last."""
    return part * header["part_rows"], min((part + 1) * header["part_rows"], header["n"])


def root_attrs(header: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k not in NOT_STORED}
