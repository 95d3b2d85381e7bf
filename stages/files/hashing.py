"""The SHA-256 of large files, computed once per file and remembered in the cache folder.

A published checkpoint of 5.7 GB takes seconds to hash and is hashed by every command that uses it. What is remembered
belongs to one device, inode, size, and time of last content and status change in nanoseconds; a file that was touched
moments ago is not remembered, since a second change within the clock's step would not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

from stages.files.atomic import write_bytes
from stages.files.folders import cache_dir

LARGE = 64 << 20  # smaller files are hashed in a twentieth of a second
SETTLED = 5.0  # seconds since the last change


def sha256_of(path: Path) -> str:
    """Of the whole file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        note = cache_dir() / "sha256" / _key(before)
        if before.st_size >= LARGE:
            with contextlib.suppress(OSError):
                if re.fullmatch(r"[0-9a-f]{64}", known := note.read_text("ascii", "replace")):
                    return known
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED
        if before.st_size >= LARGE and settled and _key(os.fstat(file.fileno())) == _key(before):
            _remember(note, digest.hexdigest())
    return digest.hexdigest()


def sha256_of_files(*paths: Path) -> str:
    """Of one file; of several, the SHA-256 of their concatenated digests. Raises OSError."""
    digests = [sha256_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _key(stat: os.stat_result) -> str:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return "-".join(map(str, parts))


def _remember(note: Path, digest: str) -> None:
    """A cache that cannot be written is no matter."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(note, digest.encode(), durable=False)
