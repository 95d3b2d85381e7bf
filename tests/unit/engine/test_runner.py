"""The row loop: the same values however it runs, failed rows, resume, refusal, shards, interruption, full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, KINDS, OK, SKIPPED, Column
from stages.artefacts.table import Artefact, in_memory
from stages.artefacts.validate import check_file
from stages.engine.header import Header, PartPlan
from stages.engine.job import Job, ProgressReport, RunOptions
from stages.engine.parts import pack, unpack
from stages.engine.provenance import make_header
from stages.engine.runner import merge, run_frames, run_rows
from stages.errors import ArtefactError, InputError, Interrupted, MachineError, RowsFailed, UsageError
from tests.helpers.small_artefacts import COCO, MESHES, detections, recover_job, recover_load, same, save

ROWS = 700  # three parts
TABLE = detections(ROWS)


class Notes(ProgressReport):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


def counted(table: Artefact, stop_at: int = 10**9, error: BaseException | None = None) -> tuple[Callable, list[int]]:
    """recover_load that counts the rows it computes and raises `error` when it comes to row `stop_at`."""
    seen: list[int] = []

    def load() -> Callable[[np.ndarray], Any]:
        compute = recover_load(table)()

        def watched(rows: np.ndarray) -> Any:
            if error is not None and (rows >= stop_at).any():
                raise error
            seen.extend(rows.tolist())
            return compute(rows)

        return watched

    return load, seen


def never() -> Any:
    raise AssertionError("nothing is left to compute")


# ---- the same values -----------------------------------------------------------------------------------------------


def test_batch_size_shards_and_memory_change_nothing(tmp_path: Path) -> None:
    job, load = recover_job(TABLE), recover_load(TABLE)
    whole = run_rows(job, load, tmp_path / "whole.h5", RunOptions())
    with open_artefact(whole) as expected:
        assert expected.n_rows == ROWS and expected.read("smpl/betas").std() > 10
        for batch in (1, 7, 64, 1000):
            with open_artefact(run_rows(job, load, tmp_path / f"{batch}.h5", RunOptions(batch_size=batch))) as artefact:
                same(expected, artefact)
        for shard in (2, 0, 1):
            last = run_rows(job, load, tmp_path / "s.h5", RunOptions(shard=(shard, 3), batch_size=7))
        with open_artefact(last) as artefact:
            same(expected, artefact)
        inside = run_rows(job, load, None, RunOptions(batch_size=5))
        same(expected, inside)
        assert inside.fingerprint == expected.fingerprint and inside.path is None
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".h5"] * 6  # no parts, marks or temporary files are left


def test_input_from_a_file_or_from_memory_is_the_same_job(tmp_path: Path) -> None:
    path = save(TABLE, tmp_path / "d.h5")
    with open_artefact(path) as table:
        assert table.rows_fingerprint == TABLE.rows_fingerprint
        a = run_rows(recover_job(table), recover_load(table), None, RunOptions())
        same(a, run_rows(recover_job(TABLE), recover_load(TABLE), None, RunOptions()))


def test_zero_rows_need_no_model(tmp_path: Path) -> None:
    empty = detections(0)
    with open_artefact(run_rows(recover_job(empty), never, tmp_path / "a.h5", RunOptions())) as artefact:
        assert artefact.n_rows == 0 and artefact.shape("joints/xyz") == (0, 24, 3)
        same(artefact, run_rows(recover_job(empty), never, None, RunOptions()))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    column = Column("features/x", "f4", ("R", 64, 64))

    def peak(rows: int) -> float:
        table = detections(rows)
        job = Job("features", "features", {}, {"detections": table}, (column,))
        tracemalloc.start()
        out = run_rows(
            job,
            lambda: lambda r: {"features/x": np.full((len(r), 64, 64), r[0])},
            tmp_path / f"{rows}.h5",
            RunOptions(),
        )
        top = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        assert out.stat().st_size > rows * 64 * 64 * 4
        return top

    small, large = peak(1024), peak(4096)  # 17 and 67 MB of values
    assert large < small * 1.3 + 3, (small, large)


# ---- failed rows ---------------------------------------------------------------------------------------------------


def test_failed_rows_keep_their_place_with_a_reason(tmp_path: Path) -> None:
    rows = dict(TABLE.rows)
    rows["status"], rows["error"] = rows["status"].copy(), rows["error"].copy()
    rows["status"][3], rows["error"][3] = FAILED, "the box is not finite"
    rows["status"][4], rows["error"][4] = SKIPPED, "too small"
    columns = {n: TABLE.read(n) for n in TABLE.columns()}
    table = in_memory("detections", frames=TABLE.frames, rows=rows, columns=columns, group_attrs={"keypoints": COCO})

    def load() -> Any:
        compute = recover_load(table)()

        def some(index: np.ndarray) -> Any:
            assert not set(index) & {3, 4}
            values = compute(index)
            values["smpl/betas"] = np.where((index == 10)[:, None], np.nan, values["smpl/betas"])
            values["joints/xyz"][index == 11] = np.inf
            return values | {"error": ["no guidance" if i == 12 else "" for i in index]}

        return some

    report = Notes()
    out = run_rows(recover_job(table), load, tmp_path / "a.h5", RunOptions(report=report))
    check_file(out)
    with open_artefact(out) as artefact:
        status = artefact.rows["status"]
        assert np.flatnonzero(status == FAILED).tolist() == [3, 10, 11, 12] and status[4] == SKIPPED
        reasons = artefact.rows["error"][[3, 4, 10, 11, 12, 13]].tolist()
        assert reasons[:2] == ["the box is not finite", "too small"] and reasons[4:] == ["no guidance", ""]
        assert reasons[2] == "non-finite output in smpl/betas" and reasons[3] == "non-finite output in joints/xyz"
        bodies = artefact.read("smpl/body_pose")
        assert (
            np.isnan(bodies[[3, 4, 10, 11, 12]]).all() and np.isfinite(np.delete(bodies, [3, 4, 10, 11, 12], 0)).all()
        )
    assert any("4 of 700 rows failed, first row 3: the box is not finite" in s for s in report.said)
    with pytest.raises(RowsFailed, match="4 of 700 rows failed") as caught:
        run_rows(recover_job(table), never, tmp_path / "a.h5", RunOptions(strict=True))
    assert caught.value.exit_code == 6


def test_every_row_failed_is_an_input_error_but_the_file_is_whole(tmp_path: Path) -> None:
    load = lambda: lambda rows: {"error": ["dark"] * len(rows)}  # noqa: E731
    for _ in range(2):  # also when it is up to date
        with pytest.raises(InputError, match="every row failed: dark"):
            run_rows(recover_job(TABLE), load, tmp_path / "a.h5", RunOptions())
        check_file(tmp_path / "a.h5")
    with open_artefact(tmp_path / "a.h5") as artefact:
        assert artefact.read("joints/xyz").shape == (ROWS, 24, 3)


def test_an_input_error_costs_its_row_only(tmp_path: Path) -> None:
    def load() -> Any:
        compute = recover_load(TABLE)()

        def some(rows: np.ndarray) -> Any:
            if 300 in rows:
                raise InputError("150.jpg has changed since detection")
            return compute(rows)

        return some

    with open_artefact(run_rows(recover_job(TABLE), load, tmp_path / "a.h5", RunOptions())) as artefact:
        assert np.flatnonzero(artefact.rows["status"] != OK).tolist() == [300]
        assert artefact.rows["error"][300] == "150.jpg has changed since detection"


def test_a_damaged_input_stops_the_run(tmp_path: Path) -> None:
    load, _ = counted(TABLE, 300, ArtefactError("x.h5 is damaged"))
    with pytest.raises(ArtefactError, match="damaged"):
        run_rows(recover_job(TABLE), load, tmp_path / "a.h5", RunOptions())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate"),
        type("OutOfMemoryError", (Exception,), {})(),
    ],
)
def test_out_of_memory_halves_the_batch(tmp_path: Path, error: Exception) -> None:
    sizes: list[int] = []

    def load(limit: int) -> Any:
        compute = recover_load(TABLE)()

        def some(rows: np.ndarray) -> Any:
            sizes.append(len(rows))
            if len(rows) > limit:
                raise error
            return compute(rows)

        return some

    report = Notes()
    out = run_rows(recover_job(TABLE), lambda: load(20), tmp_path / "a.h5", RunOptions(report=report))
    with open_artefact(out) as artefact:
        same(artefact, run_rows(recover_job(TABLE), recover_load(TABLE), None, RunOptions()))
        assert artefact.attrs["batch_size"] == 16
    assert (
        sizes[:3] == [64, 32, 16]
        and sizes.count(64) == 1
        and len([s for s in report.said if "out of memory" in s]) == 2
    )
    with pytest.raises(MachineError, match="out of memory with a single row") as caught:
        run_rows(recover_job(TABLE), lambda: load(0), tmp_path / "b.h5", RunOptions())
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("smpl/betas"), "returned no smpl/betas"),
        (lambda v: v.update({"smpl/hands": v["smpl/betas"]}), "returned smpl/hands, which it does not declare"),
        (lambda v: v.update({"smpl/betas": v["smpl/betas"][:, :4]}), r"smpl/betas has shape \(64, 4\)"),
        (lambda v: v.update({"smpl/betas": v["smpl/betas"][:5]}), "smpl/betas has shape .* for 64 rows"),
        (lambda v: v.update({"error": [""]}), "1 errors for 64 rows"),
    ],
)
def test_a_model_that_breaks_its_word_is_named(tmp_path: Path, change: Callable, message: str) -> None:
    def load() -> Any:
        compute = recover_load(TABLE)()

        def some(rows: np.ndarray) -> Any:
            values = compute(rows)
            change(values)
            return values

        return some

    with pytest.raises(ArtefactError, match=message):
        run_rows(recover_job(TABLE), load, tmp_path / "a.h5", RunOptions())


# ---- resume and refusal --------------------------------------------------------------------------------------------


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


# ---- shards and other writers --------------------------------------------------------------------------------------


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
    from stages.files.atomic import process_start

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


# ---- interruption --------------------------------------------------------------------------------------------------


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


# ---- disks ---------------------------------------------------------------------------------------------------------


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


# ---- frames --------------------------------------------------------------------------------------------------------


class Pictures:
    kind, path, fingerprint = "frames", None, "f" * 64


def detect_job(**changes: Any) -> Job:
    columns = KINDS["detections"].columns
    return Job(
        "detect", "detections", {}, {"pictures": Pictures()}, columns, group_attrs={"keypoints": COCO}, **changes
    )


def detect_load(empty: range = range(0)) -> Any:
    """Frame i holds i % 3 people, none in `empty`; frame 5 cannot be read."""

    def compute(frames: np.ndarray) -> Any:
        people = [0 if f in empty or f == 5 else int(f) % 3 for f in frames]
        of = np.repeat(frames, people)
        n = len(frames)
        table = {
            "name": [f"{f}.jpg" for f in frames],
            "size": np.full((n, 2), 64),
            "K": np.tile(np.array([[80, 0, 31.5], [0, 80, 31.5], [0, 0, 1]]), (n, 1, 1)),
            "status": [FAILED if f == 5 else OK for f in frames],
            "error": ["5.jpg: empty" if f == 5 else "" for f in frames],
        }
        rows = {"frame": of, "box": np.stack([of, of, of + 9, of + 9], 1), "score": of / 1000}
        xy = np.tile(of[:, None, None], (1, 17, 2)) if len(of) else np.zeros((0, 0, 2))
        return table, rows, {"keypoints/xy": xy, "keypoints/score": xy[..., 0]}

    return lambda: compute


def tracks(artefact: Artefact) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A `finish` that needs the whole table."""
    order = np.argsort(-artefact.read("keypoints/score")[:, 0], kind="stable")
    return {"track": np.argsort(order).astype(np.int32)}, {"summary": {"people": artefact.n_rows}}


