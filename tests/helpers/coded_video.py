"""Videos whose every frame shows its own number, and artefacts of frames without people."""

from __future__ import annotations

import fractions
from pathlib import Path

import av
import numpy as np

from stages.artefacts.kinds import KINDS
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_frames
from stages.media.frames import frame_columns, read_frames

SIZE = (96, 64)


def coded_image(i: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An image that says its number: eight vertical bars, black or white, and a red corner at the top left."""
    width, height = size
    bits = [(i >> b) & 1 for b in range(8)]
    rgb = np.repeat(np.array(bits, np.uint8) * 255, width // 8)[None, :, None].repeat(height, 0).repeat(3, 2)
    rgb[: height // 2] = 128
    rgb[: height // 4, : width // 4] = (255, 0, 0)
    return np.ascontiguousarray(rgb)


def number_of(rgb: np.ndarray) -> int:
    """The number that coded_image drew."""
    row = rgb[-4, :, 1].reshape(8, -1).mean(1)
    return sum(1 << b for b in range(8) if row[b] > 127)


def write_coded_video(
    path: Path, times: list[int], *, gop: int = 12, base: int = 1000, codec: str = "libx264", **options: str
) -> Path:
    """A video whose i-th frame is coded(i), shown at times[i] / base seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "18", **options} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = stream.time_base = fractions.Fraction(1, base)
        stream.codec_context.gop_size = gop
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(coded_image(i), format="rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_without_people(listing: object, out: Path | None) -> object:
    """Frames without people, as hmr detect writes them."""

    def load() -> object:
        empty = {"keypoints/xy": np.zeros((0, 0, 2)), "keypoints/score": np.zeros((0, 0))}
        rows = {"frame": np.zeros(0, int), "box": np.zeros((0, 4))}
        return lambda i: (frame_columns(listing, i, read_frames(listing, i)), rows, empty)

    attrs = {"keypoints": {"joints": [], "joint_set": "none", "score_definition": ""}}
    job = Job("detect", "detections", {}, {"pictures": listing}, KINDS["detections"].columns, group_attrs=attrs)
    return run_frames(job, len(listing), load, out, RunOptions())
