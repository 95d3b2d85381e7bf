"""Image files with every fault that `hmr detect` must report, and one image whose quarters differ."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(3)
SCENE = np.zeros((60, 80, 3), np.uint8)
SCENE[:30, :40] = (250, 20, 20)  # the four quarters differ, so every turn and flip shows
SCENE[:30, 40:] = (20, 250, 20)
SCENE[30:, :40] = (20, 20, 250)
SCENE[30:, 40:] = (200, 200, 20)


def noise_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (200, 300, 3), np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def noise_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (200, 300, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(5_000_000)))
        + chunk(b"IEND", b"")
    )


def bad_images(folder: Path) -> dict[str, str]:
    """One file for each fault of an image, by name, with a word that the message must have."""
    jpeg, flipped = noise_jpeg(), bytearray(noise_png())
    flipped[len(flipped) // 2] ^= 0x10
    cases: dict[str, tuple[bytes, str]] = {
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "text.jpg": (b"not a picture at all, only words\n" * 30, "text"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "nearly.jpg": (jpeg[:-40], "truncated"),
        "cut.png": (noise_png()[:5000], "truncated"),
        "flip.png": (bytes(flipped), "damaged"),
        "bomb.png": (bomb_png(30_000), "megapixels"),
        "noise.jpg": (bytes(RNG.integers(0, 255, 4000, np.uint8)), "not a picture"),
    }
    for name, (content, _) in cases.items():
        (folder / name).write_bytes(content)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (5000, 5)).save(folder / "line.png")
    return {name: word for name, (_, word) in cases.items()} | {"dot.png": "at least 32", "line.png": "at least 32"}
