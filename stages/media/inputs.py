"""Which files the user means: paths, folders, globs, names on stdin and list files -> image and video files.

A frame's name is its path relative to the common folder of the inputs, '/' between folders. Bytes that are not UTF-8
are written \\xHH and a backslash \\\\ (`escape`), so that artefacts hold valid text.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError, UsageError

IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png webp bmp tif tiff gif ppm pgm pnm jp2 avif".split(" ")  # noqa: SIM905
)
VIDEO_SUFFIXES = frozenset(
    "mp4 m4v mov mkv webm avi mpg mpeg wmv flv ts mts m2ts 3gp ogv h264 264".split(" ")  # noqa: SIM905
)
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def list_files(
    inputs: Sequence[str | Path], files_from: str | Path | None = None, *, views: bool = False
) -> tuple[Path, dict[str, int]]:
    """(root, {absolute path: view}) of the inputs. files_from: a file that lists more · views: each input is a camera.

    Duplicates count once. Raises InputError when there is no image or video (names what was looked for), for a path
    that does not exist and for an artefact; UsageError for the same input twice.
    """
    texts = [os.fspath(i) for i in inputs]
    if repeated := [text for i, text in enumerate(texts) if text in texts[:i]]:
        raise UsageError(f"{printable(repeated[0])} is given twice", "name each input once")
    groups = [_expand(text) for text in texts]
    if files_from is not None:
        groups.append([path for name in _list_file(files_from) for path in _expand(name)])
    files: dict[str, int] = {}
    for view, group in enumerate(groups):
        for path in group:
            files.setdefault(os.path.abspath(path), view if views else 0)
    if not files:
        looked = ", ".join(printable(text) for text in [*texts, *([str(files_from)] if files_from else [])])
        raise InputError(
            f"no images or videos in {looked or 'nothing'}", f"looked for *.{', *.'.join(sorted(SUFFIXES))}"
        )
    folders = {os.path.dirname(p) for p in files} | {os.path.abspath(text) for text in texts if os.path.isdir(text)}
    for path in files:
        _refuse_artefact(path)
    return Path(os.path.commonpath(sorted(folders))), files


def natural(name: str) -> tuple[Any, ...]:
    """Sort key: runs of digits by their value, then the name itself."""
    return (*((int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"([0-9]+)", name) if t), (-2, name))


def frame_number(name: str) -> int:
    """The number that the name of a frame ends in, its suffix aside ("walk_000012.jpg" is 12); -1 without one."""
    stem = re.sub(r"\.[A-Za-z]\w{0,4}$", "", name)
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if digits else -1


def frame_times(names: Sequence[str], fps: float) -> np.ndarray:
    """Seconds (n,) of images numbered in their names. Raises InputError for a name without a number."""
    numbers = [frame_number(name) for name in names]
    if -1 in numbers:
        raise InputError(f"{printable(names[numbers.index(-1)])} has no number", "--fps is for numbered frames")
    return np.array(numbers) / fps


def is_video(path: Path) -> bool:
    """By the suffix; by the first bytes where the suffix is neither an image's nor a video's."""
    suffix = _suffix(str(path))
    if suffix in SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(12)
        return head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    return False


def _suffix(path: str) -> str:
    """Without the dot, in lower case."""
    return os.path.splitext(path)[1].lower()[1:]


def _refuse_artefact(path: str) -> None:
    """An artefact where images are expected is a wrong command, not a damaged image."""
    if _suffix(path) in SUFFIXES:
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            raise InputError(
                f"{printable(path)} is an artefact of hmr, not an image or video",
                "did you mean hmr recover, or hmr info?",
            )


def _expand(text: str) -> list[str]:
    """Paths behind one argument. Raises InputError for a path that does not exist and a glob that matches nothing."""
    if text == "-":
        return [path for name in _split(sys.stdin.buffer.read()) for path in _expand(name)]
    if os.path.isdir(text):
        return [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(text, onerror=None)
            if not folders.sort()  # type: ignore[func-returns-value]
            for name in names
            if _suffix(name) in SUFFIXES and not name.startswith(".")
        ]
    if os.path.lexists(text):
        return [text]
    if glob.has_magic(text):
        matches = [p for p in glob.glob(text, recursive=True) if not os.path.isdir(p)]
        if not matches:
            raise InputError(f"no file matches {printable(text)}", "quote globs, or name a folder")
        return matches
    near = next(p for p in Path(text).absolute().parents if p.exists())
    raise InputError(f"{printable(text)}: no such file or folder", f"the nearest folder that exists is {near}")


def _list_file(path: str | Path) -> list[str]:
    try:
        return _split(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _split(content: bytes) -> list[str]:
    """Names that end with newlines, or with NULs where one occurs."""
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line]


def escape(name: str) -> str:
    """A file name as valid UTF-8 text: bytes that are not UTF-8 become \\xHH, a backslash becomes two."""
    text = name.replace("\\", "\\\\")
    return re.sub(r"[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", text)


def unescape(name: str) -> str:
    """The file name behind `escape`."""
    return re.sub(r"\\(\\|x([0-9a-f]{2}))", lambda m: "\\" if m[1] == "\\" else chr(0xDC00 + int(m[2], 16)), name)


def printable(text: str) -> str:
    """A name for a message: quoted where it holds blanks or control characters."""
    return escape(text) if text.isprintable() and " " not in text else repr(escape(text))
