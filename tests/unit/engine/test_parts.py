"""Parts: resuming, refusal, shards, headers, locks, interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import in_memory
from stages.artefacts.validate import check_file
from stages.engine.header import Header, PartPlan
from stages.engine.job import RunOptions
from stages.engine.parts import pack, unpack
from stages.engine.provenance import make_header
from stages.engine.runner import merge, run_frames, run_rows
from stages.errors import ArtefactError, InputError, Interrupted, MachineError, UsageError
from tests.helpers.small_artefacts import COCO, detections, recover_job, recover_load, same, save
from tests.helpers.watched_rows import ROWS, TABLE, Notes, counted, detect_job, detect_load, never, tracks


def test_a_crash_keeps_finished_parts_and_the_next_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    load, first = counted(TABLE, 520, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        run_rows(recover_job(TABLE), load, out, RunOptions())
    assert not out.exists()
    load, second = counted(TABLE)
    run_rows(recover_job(TABLE), load, out, RunOptions(batch_size=7))
    assert set(second) == set(range(512, ROWS)) and set(first) | set(second) == set(range(ROWS))
    with open_artefact(out) as artefact:
        same(artefact, run_rows(recover_job(TABLE), recover_load(TABLE), None, RunOptions()))
    report = Notes()
    assert run_rows(recover_job(TABLE), never, out, RunOptions(report=report)) == out and "up to date" in report.said[0]


def test_damaged_parts_are_made_again(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    load, _ = counted(TABLE, 520, ValueError())
    with pytest.raises(ValueError):
        run_rows(recover_job(TABLE), load, out, RunOptions())
    part = tmp_path / "a.h5.parts" / "part-000001.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    load, seen = counted(TABLE)
    run_rows(recover_job(TABLE), load, out, RunOptions())
    assert set(seen) == set(range(256, ROWS))
    with open_artefact(out) as artefact:
        same(artefact, run_rows(recover_job(TABLE), recover_load(TABLE), None, RunOptions()))


def test_parts_and_targets_made_otherwise_are_refused_with_the_differences(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    load, _ = counted(TABLE, 300, ValueError())
    with pytest.raises(ValueError):
        run_rows(recover_job(TABLE), load, out, RunOptions())
    other = detections(ROWS, seed=9)
    job = recover_job(other, 2.0, model={"name": "test", "sha256": "ff" * 32})
    with pytest.raises(ArtefactError) as caught:
        run_rows(job, never, out, RunOptions())
    assert "scale 1.0 -> 2.0" in caught.value.message and "model test 00 -> test ffffffffffff" in caught.value.message
    assert f"input detections {TABLE.fingerprint[:12]} -> {other.fingerprint[:12]}" in caught.value.message
    assert "--fresh" in caught.value.hint and caught.value.exit_code == 3 and "\n" not in caught.value.message
    made = run_rows(job, recover_load(other, 2.0), out, RunOptions(fresh=True))
    with pytest.raises(ArtefactError, match=r"made otherwise.*scale 2.0 -> 1.0") as caught:
        run_rows(recover_job(TABLE), never, out, RunOptions())
    assert "--force" in caught.value.hint
    before = made.read_bytes()
    load, _ = counted(TABLE, 300, ValueError())
    with pytest.raises(ValueError):
        run_rows(recover_job(TABLE), load, out, RunOptions(force=True))
    assert out.read_bytes() == before  # the old file survives a failed rerun
    run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(force=True))
    with open_artefact(out) as artefact:
        same(artefact, run_rows(recover_job(TABLE), recover_load(TABLE), None, RunOptions()))
    out.write_text("something else")
    with pytest.raises(ArtefactError, match=r"not an HDF5 file.*in the way"):
        run_rows(recover_job(TABLE), never, out, RunOptions())


def test_dry_run_writes_and_loads_nothing(tmp_path: Path) -> None:
    report = Notes()
    run_rows(recover_job(TABLE), never, tmp_path / "a.h5", RunOptions(dry_run=True, report=report))
    assert not list(tmp_path.iterdir()) and "700 rows, 0 of 3 parts" in report.said[0]


def test_targets_that_cannot_be_are_usage_errors(tmp_path: Path) -> None:
    path = save(TABLE, tmp_path / "d.h5")
    with open_artefact(path) as table:
        with pytest.raises(UsageError, match="is also the input"):
            run_rows(recover_job(table), never, path, RunOptions(force=True))
        with pytest.raises(UsageError, match="is a folder"):
            run_rows(recover_job(table), never, tmp_path, RunOptions())
        with pytest.raises(UsageError, match="is not a folder"):
            run_rows(recover_job(table), never, path / "a.h5", RunOptions())
        with pytest.raises(UsageError, match="shards need a file"):
            run_rows(recover_job(table), never, None, RunOptions(shard=(0, 2)))
    check_file(path)


def test_inputs_with_other_rows_are_refused_with_the_first_difference() -> None:
    other = detections(ROWS, seed=4)
    job = dataclasses.replace(recover_job(TABLE), inputs={"detections": TABLE, "heatmaps": other})
    with pytest.raises(ArtefactError) as caught:
        run_rows(job, never, None, RunOptions())
    assert TABLE.rows_fingerprint[:12] in caught.value.message and other.rows_fingerprint[:12] in caught.value.message
    assert "row 0 has box" in caught.value.message
    short = dataclasses.replace(recover_job(TABLE), inputs={"detections": TABLE, "heatmaps": detections(ROWS - 1)})
    with pytest.raises(ArtefactError, match="700 and 699 rows"):
        run_rows(short, never, None, RunOptions())


def test_cameras_that_cannot_be_are_named_before_the_model_is_loaded() -> None:
    frames = dict(TABLE.frames)
    frames["K"] = frames["K"].copy()
    frames["K"][7, 0, 0] = -800
    columns = {n: TABLE.read(n) for n in TABLE.columns()}
    table = in_memory("detections", frames=frames, rows=TABLE.rows, columns=columns, group_attrs={"keypoints": COCO})
    with pytest.raises(ArtefactError, match=r"/frames/K of frame 7 \(7\.jpg\): not a camera: -800 0"):
        run_rows(recover_job(table), never, None, RunOptions())


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    load, _ = counted(TABLE, 300, ValueError())
    with pytest.raises(ValueError):
        run_rows(recover_job(TABLE), load, out, RunOptions())
    for path in (tmp_path / "a.h5.parts").iterdir():
        os.utime(path, (4e9, 4e9))
    load, seen = counted(TABLE)
    run_rows(recover_job(TABLE), load, out, RunOptions())
    assert min(seen) == 256
    os.utime(out, (1e9, 1e9))
    run_rows(recover_job(TABLE), never, out, RunOptions())


def test_merge_joins_what_shards_left_and_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    with pytest.raises(InputError, match="no parts to merge"):
        merge(out)
    report = Notes()
    assert (
        run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(shard=(0, 3), report=report)).name
        == "a.h5.parts"
    )
    assert "2 of 3 parts are left" in report.said[-1] and "hmr merge" in report.said[-1]
    with pytest.raises(ArtefactError, match=r"2 of 3 parts are missing \(1, 2\)"):
        merge(out)
    run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(shard=(1, 3)))
    shutil.copytree(tmp_path / "a.h5.parts", tmp_path / "b.h5.parts")
    run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(shard=(2, 3)))
    shutil.copy(out, tmp_path / "c.h5")
    load, seen = counted(TABLE)  # or one process does the rest
    with (
        open_artefact(run_rows(recover_job(TABLE), load, tmp_path / "b.h5", RunOptions())) as one,
        open_artefact(out) as two,
    ):
        assert set(seen) == set(range(512, ROWS))
        same(one, two)


def rewritten_header(parts: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the stored header of unfinished parts, as another version of hmr would have written it."""
    meta, tables = unpack(parts / "job.npz", ("",))
    change(meta)
    (parts / "job.npz").write_bytes(pack(meta, tables))


