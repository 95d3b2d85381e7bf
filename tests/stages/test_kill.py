"""Kill the writer at random moments (SIGKILL) and go on: no unreadable artefact, the target absent or whole, and in the
end every column byte for byte that of an uninterrupted run. shared/spec/reliability.md, sections 2 and 6."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.validate import check_file
from stages.engine.job import RunOptions
from stages.engine.parts import unpack
from stages.engine.runner import run_rows
from stages.errors import ArtefactError
from tests.helpers.small_artefacts import detections, recover_job, recover_load, same

ROOT = Path(__file__).parents[2]
ROWS = 2400  # ten parts
STAGE = f"""
import sys
from pathlib import Path
from tests.helpers.small_artefacts import detections, recover_job, recover_load
from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
table = detections({ROWS})
print("ready", flush=True)
sys.stdin.readline()
shard = (int(sys.argv[2]), int(sys.argv[3]))
run_rows(recover_job(table), recover_load(table), Path(sys.argv[1]), RunOptions(shard=shard))
"""


def start(out: Path, shard: int = 0, shards: int = 1) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line on stdin before it runs the stage."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(out), str(shard), str(shards)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def invariants(out: Path) -> tuple[bool, int]:
    """The target is absent or whole, parts under their final names are whole. -> (is it there, number of parts)."""
    if out.exists():
        check_file(out)
    parts = sorted(out.with_name(out.name + ".parts").glob("part-*.npz"))
    for part in parts:
        try:
            unpack(part)
        except ArtefactError as error:
            raise AssertionError(error.message) from error
    return out.exists(), len(parts)


def kill_until_done(tmp_path: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` runs at random moments. Returns what was seen on the way."""
    rng = np.random.default_rng(seed)
    table = detections(ROWS)
    expected = run_rows(recover_job(table), recover_load(table), None, RunOptions())
    timed = start(tmp_path / "timed.h5")
    begun = time.monotonic()
    go(timed)
    timed.wait()
    length = time.monotonic() - begun
    seen = {"kills": 0, "targets": 0, "with parts": 0}
    target, waiting = tmp_path / "0.h5", start(tmp_path / "0.h5")
    while seen["kills"] < kills:
        go(waiting)
        try:
            waiting.wait(timeout=float(rng.uniform(0, length * 1.2)))
        except subprocess.TimeoutExpired:
            waiting.send_signal(signal.SIGKILL)
            waiting.wait()
            seen["kills"] += 1
        else:
            assert waiting.returncode == 0, waiting.communicate()[1]
        there, parts = invariants(target)
        seen["with parts"] += parts > 0
        if there:
            with open_artefact(target) as artefact:
                same(expected, artefact)
            seen["targets"] += 1
            target = tmp_path / f"{seen['targets']}.h5"
        waiting = start(target)
    go(waiting)
    assert waiting.wait() == 0, waiting.communicate()[1]
    with open_artefact(target) as artefact:
        same(expected, artefact)
    assert not list(tmp_path.glob("*.parts")) or not target.with_name(target.name + ".parts").exists()
    return seen


def test_five_kills(tmp_path: Path) -> None:
    assert kill_until_done(tmp_path, 5, seed=0)["kills"] == 5


@pytest.mark.slow
def test_sixty_kills(tmp_path: Path) -> None:
    seen = kill_until_done(tmp_path, 60, seed=1)
    print(seen)
    assert seen["kills"] == 60 and seen["with parts"] > 5


def test_killed_shards_go_on_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    waiting = [start(out, i, 3) for i in range(3)]
    for process in waiting:
        go(process)
    time.sleep(0.05)
    waiting[0].kill()
    for process in waiting:
        process.wait()
    assert [p.returncode for p in waiting[1:]] == [0, 0]
    invariants(out)
    last = start(out, 0, 3)
    go(last)
    assert last.wait() == 0, last.communicate()[1]
    table = detections(ROWS)
    with open_artefact(out) as artefact:
        same(run_rows(recover_job(table), recover_load(table), None, RunOptions()), artefact)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(tmp_path: Path, number: int) -> None:
    """Two signals in a slow row: the process is gone at once, by the signal itself, as shells expect."""
    code = """
import sys, time
from pathlib import Path
from tests.helpers.small_artefacts import detections, recover_job
from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
table = detections(10)
def slow(rows):
    print("computing", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.05)
run_rows(recover_job(table), lambda: slow, Path(sys.argv[1]), RunOptions())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "computing\n"
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None  # the first only asks
    process.send_signal(number)
    assert process.wait(timeout=30) == -number
    assert not (tmp_path / "a.h5").exists()