def test_frames_give_the_same_table_however_they_run(tmp_path: Path) -> None:
    whole = run_frames(detect_job(), 200, detect_load(), tmp_path / "a.h5", RunOptions())
    with open_artefact(whole) as expected:
        assert expected.n_frames == 200 and expected.n_rows == sum(i % 3 for i in range(200)) - 2
        assert (np.diff(expected.rows["frame"]) >= 0).all() and expected.frames["error"][5] == "5.jpg: empty"
        assert np.array_equal(expected.read("keypoints/xy")[:, 0, 0], expected.rows["frame"])
        for batch in (1, 7):
            with open_artefact(
                run_frames(detect_job(), 200, detect_load(), tmp_path / f"{batch}.h5", RunOptions(batch_size=batch))
            ) as other:
                same(expected, other)
        for shard in (1, 2, 0):
            last = run_frames(detect_job(), 200, detect_load(), tmp_path / "s.h5", RunOptions(shard=(shard, 3)))
        with open_artefact(last) as other:
            same(expected, other)
            check_file(last)
        same(expected, run_frames(detect_job(), 200, detect_load(), None, RunOptions()))
        with pytest.raises(RowsFailed, match=r"1 of 200 frames failed, first frame 5: 5\.jpg: empty"):
            run_frames(detect_job(), 200, never, tmp_path / "a.h5", RunOptions(strict=True))


