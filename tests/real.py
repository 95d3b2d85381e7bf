"""Real things that tests use when they are there, and skip visibly when not: shared photos, the fetched detector."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import AssetError
from stages.files import cache

TESTDATA = Path(__file__).resolve().parents[2] / "shared" / "testdata"


def shared(relative: str) -> Path:
    """A file or folder of ../shared/testdata, else the test is skipped."""
    path = TESTDATA / relative
    if not path.exists():
        pytest.skip(f"no {relative} beside the repository")
    return path


def blazepose() -> Path:
    """The folder of BlazePose's files, fetched once through pip, else the test is skipped."""
    try:
        return cache.get("blazepose")
    except AssetError as error:
        pytest.skip(f"BlazePose cannot be had here: {error.message}")
