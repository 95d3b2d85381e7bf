"""The loop over rows: the same values however it runs, failed rows, networks that break their contract."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK, SKIPPED, Column
from stages.artefacts.table import in_memory
from stages.artefacts.validate import check_file
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import ArtefactError, InputError, MachineError, RowsFailed
from tests.helpers.small_artefacts import COCO, detections, recover_job, recover_load, same, save
from tests.helpers.watched_rows import ROWS, TABLE, Notes, counted, never


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
