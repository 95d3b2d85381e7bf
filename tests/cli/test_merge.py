"""`hmr merge`: joins whole shards, says what is missing."""

from __future__ import annotations

from pathlib import Path

from stages.artefacts.validate import check_file
from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
from tests.helpers.cli import hmr
from tests.helpers.small_artefacts import detections, recover_job, recover_load


def test_merge(tmp_path: Path) -> None:
    out, table = tmp_path / "a.meshes.h5", detections(600)
    done = hmr("merge", out)
    assert done.returncode == 3 and "no parts to merge" in done.stderr
    run_rows(recover_job(table), recover_load(table), out, RunOptions(shard=(0, 2)))
    done = hmr("merge", out)
    assert done.returncode == 3 and "1 of 3 parts are missing (1)" in done.stderr and not out.exists()
    # the last shard is killed after its last part and before it could join
    parts = tmp_path / "a.meshes.h5.parts"
    run_rows(recover_job(table), recover_load(table), tmp_path / "b.h5", RunOptions(shard=(1, 2)))
    (tmp_path / "b.h5.parts" / "part-000001.npz").rename(parts / "part-000001.npz")
    done = hmr("merge", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    check_file(out)
    assert not parts.exists()
