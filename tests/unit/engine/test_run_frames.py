"""Stages over frames, whose rows are known only when they are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import Column
from stages.artefacts.validate import check_file
from stages.engine.job import RunOptions
from stages.engine.runner import run_frames, run_rows
from stages.errors import ArtefactError, RowsFailed
from tests.helpers.small_artefacts import MESHES, recover_job, same
from tests.helpers.watched_rows import TABLE, detect_job, detect_load, never, tracks


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