def test_parts_whose_header_names_a_function_by_its_module_are_resumed_and_merged(tmp_path: Path) -> None:
    """Early versions stored `finish` as package.module:function; the name of the stage is what counts."""
    job = dataclasses.replace(detect_job(), finish=tracks)
    for shard in (0, 1, 2):
        run_frames(job, 200, detect_load(), tmp_path / "a.h5", RunOptions(shard=(shard, 4)))
    rewritten_header(tmp_path / "a.h5.parts", lambda meta: meta.update(finish="stages.gone:tracks"))
    shutil.copytree(tmp_path / "a.h5.parts", tmp_path / "b.h5.parts")
    resumed = run_frames(job, 200, detect_load(), tmp_path / "a.h5", RunOptions())
    with open_artefact(resumed) as expected:
        assert expected.attrs["summary"] == {"people": expected.n_rows}
        run_frames(job, 200, detect_load(), tmp_path / "c.h5", RunOptions(shard=(3, 4)))
        shutil.copy(tmp_path / "c.h5.parts" / "part-000003.npz", tmp_path / "b.h5.parts")
        with open_artefact(merge(tmp_path / "b.h5", {job.stage: tracks})) as merged:
            same(expected, merged)


def test_a_header_of_another_version_is_refused_and_its_parts_stay(tmp_path: Path) -> None:
    out, parts = tmp_path / "a.h5", tmp_path / "a.h5.parts"
    run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(shard=(0, 3)))
    rewritten_header(parts, lambda meta: meta.pop("per"))
    for command in (lambda: run_rows(recover_job(TABLE), never, out, RunOptions()), lambda: merge(out)):
        with pytest.raises(InputError, match=r"job.npz was written by another version of hmr \(KeyError: 'per'\)"):
            command()
        assert len(list(parts.glob("part-*.npz"))) == 1
    run_rows(recover_job(TABLE), recover_load(TABLE), out, RunOptions(fresh=True))
    check_file(out)


