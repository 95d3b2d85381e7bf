"""The remembered SHA-256 of large files: once per content, never of another content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stages.files import hashing
from stages.files.hashing import sha256_of, sha256_of_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "LARGE", 4)
    return tmp_path / "cache" / "sha256"


def written(path: Path, content: bytes, age: float = 60.0, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    path.write_bytes(content)
    if monkeypatch:  # ctime cannot be set, so the clock moves
        now = os.stat(path).st_ctime + age
        monkeypatch.setattr(hashing.time, "time", lambda: now)
    return hashlib.sha256(content).hexdigest()


def test_it_is_computed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    digest = written(path, b"0123456789", monkeypatch=monkeypatch)
    assert sha256_of(path) == digest
    (note,) = cache.iterdir()
    assert note.read_text() == digest
    note.write_text("f" * 64)  # what is remembered is what is said
    assert sha256_of(path) == "f" * 64


def test_damaged_notes_and_small_files_are_hashed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    digest = written(path, b"0123456789", monkeypatch=monkeypatch)
    sha256_of(path)
    next(cache.iterdir()).write_bytes(b"\xff no digest")
    assert sha256_of(path) == digest
    monkeypatch.setattr(hashing, "LARGE", 100)
    next(cache.iterdir()).write_text("f" * 64)
    assert sha256_of(path) == digest


def test_another_content_of_the_same_size_and_time_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    first = written(path, b"0123456789", monkeypatch=monkeypatch)
    stat = path.stat()
    assert sha256_of(path) == first
    second = written(path, b"9876543210", monkeypatch=monkeypatch)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the content's time is back, the status' time is not
    assert sha256_of(path) == second


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    digest = written(path, b"0123456789", age=1.0, monkeypatch=monkeypatch)
    assert sha256_of(path) == digest and not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("in the way")
    digest = written(tmp_path / "weights", b"0123456789", monkeypatch=monkeypatch)
    assert sha256_of(tmp_path / "weights") == digest


def test_several_files_are_hashed_by_their_digests_in_order(tmp_path: Path) -> None:
    """What detections of detectors with two files have stored from the first version on."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    digests = [hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()]
    assert sha256_of_files(a) == digests[0].hex()
    assert sha256_of_files(a, b) == hashlib.sha256(b"".join(digests)).hexdigest()
    assert sha256_of_files(b, a) != sha256_of_files(a, b)
