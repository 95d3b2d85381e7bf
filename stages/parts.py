"""Unfinished work on disk: `out.h5.parts/` with a header and part files, and the commit that makes them the target.

Every file appears by write to a temporary name, fsync, rename. The target exists only when it is whole. Whoever works
here leaves a mark (host, process id); nothing relies on file locks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefact import Artefact, Writer, memory, open_artefact, read_part, rows_fingerprint
from stages.columns import Column
from stages.errors import ArtefactError, MachineError

NOT_STORED = ("part_rows", "n", "per", "finish", "columns", "group_attrs")  # header attributes that end with the parts
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "no permission to write here",
    errno.EPERM: "no permission to write here",
    errno.EIO: "the disk reports an error",
}


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Failures to write below `path`, as a MachineError that says that finished parts are kept."""
    try:
        yield
    except OSError as error:
        code = error.errno if error.errno in DISK else next((c for c in DISK if f"errno = {c}," in str(error)), None)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) or (code is None and error.errno is None):
            raise
        raise MachineError(
            f"{path}: {DISK.get(code, error.strerror) if code else error.strerror or error}",
            "finished parts are kept: make room or choose another place, then give the same command again",
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` last; not every system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace(temporary: Path, target: Path) -> None:
    """The only way a finished file appears."""
    os.replace(temporary, target)
    fsync_folder(target.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """`content` under `path`, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


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


@contextlib.contextmanager
def marked(mark: Path, out: Path) -> Iterator[None]:
    """Create `mark` exclusively, take over a stale one, delete it at the end."""
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    for _ in range(3):
        try:
            with disk(out):
                handle = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except MachineError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            if who := holder(mark):
                raise MachineError(
                    f"{out} is being written by {who}", f"wait for it, or stop it; if it is gone, delete {mark}"
                ) from None
            with contextlib.suppress(FileNotFoundError):  # stale: whoever renames it first may take its place
                os.rename(mark, mark.with_name(f"{mark.name}.{os.getpid()}.tmp"))
            continue
        with os.fdopen(handle, "w") as file:
            file.write(content)
        break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if mark.read_text() == content:
                mark.unlink()


def holder(mark: Path) -> str:
    """Who holds a mark, in words; '' when that process is gone."""
    try:
        text = mark.read_text()
        who = json.loads(text) if text else {}
    except FileNotFoundError:
        return ""
    except ValueError:
        who = {}
    if not who:  # created this instant, or its writer was killed before the first byte
        return "" if not mark.exists() or _age(mark) > 5 else "a process that has just started"
    if who["host"] != socket.gethostname():
        return f"process {who['pid']} on {who['host']}"
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"process {who['pid']} on this machine" if _started(who["pid"]) == who["started"] else ""


def _age(path: Path) -> float:
    import time

    try:
        return abs(time.time() - path.stat().st_mtime)
    except OSError:
        return 1e9


def _started(pid: int) -> str:
    """When a process started, so that a number used again is not taken for the old process; '' where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


# ---- joining -------------------------------------------------------------------------------------------------------


def n_parts(header: Mapping[str, Any]) -> int:
    return -(-int(header["n"]) // int(header["part_rows"]))


def part_range(header: Mapping[str, Any], part: int) -> tuple[int, int]:
    """First row (or frame) of a part and the one after its last."""
    return part * header["part_rows"], min((part + 1) * header["part_rows"], header["n"])


def root_attrs(header: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k not in NOT_STORED}


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


Finish = Callable[[Artefact], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]


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


def check_space(out: Path, need: int) -> None:
    """Raise MachineError if the disk of `out` has less than `need` bytes free."""
    folder = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < need:
        raise MachineError(
            f"{out}: {need / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free",
            "make room, or choose another disk with -o",
        )
