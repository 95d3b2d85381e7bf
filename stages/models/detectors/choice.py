"""Which detector `auto` takes, which would be better, and how to get that one. Devices are torch's: cpu, cuda, mps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from stages.files import cache
from stages.models import find
from stages.models.tables import AUTO_CPU, AUTO_GPU, DETECTORS, RANKED


def ranked(device: str) -> tuple[str, ...]:
    """The detectors that `auto` chooses from on a device, best first. The last one is in the package."""
    return AUTO_CPU if device == "cpu" else AUTO_GPU


def files_of(name: str) -> Path | None:
    """The folder of a detector's files in the cache, None where it has none there."""
    return cache.find(name) if name in cache.ASSETS else None


def best_ready(device: str) -> str:
    """The first of `ranked` whose files are on this machine."""
    names = ranked(device)
    return next((name for name in names if not find(DETECTORS, name).missing(files_of(name))), names[-1])  # type: ignore[attr-defined]


def availability(name: str, device: str) -> dict[str, Any]:
    """Root attributes of detections: the best detector that hmr knows for the device, and whether it is this one.

    Empty for detectors that are not compared with the others (mmpose, pct, the user's own).
    """
    best = ranked(device)[0]
    return {"best_detector": best, "detector_is_best_available": name == best} if name in RANKED else {}


def how_to_get(name: str) -> str:
    """The command that makes a detector ready."""
    lacks = name == "rtmpose" and importlib.util.find_spec("onnxruntime") is None
    return ('pip install "hmr-toolchain[rtmpose]" && ' if lacks else "") + f"hmr assets get {name}"


def try_out(name: str, folder: Path) -> None:
    """Load a detector's files and look at an empty image. Raises AssetError unless they are what they should be."""
    kind: Any = find(DETECTORS, name)
    if not kind.missing(folder):
        kind.load(folder, device="cpu")([np.zeros((96, 64, 3), np.uint8)], [np.array([[8.0, 8.0, 56.0, 88.0]])])
