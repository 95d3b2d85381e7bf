"""Video files through PyAV: which frames there are, at which times, and any of them as RGB in constant memory.

A frame is identified by its presentation time in the packet table, never by counting what the decoder delivers: frames
of a damaged section fail, the others keep their indices.
"""

from __future__ import annotations

import contextlib
import fractions
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError, MachineError
from stages.files.atomic import replacing

UNKNOWN_TIME = -(1 << 62)  # earlier than every presentation time
SEEK_AHEAD = 200  # frames: reading on is cheaper than seeking for gaps up to about a group of pictures


def _av() -> Any:
    """PyAV, imported for videos only. Raises MachineError without it."""
    try:
        import av
    except ImportError as error:
        raise MachineError("video needs PyAV, which is not installed", "pip install av") from error
    av.logging.set_level(av.logging.PANIC)
    return av


def _open(path: Path) -> tuple[Any, Any]:
    """The container and its first video stream. Raises InputError."""
    av = _av()
    try:
        # Metadata that is not UTF-8 must not end a run: PyAV 19 reads it by itself, older ones are told to.
        options = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
        container = av.open(str(path), **options)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (2, 13):
            raise InputError(f"{path.name}: {error.strerror}") from error
        raise InputError(
            f"{path.name}: not a readable video ({getattr(error, 'strerror', error)}); cut off, or no index?",
            "try to remux it: ffmpeg -err_detect ignore_err -i IN -c copy OUT.mp4",
        ) from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path.name}: holds no pictures (audio only?)")
    return container, container.streams.video[0]


def video_times(path: Path) -> np.ndarray:
    """Presentation times of all frames in order, int64 in units of the stream's time base, without decoding.

    Raises InputError for a file that does not open or has no frames.
    """
    av = _av()
    container, stream = _open(path)
    times: set[int] = set()
    with container:
        packets = 0
        with contextlib.suppress(av.FFmpegError):
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    packets += 1
                    if packet.pts is not None:
                        times.add(packet.pts)
    if len(times) < packets:  # packets without times (raw streams, some AVI): they must be decoded
        reader = Video(path, np.zeros(0, np.int64))
        times = {f.pts for f in reader.frames() if f.pts is not None}
        reader.close()
    if not times:
        raise InputError(f"{path.name}: has no frames", "try to remux it: ffmpeg -i IN -c copy OUT.mp4")
    return np.array(sorted(times), np.int64)


def time_base(path: Path) -> float:
    """Seconds per unit of `video_times`."""
    container, stream = _open(path)
    with container:
        return float(stream.time_base or fractions.Fraction(1, 1))


class Video:
    """Frames of one video by index; reading in order decodes each frame once. Not for several threads at a time."""

    def __init__(self, path: Path, times: np.ndarray, max_pixels: int = 100_000_000) -> None:
        self.path, self.times, self.max_pixels = path, times, max_pixels
        self.container, self.stream = _open(path)
        if self.stream.width * self.stream.height > max_pixels:
            raise InputError(f"{path.name}: {self.stream.width} x {self.stream.height} is larger than the limit")
        self.stream.thread_type = "SLICE"
        self.stream.codec_context.options = {"err_detect": "explode"}  # or the decoder conceals damage
        self.lock = threading.Lock()
        self.source: Iterator[Any] = self.frames()
        self.pending: Any = None  # decoded, not yet requested
        self.last: tuple[int, np.ndarray | None] = (-1, None)
        self.position = 0  # index of the next frame that the decoder can deliver

    def close(self) -> None:
        self.container.close()

    def frames(self) -> Iterator[Any]:
        """Decoded frames from the current position on, without those predicted from damaged ones.

        After a packet that cannot be decoded, or an announced time that is skipped, the decoder continues with stale
        reference images and does not say so; nothing is yielded until a key frame after the damage.
        """
        av = _av()
        packets = self.container.demux(self.stream)
        damaged: int | None = None  # presentation time of the last damage, until a later key frame
        previous: int | None = None  # index of the last decoded frame
        while True:
            packet = None
            try:
                packet = next(packets)
                decoded = packet.decode()
            except (StopIteration, av.EOFError):
                return
            except av.FFmpegError:
                damaged = packet.pts if packet is not None and packet.pts is not None else UNKNOWN_TIME
                continue
            for frame in decoded:
                if frame.pts is None:
                    continue
                index = int(np.searchsorted(self.times, frame.pts))
                if previous is not None and index > previous + 1 and damaged is None:
                    damaged = int(self.times[previous + 1])
                previous = index
                if frame.is_corrupt:
                    damaged = frame.pts
                elif damaged is not None and frame.key_frame and frame.pts > damaged:
                    damaged = None
                if damaged is None:
                    yield frame

    def read(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8, upright, of frame `index`. Raises InputError for a frame that cannot be decoded."""
        with self.lock:
            if self.last[0] != index:
                self.last = (index, self._decode(index))
            rgb = self.last[1]
        if rgb is None:
            seconds = float(self.times[index] * self.stream.time_base)
            raise InputError(f"{self.path.name}: frame {index} at {seconds:.3f} s is announced but cannot be decoded")
        return rgb

    def _decode(self, index: int) -> np.ndarray | None:
        time = int(self.times[index])
        if index < self.position or index > self.position + SEEK_AHEAD:
            self.container.seek(time, stream=self.stream, backward=True)
            self.source, self.pending = self.frames(), None
        self.position = index + 1
        while True:
            frame = self.pending if self.pending is not None else next(self.source, None)
            self.pending = None
            if frame is None:
                return None
            if frame.pts == time:
                return _upright(frame)
            if frame.pts > time:
                self.pending = frame
                return None


def _upright(frame: Any) -> np.ndarray:
    """RGB with the rotation that the file asks for (counter-clockwise degrees in PyAV)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def write_video(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float = 30.0, crf: int = 20) -> Path:
    """Write RGB (H, W, 3) uint8 frames of one size as H.264 (plays in browsers), whole or not at all; odd sizes are
    padded by one pixel. Raises InputError for no frames."""
    av = _av()
    path = Path(path)
    stream = None
    with (
        replacing(path, durable=False) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        for rgb in frames:
            height, width = (rgb.shape[0] + 1) // 2 * 2, (rgb.shape[1] + 1) // 2 * 2
            if stream is None:
                rate = fractions.Fraction(fps).limit_denominator(1001)
                stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if (width, height) != rgb.shape[1::-1]:
                rgb = np.pad(rgb, ((0, height - rgb.shape[0]), (0, width - rgb.shape[1]), (0, 0)), "edge")
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")):
                container.mux(packet)
        if stream is None:
            raise InputError(f"{path.name}: no frames to write")
        for packet in stream.encode():
            container.mux(packet)
    return path
