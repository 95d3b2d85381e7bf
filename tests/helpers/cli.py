"""Run the real `hmr` as a process, as people do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def hmr(
    *args: Any, timeout: float = 300, cwd: str | Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """`hmr ARGS...`: a CompletedProcess with returncode, stdout and stderr as text."""
    command = [sys.executable, "-m", "hmr_cli.app", *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **env},
    )


def hmr_ok(*args: object, **kwargs: object) -> str:
    """stderr of an `hmr` that must succeed."""
    found = hmr(*args, timeout=900, **kwargs)  # type: ignore[arg-type]
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr and "UserWarning" not in found.stderr
    return found.stderr
