"""The fetched detector, which tests use where it can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import AssetError
from stages.files import cache


def blazepose() -> Path:
    """The folder of BlazePose's files, fetched once through pip, else the test is skipped."""
    try:
        return cache.get("blazepose")
    except AssetError as error:
        pytest.skip(f"BlazePose cannot be had here: {error.message}")
