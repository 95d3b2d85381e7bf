"""Frames: the images and video frames of the inputs, in order, and each of them as RGB uint8.

A frame's name is its path relative to `root` (the common folder of the inputs; media/inputs.py), so artefacts hold no
absolute path; a video frame is `path#index`. Later stages look for a name below `--root`, else below the root noted in
the artefact (relative to it), the artefact's own folder and the working directory, in this order, and compare the
file's fingerprint.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, OK
from stages.artefacts.table import Artefact
from stages.errors import InputError
from stages.media.images import LoadedImage, file_fingerprint, intrinsics, read_image
from stages.media.inputs import escape, is_video, list_files, natural, unescape
from stages.media.video import Video, time_base, video_times
from stages.params import MAX_PIXELS

CACHED_IMAGES = 8  # that a FrameSource keeps


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """An image (times None) or a video (times: presentation times, `unit` seconds each); `name` as frames have it."""

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
    """All frames of the inputs, in order: files sorted by name (numbers by value), video frames by time.

    `name`, `time` (s, NaN for images), `source` (video number, -1 for images), `view`, `file` (index into `files`) and
    `index` (frame within its file) are arrays (F,). Can be one of a Job's inputs. every: each n-th frame of a video.
    """

    kind, path = "frames", None

    def __init__(self, root: Path, files: Sequence[MediaFile], every: int = 1, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.files, self.max_pixels = root, list(files), max_pixels
        self._video: Video | None = None
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

    def read(self, i: int) -> LoadedImage:
        """Frame i decoded. Raises InputError."""
        media = self.files[self.file[i]]
        if media.times is None:
            return read_image(media.path, self.max_pixels)
        return LoadedImage(self._open(media).read(int(self.index[i])), file=media.fingerprint)

    def _open(self, media: MediaFile) -> Video:
        """The video of a file; only one is open at a time."""
        if self._video is None or self._video.path != media.path:
            if self._video is not None:
                self._video.close()
            assert media.times is not None
            self._video = Video(media.path, media.times, self.max_pixels)
        return self._video


class FrameSource:
    """The images behind an artefact's frames: `source(frame_index) -> rgb` (H, W, 3) uint8.

    Raises InputError for a frame that cannot be found or read, or whose file is no longer the one that the artefact was
    made from (both fingerprints are named). The last images are cached, since people share frames.
    """

    def __init__(self, artefact: Artefact, root: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.frames, self.max_pixels = artefact.frames, max_pixels
        folder = artefact.path.parent if artefact.path is not None else None
        roots = [Path(root)] if root is not None else [r for r in (artefact.root, folder, Path()) if r is not None]
        self.roots = list(dict.fromkeys(roots))
        self.open_video: tuple[str, Video] | None = None  # by name
        self.cached: dict[int, np.ndarray] = {}
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
        rgb = self.cached.get(i)
        if rgb is None:
            rgb = self._read(i)
            with self.lock:  # readers may be threads
                while len(self.cached) >= CACHED_IMAGES:
                    self.cached.pop(next(iter(self.cached)))
                self.cached[i] = rgb
        return rgb

    def _read(self, i: int) -> np.ndarray:
        name = str(self.frames["name"][i])
        if self.frames["source"][i] >= 0:
            name, _, number = name.rpartition("#")
            rgb = self._video(i, name).read(int(number))
        else:
            image = read_image(self.find(name), self.max_pixels)
            self._compare(i, name, image.file)
            assert image.rgb is not None
            rgb = image.rgb
        width, height = self.frames["size"][i]
        if rgb.shape[:2] != (height, width):
            raise InputError(f"{name} is {rgb.shape[1]} x {rgb.shape[0]}, the artefact says {width} x {height}")
        return rgb

    def _video(self, i: int, name: str) -> Video:
        """The video `name`, which frame i belongs to; only one is open at a time."""
        if self.open_video is None or self.open_video[0] != name:
            path = self.find(name)
            self._compare(i, name, file_fingerprint(path))
            if self.open_video is not None:
                self.open_video[1].close()
            self.open_video = name, Video(path, video_times(path), self.max_pixels)
        return self.open_video[1]

    def _compare(self, i: int, name: str, fingerprint: str) -> None:
        """Raise InputError when the file of frame i is not the one that the artefact was made from."""
        expected = str(self.frames["file"][i]) if "file" in self.frames else ""
        if expected and expected != fingerprint:
            raise InputError(
                f"{name} has changed since detection (was {expected[:12]}, is {fingerprint[:12]})",
                "run hmr detect again",
            )


def open_frame(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One image file as RGB (H, W, 3) uint8. Raises InputError."""
    rgb = read_image(path, max_pixels).rgb
    assert rgb is not None
    return rgb


def read_frames(
    source: FrameList | FrameSource | Artefact, indices: Sequence[int] | np.ndarray, workers: int = 0
) -> list[LoadedImage]:
    """The frames `indices` of a FrameList, a FrameSource or an Artefact, in this order, images by `workers` threads.

    A frame that fails has `rgb` None, and its `error` says why.
    """
    if not isinstance(source, (FrameList, FrameSource)):
        source = FrameSource(source)
    videos = source.source if isinstance(source, FrameList) else source.frames["source"]

    def one(i: int) -> LoadedImage:
        try:
            return source.read(int(i)) if isinstance(source, FrameList) else LoadedImage(source(int(i)))
        except InputError as error:
            return LoadedImage(None, error.message)

    if workers and len(indices) > 1 and not (videos[np.asarray(indices)] >= 0).any():
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, indices))
    return [one(i) for i in indices]


def frame_columns(
    listing: FrameList, indices: Sequence[int] | np.ndarray, images: Sequence[LoadedImage]
) -> dict[str, Any]:
    """The columns of `frames` for these frames, ready for run_frames; failed ones have size 0 and K NaN."""
    indices = np.asarray(indices)
    cameras = [intrinsics(p.size, p.focal) if p.rgb is not None else (np.full((3, 3), np.nan), 0) for p in images]
    return {
        "name": [listing.frame_name(i) for i in indices],
        "size": np.array([p.size for p in images], np.int32).reshape(-1, 2),
        "K": np.array([K for K, _ in cameras], np.float32).reshape(-1, 3, 3),
        "K_source": np.array([s for _, s in cameras], np.uint8),
        "time": listing.time[indices],
        "source": listing.source[indices],
        "view": listing.view[indices],
        "status": np.array([OK if p.rgb is not None else FAILED for p in images], np.uint8),
        "error": [p.error for p in images],
        "file": [p.file for p in images],
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
    video. views: every input is one camera (frames/view). Raises InputError when nothing is found, for a path that does
    not exist or a video that does not open; UsageError for the same input twice.
    """
    root, files = list_files(inputs, files_from, views=views)
    media = [_media_file(Path(path), root, view) for path, view in files.items()]
    return FrameList(root, sorted(media, key=lambda f: (f.view, natural(f.name))), every, max_pixels)


def _media_file(path: Path, root: Path, view: int) -> MediaFile:
    name = escape(path.relative_to(root).as_posix())
    if is_video(path):
        return MediaFile(path, name, view, video_times(path), time_base(path))
    return MediaFile(path, name, view)
