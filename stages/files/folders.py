"""Where hmr's own files are: data that comes with the package, and the user's cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def packaged(name: str) -> Path:
    """A file of the package, by its path below `stages/`: packaged("data/body.npz")."""
    return Path(__file__).resolve().parents[1] / name


def cache_dir() -> Path:
    """$HMR_CACHE, else ~/.cache/hmr (the system's temporary folder for accounts without a home). May not exist yet."""
    if chosen := os.environ.get("HMR_CACHE"):
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "hmr"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "hmr-cache"
