"""Files of data sets that hmr may not carry: read and checked, or an AssetError with the site, archive and member.

Pickles are read without running what is in them; whatever is missing, truncated or of another shape is one line with
the exact file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError, InputError
from stages.files.pickles import Refused, load_content
from stages.media.images import read_image
from stages.media.video import Video, video_times


@dataclasses.dataclass(frozen=True)
class DatasetOrigin:
    """Where a data set can be obtained: its site and the archive there."""

    site: str
    archive: str

    def hint(self, member: str = "") -> str:
        return f"it is {member + ' ' if member else ''}in {self.archive} from {self.site}"


def need(path: Path, source: DatasetOrigin, root: Path | None = None) -> Path:
    """The path, if it is there. Raises AssetError naming the member of the archive."""
    if not path.exists():
        member = path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.name
        raise AssetError(f"{path}: no such file or folder", source.hint(member))
    return path


def first(root: Path, names: tuple[str, ...], source: DatasetOrigin) -> Path:
    """The first of several paths (relative to `root`) that exists. Raises AssetError with the first one."""
    return next((root / name for name in names if (root / name).exists()), None) or need(root / names[0], source, root)


def damaged(path: Path, why: Any, source: DatasetOrigin) -> AssetError:
    """The error for a file whose content cannot be used; `why` in one line."""
    text = " ".join(str(why).split())[:160]
    return AssetError(f"{path} is damaged: {text}", f"get it again; {source.hint()}")


@contextlib.contextmanager
def contents(path: Path, source: DatasetOrigin) -> Iterator[None]:
    """Inside, every error of a reader is damage of this file: a text for a number, a list that is too short."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", source) from error


def _bytes(path: Path, source: DatasetOrigin) -> bytes:
    need(path, source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror or error}", source.hint()) from error
    if not data:
        raise damaged(path, "the file is empty", source)
    if data[:512].lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise damaged(path, "it is a web page (the site asks for a log-in)", source)
    return data


def read_pickle(path: Path, source: DatasetOrigin) -> Any:
    """What a pickle of numbers, texts and arrays holds; Python 2's included. Raises AssetError."""
    try:
        return load_content(_bytes(path, source))
    except Refused as refused:
        raise AssetError(
            f"{path} refused: it asks for {refused}; nothing of it was run", "only plain data is read from pickles"
        ) from refused
    except (ValueError, TypeError, EOFError) as error:
        raise damaged(path, error or type(error).__name__, source) from error


def read_json(path: Path, source: DatasetOrigin) -> Any:
    """A JSON file. Raises AssetError."""
    try:
        return json.loads(_bytes(path, source))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, source) from error


def read_npz(path: Path, source: DatasetOrigin) -> dict[str, np.ndarray]:
    """All arrays of a .npz, none of which may be a pickle. Raises AssetError."""
    try:
        with np.load(io.BytesIO(_bytes(path, source)), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except AssetError:
        raise
    except Exception as error:  # zip, header and array errors of many kinds
        raise damaged(path, error or type(error).__name__, source) from error


class Entry:
    """A dictionary of a file: `entry["poses"]` or `entry.array("betas", (-1, 10))`.

    Raises AssetError naming the file and the key. where: the position of this dictionary in the file, for messages.
    """

    def __init__(self, content: Any, path: Path, source: DatasetOrigin, where: str = "") -> None:
        self.path, self.source, self.where = path, source, f" {where}" if where else ""
        if not isinstance(content, dict):
            raise damaged(path, f"{where or 'it'} holds a {type(content).__name__}, not a dictionary", source)
        self.content = content

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            present = ", ".join(sorted(map(str, self.content))[:12])
            raise damaged(self.path, f"no {key!r}{self.where} (it has {present})", self.source)
        return self.content[key]

    def entry(self, key: str) -> Entry:
        return Entry(self[key], self.path, self.source, key)

    def array(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers of that shape (-1 = any length), float64."""
        return self.shaped(self[key], key, shape)

    def shaped(self, value: Any, key: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise damaged(self.path, f"{key!r}{self.where} is not numbers", self.source) from error
        if len(array.shape) != len(shape) or any(
            n not in (-1, size) for n, size in zip(shape, array.shape, strict=True)
        ):
            expected = " x ".join("n" if n < 0 else str(n) for n in shape)
            raise damaged(self.path, f"{key!r}{self.where} has shape {array.shape}, needed {expected}", self.source)
        return array


def image_size(path: Path, source: DatasetOrigin) -> tuple[int, int]:
    """Width, height of an image. Raises AssetError for one that is missing or damaged."""
    need(path, source)
    try:
        return read_image(path).size
    except InputError as error:
        raise AssetError(f"{path}: {error.message}", f"get it again; {source.hint()}") from error


def video_size(path: Path, source: DatasetOrigin) -> tuple[int, int, int]:
    """Width, height and number of frames of a video. Raises AssetError."""
    need(path, source)
    try:
        times = video_times(path)
        video = Video(path, times)
        height, width = video.read(0).shape[:2]
        video.close()
    except InputError as error:
        raise AssetError(f"{path}: {error.message}", f"get it again; {source.hint()}") from error
    return width, height, len(times)


def need_images(root: Path, names: Iterable[str], source: DatasetOrigin) -> None:
    """Raise AssetError for the first of the images (names relative to root) that is missing, with their number."""
    folders: dict[str, list[str]] = {}
    for name in dict.fromkeys(map(str, names)):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    missing = [f"{folder}/{f}" for folder, files in folders.items() for f in missing_images(root / folder, files)]
    if missing:
        more = f" and {len(missing) - 1} more of {sum(map(len, folders.values()))}" if len(missing) > 1 else ""
        first = missing[0].lstrip("/")
        raise AssetError(f"{root / first}: no such file{more}", source.hint(first))


def missing_images(folder: Path, names: list[str]) -> list[str]:
    """Those of `names` that are not in the folder."""
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in names if name not in present]
