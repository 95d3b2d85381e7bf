"""Frames: which pictures and video frames the user means, and each of them as RGB uint8. With images.py
and video.py beside it the only place that opens images and videos.

A frame's name is its path relative to `root` (the common folder of the inputs), '/' between folders, so artefacts hold
no absolute path; a video frame is `path#index`. Bytes that are not UTF-8 are written \\xHH and a backslash \\\\. Later
stages look for a name below `--root`, the root noted in the artefact (relative to it), the artefact's own folder and
the working directory, in this order, and compare the file's fingerprint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, OK
from stages.errors import InputError, UsageError
from stages.media.images import LoadedImage, file_fingerprint, intrinsics, read_image, write_image
from stages.media.video import Video, time_base, video_times, write_video
from stages.params import MAX_PIXELS

__all__ = ["FrameList", "FrameSource", "LoadedImage", "frame_columns", "intrinsics", "list_frames", "open_frame"]
__all__ += ["read_frames", "write_image", "write_video"]

PICTURES = frozenset(
    "jpg jpeg jpe jfif png webp bmp tif tiff gif ppm pgm pnm jp2 avif".split(" ")  # noqa: SIM905
)
KEPT = 8  # pictures that a FrameSource keeps
VIDEOS = frozenset(
    "mp4 m4v mov mkv webm avi mpg mpeg wmv flv ts mts m2ts 3gp ogv h264 264".split(" ")  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """A picture (times None) or a video (times: presentation times, `unit` seconds each)."""

    path: Path
    name: str
    view: int = 0
    times: np.ndarray | None = None
    unit: float = 0.0

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the contents, '' for a file that cannot be read."""
        try:
            return file_fingerprint(self.path)
        except OSError:
            return ""


class FrameList:
    """All frames that the inputs mean, in order: files sorted by name (numbers by value), video frames by time.

    `name`, `time` (s, NaN photos), `source` (video number, -1 photos), `view`, `file` (index into `files`), `index`
    (frame within its file) are arrays (F,). Goes into a Job's inputs.
    """

    kind, path = "frames", None

    def __init__(self, root: Path, files: Sequence[MediaFile], every: int = 1, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.files, self.max_pixels = root, list(files), max_pixels
        counts = [1 if f.times is None else len(f.times) for f in self.files]
        steps = [np.arange(0, n, every) for n in counts]
        self.file: np.ndarray = np.repeat(np.arange(len(counts)), [len(s) for s in steps])
        self.index: np.ndarray = np.concatenate(steps) if steps else np.zeros(0, np.int64)
        videos = np.cumsum([f.times is not None for f in self.files]) - 1
        self.source: np.ndarray = np.array(
            [videos[i] if self.files[i].times is not None else -1 for i in self.file], np.int32
        )
        self.view: np.ndarray = np.array([self.files[i].view for i in self.file], np.int32)
        times = [np.array([np.nan]) if f.times is None else f.times * f.unit for f in self.files]
        self.time: np.ndarray = (
            np.concatenate([t[s] for t, s in zip(times, steps, strict=True)]) if steps else np.zeros(0)
        )

    def __len__(self) -> int:
        return len(self.file)

    @property
    def name(self) -> list[str]:
        return [self.frame_name(i) for i in range(len(self))]

    def frame_name(self, i: int) -> str:
        media = self.files[self.file[i]]
        return media.name if media.times is None else f"{media.name}#{self.index[i]:06d}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over names and file contents: what makes two lists the same input."""
        digest = hashlib.sha256()
        for media in self.files:
            digest.update(f"{media.name}\0{media.fingerprint}\0{media.view}\n".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.index, "<i8").tobytes())
        return digest.hexdigest()

    def picture(self, i: int) -> LoadedImage:
        """Frame i decoded. Raises InputError."""
        media = self.files[self.file[i]]
        if media.times is None:
            return read_image(media.path, self.max_pixels)
        video = self._videos(media)
        return LoadedImage(video.read(int(self.index[i])), file=media.fingerprint)

    def _videos(self, media: MediaFile) -> Video:
        """The open video; only one is open at a time."""
        held: Video | None = self.__dict__.get("_video")
        if held is None or held.path != media.path:
            if held is not None:
                held.close()
            assert media.times is not None
            held = self.__dict__["_video"] = Video(media.path, media.times, self.max_pixels)
        return held


