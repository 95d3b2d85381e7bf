"""SHA-256 of files; that of a large file is computed once and cached.

A published checkpoint of 5.7 GB takes seconds to hash, and every command that uses it needs the hash. The cache key is
device, inode, size, and the times of the last change of content and status in nanoseconds. A file that was changed
moments ago is not cached, since a second change within the resolution of the clock would not show.
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
MIN_AGE = 5.0  # seconds since the last change


def sha256_of(path: Path) -> str:
    """Of the whole file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        cached = cache_dir() / "sha256" / _key(before)
        if before.st_size >= LARGE:
            with contextlib.suppress(OSError):
                if re.fullmatch(r"[0-9a-f]{64}", known := cached.read_text("ascii", "replace")):
                    return known
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        unchanged = time.time() - max(before.st_mtime, before.st_ctime) > MIN_AGE
        if before.st_size >= LARGE and unchanged and _key(os.fstat(file.fileno())) == _key(before):
            _store(cached, digest.hexdigest())
    return digest.hexdigest()


def sha256_of_files(*paths: Path) -> str:
    """Of one file; of several, the SHA-256 of their concatenated digests. Raises OSError."""
    digests = [sha256_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _key(stat: os.stat_result) -> str:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return "-".join(map(str, parts))


def _store(cached: Path, digest: str) -> None:
    """Write one entry of the cache; if it cannot be written, the hash is computed again next time."""
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cached, digest.encode(), durable=False)
