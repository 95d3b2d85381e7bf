"""Fault 40: stdin, stdout and stderr closed, full, not read to the end, or not UTF-8; no HOME, or a read-only one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_artefacts import detections, save

ROOT = Path(__file__).parents[2]
HMR = f"{sys.executable} -m hmr_cli.app"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirections")


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which `hmr` is this package's; the exit code is the first failing one of a pipe."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'hmr() {{ {HMR} "$@"; }}; {line}'],
        capture_output=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(detections(3), tmp_path_factory.mktemp("streams") / "é.detections.h5")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("hmr info é.detections.h5 --json >&-", 0),
        ("hmr heatmaps nothing.h5 -o x.h5 >&-", 3),
        ("hmr heatmaps nothing.h5 -o x.h5 2>&-", 3),
        ("hmr heatmaps é.detections.h5 -o x.heatmaps.h5 <&- >&- 2>&-", 0),
        ("hmr info é.detections.h5 | head -1", 0),
        ("hmr --help | true", 0),
        ("hmr nonsense 2>&1 | true", 2),
        ("hmr info é.detections.h5 > /dev/full", 5),
    ],
)
def test_streams_closed_full_or_left(table: Path, line: str, code: int) -> None:
    done = shell(line, table.parent)
    assert done.returncode == code, done.stderr
    said = done.stderr.decode()
    assert "bug" not in said and "Traceback" not in said and "Exception" not in said
    assert len(said.strip().splitlines()) <= 1
    if "x.heatmaps.h5" in line:  # nothing was printed into the file that took the number of a closed stream
        assert shell("hmr check x.heatmaps.h5", table.parent).returncode == 0


def test_a_terminal_that_knows_only_ascii(table: Path) -> None:
    helped = shell("hmr --help", table.parent, **ASCII)
    assert helped.returncode == 0 and helped.stdout.isascii() and b"Usage: hmr" in helped.stdout
    told = shell("hmr info é.detections.h5 --json", table.parent, **ASCII)
    assert told.returncode == 0 and told.stdout.isascii()
    assert os.fsencode(json.loads(told.stdout)["file"]) == "é.detections.h5".encode()  # as Python names it there
    failed = shell("hmr info ü.h5", table.parent, **ASCII)
    assert failed.returncode == 3 and failed.stderr.startswith(b"hmr: ") and failed.stderr.isascii()


def test_no_home_and_a_home_that_cannot_be_written(table: Path) -> None:
    """`hmr doctor` loads every library, so it stands for every command; here also on an ASCII terminal."""
    done = shell("unset HOME HMR_CACHE XDG_CACHE_HOME; hmr doctor", table.parent, **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"hmr run" in done.stdout and b"bug" not in done.stderr
    bodies = shell("HOME=/proc/nowhere hmr body-model list && HOME=/proc/nowhere hmr assets list", table.parent)
    assert bodies.returncode == 0, bodies.stderr
    assert bodies.stdout.startswith(b"embedded: ") and b"Traceback" not in bodies.stderr