class FrameSource:
    """The pictures behind an artefact's frames: `source(frame_index) -> rgb` (H, W, 3) uint8.

    Raises InputError for a frame that cannot be found or read, or whose file is no longer the one that the artefact was
    made from (both fingerprints are named). The last pictures are kept, since people share frames.
    """

    def __init__(self, artefact: Any, root: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.frames, self.max_pixels = artefact.frames, max_pixels
        own = artefact.path.parent if artefact.path is not None else None
        roots = [Path(root)] if root is not None else [r for r in (artefact.root, own, Path()) if r is not None]
        self.roots = list(dict.fromkeys(roots))
        self.videos: dict[str, Video] = {}
        self.kept: dict[int, np.ndarray] = {}
        self.lock = threading.Lock()

    def find(self, name: str) -> Path:
        """The file behind a name. Raises InputError listing where it was looked for."""
        for root in self.roots:
            path = root / unescape(name)
            if path.exists():
                return path
        raise InputError(f"{name} is not below {' or '.join(str(r) for r in self.roots)}", "--root FOLDER says where")

    def __call__(self, i: int) -> np.ndarray:
        i = int(i)
        rgb = self.kept.get(i)
        if rgb is None:
            rgb = self._read(i)
            with self.lock:  # readers may be threads
                while len(self.kept) >= KEPT:
                    self.kept.pop(next(iter(self.kept)))
                self.kept[i] = rgb
        return rgb

    def _read(self, i: int) -> np.ndarray:
        name = str(self.frames["name"][i])
        if self.frames["source"][i] >= 0:
            name, _, number = name.rpartition("#")
            if name not in self.videos:
                path = self.find(name)
                self._compare(i, name, file_fingerprint(path))
                for old in self.videos.values():
                    old.close()
                self.videos = {name: Video(path, video_times(path), self.max_pixels)}
            rgb = self.videos[name].read(int(number))
        else:
            picture = read_image(self.find(name), self.max_pixels)
            self._compare(i, name, picture.file)
            assert picture.rgb is not None
            rgb = picture.rgb
        width, height = self.frames["size"][i]
        if rgb.shape[:2] != (height, width):
            raise InputError(f"{name} is {rgb.shape[1]} x {rgb.shape[0]}, the artefact says {width} x {height}")
        return rgb

    def _compare(self, i: int, name: str, now: str) -> None:
        then = str(self.frames["file"][i]) if "file" in self.frames else ""
        if then and then != now:
            raise InputError(
                f"{name} has changed since detection (was {then[:12]}, is {now[:12]})", "run hmr detect again"
            )


def open_frame(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One picture file as RGB (H, W, 3) uint8. Raises InputError."""
    rgb = read_image(path, max_pixels).rgb
    assert rgb is not None
    return rgb


def read_frames(
    source: FrameList | FrameSource | Any, indices: Sequence[int] | np.ndarray, workers: int = 0
) -> list[LoadedImage]:
    """The frames `indices` of a FrameList, a FrameSource or an Artefact, in this order, photos by `workers` threads.

    A frame that fails is a Picture whose `rgb` is None and whose `error` says why.
    """
    if not isinstance(source, (FrameList, FrameSource)):
        source = FrameSource(source)
    videos = source.source if isinstance(source, FrameList) else source.frames["source"]

    def one(i: int) -> LoadedImage:
        try:
            return source.picture(int(i)) if isinstance(source, FrameList) else LoadedImage(source(int(i)))
        except InputError as error:
            return LoadedImage(None, error.message)

    if workers and len(indices) > 1 and not (videos[np.asarray(indices)] >= 0).any():
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, indices))
    return [one(i) for i in indices]


def frame_columns(
    listing: FrameList, indices: Sequence[int] | np.ndarray, pictures: Sequence[LoadedImage]
) -> dict[str, Any]:
    """The columns of `frames` for these frames, ready for run_frames; failed ones have size 0 and K NaN."""
    indices = np.asarray(indices)
    cameras = [intrinsics(p.size, p.focal) if p.rgb is not None else (np.full((3, 3), np.nan), 0) for p in pictures]
    return {
        "name": [listing.frame_name(i) for i in indices],
        "size": np.array([p.size for p in pictures], np.int32).reshape(-1, 2),
        "K": np.array([K for K, _ in cameras], np.float32).reshape(-1, 3, 3),
        "K_source": np.array([s for _, s in cameras], np.uint8),
        "time": listing.time[indices],
        "source": listing.source[indices],
        "view": listing.view[indices],
        "status": np.array([OK if p.rgb is not None else FAILED for p in pictures], np.uint8),
        "error": [p.error for p in pictures],
        "file": [p.file for p in pictures],
    }


def list_frames(
    inputs: Sequence[str | Path],
    files_from: str | Path | None = None,
    *,
    every: int = 1,
    views: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> FrameList:
    """The frames of files, folders (with their sub-folders), globs, videos, `-` (names on stdin) and a list file.

    Names in lists end with newlines, or with NULs where one occurs. Duplicates count once. every: each n-th frame of a
    video. views: every input is one camera (frames/view). Raises InputError for nothing found (says what was looked
    for), a missing path or a video that does not open; UsageError for the same argument twice.
    """
    given = [os.fspath(i) for i in inputs]
    if twice := [g for i, g in enumerate(given) if g in given[:i]]:
        raise UsageError(f"{printable(twice[0])} is given twice", "name each input once")
    groups = [_names_of(text) for text in given]
    if files_from is not None:
        groups.append([p for name in _list_file(files_from) for p in _names_of(name)])
    found: dict[str, int] = {}
    for view, group in enumerate(groups):
        for path in group:
            found.setdefault(os.path.abspath(path), view if views else 0)
    if not found:
        looked = ", ".join(printable(g) for g in [*given, *([str(files_from)] if files_from else [])])
        raise InputError(
            f"no pictures or videos in {looked or 'nothing'}", f"looked for *.{', *.'.join(sorted(PICTURES | VIDEOS))}"
        )
    folders = {os.path.dirname(p) for p in found} | {os.path.abspath(g) for g in given if os.path.isdir(g)}
    root = Path(os.path.commonpath(sorted(folders)))
    for path in found:
        _refuse_artefact(path)
    files = [_media(Path(path), root, view) for path, view in found.items()]
    return FrameList(root, sorted(files, key=lambda f: (f.view, natural(f.name))), every, max_pixels)


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


def _media(path: Path, root: Path, view: int) -> MediaFile:
    name = escape(path.relative_to(root).as_posix())
    if is_video(path):
        return MediaFile(path, name, view, video_times(path), time_base(path))
    return MediaFile(path, name, view)


def is_video(path: Path) -> bool:
    """By the suffix; by the first bytes where the suffix is none of a picture or video."""
    suffix = path.suffix.lower()[1:]
    if suffix in PICTURES or suffix in VIDEOS:
        return suffix in VIDEOS
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(12)
        return head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    return False


def _refuse_artefact(path: str) -> None:
    """An artefact given where pictures are wanted is a wrong command, not a damaged picture."""
    if os.path.splitext(path)[1].lower()[1:] in PICTURES | VIDEOS:
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            raise InputError(
                f"{printable(path)} is an artefact of hmr, not a picture or video",
                "did you mean hmr recover, or hmr info?",
            )


def _names_of(text: str) -> list[str]:
    """Paths behind one argument. Raises InputError for a path that is not there and a glob that matches nothing."""
    if text == "-":
        return [p for name in _split(sys.stdin.buffer.read()) for p in _names_of(name)]
    if os.path.isdir(text):
        return [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(text, onerror=None)
            if not folders.sort()  # type: ignore[func-returns-value]
            for name in names
            if os.path.splitext(name)[1].lower()[1:] in PICTURES | VIDEOS and not name.startswith(".")
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