def test_parts_without_people_and_nobody_at_all(tmp_path: Path) -> None:
    with open_artefact(
        run_frames(detect_job(), 200, detect_load(range(70)), tmp_path / "a.h5", RunOptions())
    ) as artefact:
        assert artefact.shape("keypoints/xy")[1:] == (17, 2) and artefact.rows["frame"].min() == 70
    with open_artefact(
        run_frames(detect_job(), 200, detect_load(range(200)), tmp_path / "b.h5", RunOptions())
    ) as artefact:
        assert artefact.n_rows == 0 and artefact.n_frames == 200
        check_file(tmp_path / "b.h5")
    with open_artefact(run_frames(detect_job(), 0, never, tmp_path / "c.h5", RunOptions())) as artefact:
        assert artefact.n_frames == 0 and artefact.shape("keypoints/xy") == (0, 17, 2)


def test_finish_sees_the_whole_table(tmp_path: Path) -> None:
    job = detect_job(finish=tracks)
    inside = run_frames(job, 200, detect_load(), None, RunOptions())
    with open_artefact(run_frames(job, 200, detect_load(), tmp_path / "a.h5", RunOptions())) as artefact:
        same(artefact, inside)
        assert sorted(artefact.rows["track"]) == list(range(artefact.n_rows))
        assert artefact.attrs["summary"] == inside.attrs["summary"] == {"people": artefact.n_rows}
        check_file(tmp_path / "a.h5")


def test_declared_columns_must_be_of_the_kind() -> None:
    job = recover_job(TABLE, columns=(*MESHES, Column("smpl/hands", "f4", ("R", 45))))
    with pytest.raises(ArtefactError, match="meshes have no column smpl/hands"):
        run_rows(job, never, None, RunOptions())
