"""Disks that are full, broken or limited while a stage runs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.artefacts.validate import check_file
from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
from stages.errors import MachineError
from tests.helpers.small_artefacts import recover_job, recover_load
from tests.helpers.watched_rows import ROWS, TABLE, counted, never


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, at: int) -> None:
    """The at-th sync fails: header, part or merged file. Finished parts are kept, the target is never half there."""
    out, count = tmp_path / "a.h5", [0]

    def fsync(handle: int) -> None:
        count[0] += 1
        if count[0] == at:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(MachineError, match=r"a\.h5: ") as caught:
        run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions())
    assert caught.value.exit_code == 5 and ("finished parts are kept" in caught.value.hint) == (at > 1)
    assert ("are free" in caught.value.message) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert not out.exists() and not list(tmp_path.rglob("*.tmp"))
    assert len(list(tmp_path.rglob("part-*"))) == {1: 0, 3: 1, 5: 3}[at]
    monkeypatch.undo()
    load, seen = counted(TABLE)
    run_rows(recover_job(TABLE), load, out, RunOptions())
    assert len(seen) == {1: 700, 3: 444, 5: 0}[at]
    check_file(out)


@pytest.mark.parametrize("at", [1, 2])
def test_a_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    real, count = os.replace, [0]

    def replace(a: Any, b: Any) -> None:
        count[0] += 1
        if count[0] == at:
            raise OSError(errno.EACCES, "Permission denied")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(MachineError, match="no permission"):
        run_rows(recover_job(TABLE), recover_load(TABLE), tmp_path / "a.h5", RunOptions())
    monkeypatch.undo()
    run_rows(recover_job(TABLE), recover_load(TABLE), tmp_path / "a.h5", RunOptions())
    check_file(tmp_path / "a.h5")


def test_too_little_space_is_said_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), {"free": 100_000, "total": 10**9})())
    with pytest.raises(MachineError, match=r"1 MB are needed, 100\.0 kB are free") as caught:
        run_rows(recover_job(TABLE), never, tmp_path / "a.h5", RunOptions())
    assert caught.value.exit_code == 5 and not list(tmp_path.iterdir())


def test_file_size_limit_in_the_merge(tmp_path: Path) -> None:
    """A real limit of the system (RLIMIT_FSIZE): parts fit, the merged file does not."""
    code = f"""
import resource, sys
from pathlib import Path
from tests.helpers.small_artefacts import *
from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
from stages.errors import MachineError
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
table = detections({ROWS})
try:
    run_rows(recover_job(table), recover_load(table), Path(sys.argv[1]), RunOptions())
except MachineError as error:
    print(error.message)
    sys.exit(5)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 5, done.stderr
    assert "a.h5" in done.stdout and len(list(tmp_path.rglob("part-*.npz"))) == 3 and not (tmp_path / "a.h5").exists()
    run_rows(recover_job(TABLE), never, tmp_path / "a.h5", RunOptions())
    check_file(tmp_path / "a.h5")
