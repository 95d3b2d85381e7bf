"""Who is writing: a lock file with host and process number. The lock of a process that is gone is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from stages.errors import MachineError
from stages.files.atomic import disk_errors


@contextlib.contextmanager
def write_lock(lock: Path, out: Path) -> Iterator[None]:
    """Hold `lock`, a file with host and process id; a stale one is taken over. Raises MachineError (who holds it)."""
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())})
    for _ in range(10):
        with disk_errors(out):
            if _create(lock, content):
                break
        if owner := lock_holder(lock):
            raise MachineError(
                f"{out} is being written by {owner}", f"wait for it, or stop it; if it is gone, delete {lock}"
            )
        with contextlib.suppress(FileNotFoundError):  # stale: of several that rename it, one succeeds
            stale = lock.with_name(f"{lock.name}.{os.getpid()}.tmp")
            os.rename(lock, stale)
            stale.unlink()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if lock.read_text() == content:
                lock.unlink()


def _create(lock: Path, content: str) -> bool:
    """Create `lock` with `content` in one step; False if it is there already."""
    temporary = lock.with_name(f"{lock.name}.{os.getpid()}.tmp")
    temporary.write_text(content)
    try:
        os.link(temporary, lock)
        return True
    except FileExistsError:
        return False
    except OSError:  # no hard links here: exclusive creation, whose content follows a moment later
        try:
            with open(lock, "x") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)


def lock_holder(lock: Path) -> str:
    """Who holds a lock, in words; '' when nobody does or that process is gone."""
    try:
        text = lock.read_text()
        owner = json.loads(text) if text else {}
    except FileNotFoundError:
        return ""
    except ValueError:
        owner = {}
    if not owner:  # created this instant, or its writer was killed before the first byte
        return "" if not lock.exists() or _age(lock) > 5 else "a process that has just started"
    if owner["host"] != socket.gethostname():
        return f"process {owner['pid']} on {owner['host']}"
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"process {owner['pid']} on this machine" if process_start(owner["pid"]) == owner["started"] else ""


def _age(path: Path) -> float:
    try:
        return abs(time.time() - path.stat().st_mtime)
    except OSError:
        return 1e9


def process_start(pid: int) -> str:
    """When a process started, which tells it from a later one with the same number; '' where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
