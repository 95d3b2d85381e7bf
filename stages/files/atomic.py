"""Writing that survives a crash: temporary name, fsync, rename; a full disk.

The only module that calls os.replace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from stages.errors import MachineError

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
def disk_errors(path: Path, need: int = 0) -> Iterator[None]:
    """Turn failures to write `path` or its parts into a MachineError that says how many bytes are needed (`need`, if
    known), how many are free, and whether finished parts are kept."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise MachineError(
                f"{path}: {error.filename or path} cannot be made there, or was deleted meanwhile",
                "choose another place with -o",
            ) from error
        code = error.errno if error.errno in DISK else next((c for c in DISK if f"errno = {c}," in str(error)), None)
        if isinstance(error, NotADirectoryError) or (code is None and error.errno is None):
            raise
        what = DISK.get(code, error.strerror) if code else error.strerror or str(error)
        free = ""
        if code in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                free = f" ({megabytes(need)} are needed, " if need else " ("
                free += f"{megabytes(shutil.disk_usage(_near(path)).free)} are free)"
        kept = any(path.with_name(path.name + ".parts").glob("part-*.npz"))
        hint = "make room or choose another place with -o" if free else "choose another place with -o"
        if kept:
            hint = f"finished parts are kept: {hint.replace(' with -o', '')}, then give the same command again"
        raise MachineError(f"{path}: {what}{free}", hint) from error


def megabytes(n: float) -> str:
    """A number of bytes for people, never 0 for something."""
    return f"{n / 1e6:.0f} MB" if n >= 1e6 or not n else f"{n / 1e3:.1f} kB"


def _near(path: Path) -> Path:
    """The nearest folder of `path` that exists."""
    return next(p for p in path.absolute().parents if p.exists())


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` last; not every system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, *, temporary: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to; when the block ends, that file becomes `path`, else it is deleted.

    The only way a finished file appears: `path` is whole or as it was before. temporary: another name than the
    default, which holds the process id · durable: sync the content first, so that a power failure may lose the name
    but never leaves half a file. Raises OSError.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path`, whole or not at all. Raises OSError."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def check_space(out: Path, need: int) -> None:
    """Raise MachineError if the disk of `out` has less than `need` bytes free."""
    usage = shutil.disk_usage(_near(out))
    if usage.free < need and usage.total:  # /proc and its like have no size at all: writing will say what is wrong
        raise MachineError(
            f"{out}: {megabytes(need)} are needed, {megabytes(usage.free)} are free",
            "make room, or choose another disk with -o",
        )