def test_a_header_survives_the_way_through_a_file() -> None:
    job = recover_job(TABLE)
    header = make_header(job, PartPlan("rows", ROWS, 256), Path("a.h5"), TABLE.rows_fingerprint)
    stored = json.loads(json.dumps(header.to_json()))
    again = Header.from_json(stored, "job.npz")
    assert again.to_json() == stored and again.parts == header.parts and again.fingerprint == header.fingerprint
    assert [(c.name, c.dtype, c.shape, c.optional) for c in again.columns] == [
        (c.name, c.dtype, c.shape, c.optional) for c in job.columns
    ]
    assert list(header.parts.ranges()) == [(0, 256), (256, 512), (512, 700)]


def mark(folder: Path, pid: int, host: str | None = None, name: str = "writer-0-of-1", started: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid, "started": started}))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_writer_is_told_who_holds_the_target(tmp_path: Path) -> None:
    from stages.files.locks import process_start

    out, parts = tmp_path / "a.h5", tmp_path / "a.h5.parts"
    me = os.getpid()
    held = mark(parts, me, started=process_start(me))
    with pytest.raises(MachineError, match=f"being written by process {me} on this machine") as caught:
        run_rows(recover_job(TABLE), never, out, RunOptions())
    assert caught.value.exit_code == 5
    with pytest.raises(MachineError, match=f"being written by process {me}"):
        run_rows(recover_job(TABLE), never, out, RunOptions(shard=(1, 2)))  # one process does all: shards have no place
    held.unlink()
    mark(parts, me, host="elsewhere")
    with pytest.raises(MachineError, match=f"process {me} on elsewhere") as caught:
        run_rows(recover_job(TABLE), never, out, RunOptions())
    assert "delete" in caught.value.hint


@pytest.mark.parametrize("reused", [False, True])
def test_the_mark_of_a_dead_process_is_taken_over(tmp_path: Path, reused: bool) -> None:
    """Also when its number has gone to another process (another start time)."""
    mark(tmp_path / "a.h5.parts", os.getpid() if reused else dead_pid(), started="1")
    mark(tmp_path, dead_pid(), name="a.h5.merging")
    out = run_rows(recover_job(TABLE), recover_load(TABLE), tmp_path / "a.h5", RunOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]
    check_file(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_finishes_the_part_and_says_how_to_resume(tmp_path: Path, number: int, code: int) -> None:
    out, report = tmp_path / "a.h5", Notes()

    def load() -> Any:
        compute = recover_load(TABLE)()

        def some(rows: np.ndarray) -> Any:
            if 300 in rows:
                os.kill(os.getpid(), number)
            return compute(rows)

        return some

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after 2 of 3 parts") as caught:
        run_rows(recover_job(TABLE), load, out, RunOptions(report=report))
    assert caught.value.exit_code == code and "resumes" in caught.value.hint
    assert signal.getsignal(number) is before and any("once more" in s for s in report.said)
    assert not out.exists() and not list((tmp_path / "a.h5.parts").glob("writer-*"))
    load, seen = counted(TABLE)
    run_rows(recover_job(TABLE), load, out, RunOptions())
    assert set(seen) == set(range(512, ROWS))
