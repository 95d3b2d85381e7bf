"""Intrinsics from a file of the user: one matrix for all images, or one per image.

.json  {"K": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]}, or {"name.jpg": [[...]], ...} (a video counts as one image)
.npy, .txt  the nine numbers
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from stages.errors import InputError

HINT = "see hmr detect --help; K is in pixels of the whole image"


@dataclasses.dataclass(frozen=True)
class CameraFile:
    """Matrices by image name; the name '' stands for all images. Can be one of a Job's inputs."""

    path: Path
    matrices: dict[str, np.ndarray]
    kind = "cameras"

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over names and numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.matrices):
            digest.update(name.encode("utf-8", "surrogateescape") + self.matrices[name].astype("<f8").tobytes())
        return digest.hexdigest()

    def find(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """K (3, 3) of the frame `name`. Raises InputError: none for it, or its principal point lies outside."""
        plain = name.rpartition("#")[0] or name
        names = (plain, plain.rpartition("/")[2], "")
        K = next((self.matrices[k] for k in names if k in self.matrices), None)
        if K is None:
            raise InputError(f"{self.path.name} has no camera for {name}", HINT)
        if not (0 <= K[0, 2] <= size[0] and 0 <= K[1, 2] <= size[1]):
            raise InputError(
                f"{name}: the principal point of K ({K[0, 2]:g}, {K[1, 2]:g}) is outside the picture "
                f"of {size[0]} x {size[1]} (in pixels of a crop?)",
                HINT,
            )
        return K

    @classmethod
    def read(cls, path: Path) -> CameraFile:
        """The file at `path`. Raises InputError where it is missing, not understood or holds an impossible matrix."""
        try:
            if path.suffix.lower() == ".json":
                content = json.loads(path.read_text())
            elif path.suffix.lower() == ".npy":
                content = np.load(path, allow_pickle=False).tolist()
            else:
                content = np.loadtxt(path).reshape(3, 3).tolist()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no camera matrix: {str(error).splitlines()[0]}", HINT) from error
        if isinstance(content, dict) and set(content) == {"K"}:
            content = content["K"]
        by_name = content if isinstance(content, dict) else {"": content}
        if not by_name:
            raise InputError(f"{path} holds no camera", HINT)
        return cls(path, {name: _matrix(path, name, value) for name, value in by_name.items()})


def _matrix(path: Path, name: str, value: object) -> np.ndarray:
    where = f"{path}{f', {name}' if name else ''}"
    try:
        K = np.asarray(value, float)
        K = K.reshape(3, 3) if K.size == 9 else K
    except (TypeError, ValueError):
        K = np.zeros(0)
    if K.shape != (3, 3):
        raise InputError(f"{where}: not a 3 x 3 matrix", HINT)
    if not np.isfinite(K).all():
        raise InputError(f"{where}: K has numbers that are not finite", HINT)
    if not np.allclose(K[2], [0, 0, 1]) or K[1, 0] != 0:
        raise InputError(f"{where}: not of the form fx s cx, 0 fy cy, 0 0 1", HINT)
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise InputError(f"{where}: focal lengths {K[0, 0]:g}, {K[1, 1]:g} must be above 0", HINT)
    return K
