"""One image file: bytes in, RGB uint8 out, or an InputError that names the cause.

The header is read before anything is decoded, so a decompression bomb costs nothing; Pillow's strict reader notices
truncation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stages.artefacts.kinds import K_DEFAULT, K_EXIF
from stages.errors import InputError
from stages.files.atomic import replacing
from stages.params import MAX_PIXELS

MIN_SIDE = 32
DIAGONAL_35MM = float(np.hypot(36.0, 24.0))
WHOLE = 1 << 24  # bytes: larger files are fingerprinted by SAMPLES evenly spaced blocks of SAMPLE bytes
SAMPLE, SAMPLES = 1 << 20, 16
MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF FocalPlaneResolutionUnit

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit here is lower and an error


@dataclasses.dataclass
class LoadedImage:
    """A decoded frame. rgb (H, W, 3) uint8 upright, None with `error` when it failed; focal in pixels or None;
    `file` the fingerprint of the file it came from."""

    rgb: np.ndarray | None
    error: str = ""
    focal: float | None = None
    file: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width, height after orientation; 0, 0 when it failed."""
        return (0, 0) if self.rgb is None else (self.rgb.shape[1], self.rgb.shape[0])


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """sha256 over size and content; of files above 16 MiB over size and 16 evenly spaced blocks of 1 MiB."""
    size = os.stat(path).st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with open(path, "rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """The image in `path`: first frame of an animation, EXIF orientation applied, any mode to RGB, alpha over white.

    Raises InputError (unreadable, not an image, truncated, too large or too small).
    """
    name = Path(path).name
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from error
    fingerprint = (
        hashlib.sha256(size.to_bytes(8, "little") + content).hexdigest() if size <= WHOLE else file_fingerprint(path)
    )
    rgb, focal = decode(content, name, max_pixels)
    return LoadedImage(rgb, "", focal, fingerprint)


def decode(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, float | None]:
    """RGB (H, W, 3) uint8 and the focal length in pixels (None unknown) of an encoded image. Raises InputError."""
    if foreign := foreign_content(content):
        raise InputError(f"{name}: {foreign}")
    too_large = f"{name}: larger than the limit of {max_pixels / 1e6:.0f} megapixels"
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(f"{too_large} ({width} x {height})", "--max-pixels allows it")
            if min(width, height) < MIN_SIDE:
                raise InputError(f"{name}: {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
            if image.format == "PNG":  # Pillow checks the checksums of PNG data only on request
                with Image.open(io.BytesIO(content)) as copy:
                    copy.verify()
            image.load()
            focal = exif_focal(image)
            return np.ascontiguousarray(_rgb(ImageOps.exif_transpose(image))), focal
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(too_large, "--max-pixels allows it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture in a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, ArithmeticError, TypeError) as error:
        raise InputError(f"{name}: damaged or truncated ({' '.join(str(error).split())[:120]})") from error


def foreign_content(content: bytes) -> str:
    """What the first bytes say that a file is instead of an image, '' for what may be one."""
    head = content[:512].lstrip().lower()
    if not content:
        return "the file is empty"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "this is a web page, not a picture (a download that went wrong?)"
    if head.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not a picture (git lfs pull fetches it)"
    if not any(c > 127 or (c < 32 and c not in b"\t\n\r\f") for c in content[:512]):
        return "this is a text, not a picture"
    return ""


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an image of any mode."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return np.repeat((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)[:, :, None], 3, 2)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        top = values.max(initial=0)  # 0..1, 0..255 or 0..65535: the smallest range that holds the values
        scale = 255.0 if top <= 1 and image.mode == "F" else 1.0 if top <= 255 else 1 / 257
        return np.repeat(np.clip(values * scale, 0, 255).astype(np.uint8)[:, :, None], 3, 2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def exif_focal(image: Image.Image) -> float | None:
    """Focal length in pixels of the stored image from EXIF, None where it says nothing usable.

    FocalLengthIn35mmFilm refers to the diagonal of 36 x 24 mm; else FocalLength and the focal plane's resolution.
    """
    with contextlib.suppress(Exception):
        exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
        width, height = image.size
        if film := float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm, 0)):
            focal = film / DIAGONAL_35MM * float(np.hypot(width, height))
        else:
            unit = MM_PER_UNIT[int(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))]
            exif_side = max(
                float(exif.get(ExifTags.Base.ExifImageWidth, width)),
                float(exif.get(ExifTags.Base.ExifImageHeight, height)),
            )
            focal = float(exif[ExifTags.Base.FocalLength]) * float(exif[ExifTags.Base.FocalPlaneXResolution]) / unit
            focal *= max(width, height) / exif_side
        if np.isfinite(focal) and 0.2 * max(width, height) < focal < 100 * max(width, height):
            return focal
    return None


def intrinsics(size: tuple[int, int], focal: float | None = None) -> tuple[np.ndarray, int]:
    """K (3, 3) float32 of an image of `size` (width, height), and its K_source: EXIF with a focal length, else the
    default, a focal length of the diagonal (an angle of view of 53 degrees). The principal point is the centre."""
    width, height = size
    f = float(np.hypot(width, height)) if focal is None else focal
    K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]], np.float32)
    return K, K_DEFAULT if focal is None else K_EXIF


def write_image(path: str | os.PathLike[str], rgb: np.ndarray, quality: int = 92) -> Path:
    """Write RGB (H, W, 3) uint8 to .png, .jpg or .webp, whole or not at all."""
    path = Path(path)
    image = Image.fromarray(np.ascontiguousarray(rgb))
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    with replacing(path, durable=False) as temporary:
        image.save(temporary, kind, **({"quality": quality} if kind != "PNG" else {}))
    return path
