"""Tables in memory and in files: the same reading, checked types, provenance, `check`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from stages.artefacts.hdf5 import Writer, open_artefact
from stages.artefacts.kinds import FAILED, KINDS
from stages.artefacts.schema import describe
from stages.artefacts.table import in_memory
from stages.artefacts.validate import check, check_file, summary
from stages.errors import ArtefactError, InputError, UsageError
from tests.helpers.small_artefacts import COCO, detections, same, save


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_file_and_memory_read_the_same(tmp_path: Path) -> None:
    table = detections(500)
    with open_artefact(save(table, tmp_path / "a.h5"), "detections") as file:
        same(table, file)
        assert file.group_attrs("keypoints") == COCO
        assert (file.n_rows, file.n_frames) == (500, 250)
        assert file.rows_fingerprint == table.rows_fingerprint
        for rows in (
            slice(3, 9),
            np.array([7, 3, 3, 499]),
            np.arange(20, 90),
            np.array([], int),
            np.arange(500) % 3 == 0,
        ):
            expected = table.read("keypoints/xy")[rows]
            assert np.array_equal(file.read("keypoints/xy", rows), expected)
            assert np.array_equal(table.read("keypoints/xy", rows), expected)
        with pytest.raises(ArtefactError, match="no column heatmaps/value"):
            file.read("heatmaps/value")
        with pytest.raises(IndexError):
            file.read("keypoints/xy", np.array([500]))
        check(file)


def test_what_is_in_a_file_is_documented_and_plain(tmp_path: Path) -> None:
    path = save(detections(300), tmp_path / "a.h5")
    with h5py.File(path, "r") as file:
        assert set(file) == {"frames", "rows", "keypoints"}
        documented = {c["name"] for c in describe("detections")["columns"]}
        for group in file:
            for name, column in file[group].items():
                assert f"{group}/{name}" in documented
                assert column.fletcher32 and column.compression is None
        assert set(file.attrs) <= set(describe("detections")["attrs"])
        assert json.loads(file.attrs["params"]) and json.loads(file["keypoints"].attrs["joints"]) == COCO["joints"]
        assert str(tmp_path) not in "".join(str(v) for n, v in file.attrs.items() if n != "command")


def test_large_columns_are_chunked_along_rows(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.h5", reserve=1 << 16) as writer:
        assert writer.alloc("a/x", "f2", (5000, 17, 56, 56)).chunks == (8, 17, 56, 56)
        assert writer.alloc("a/y", "f4", (5000,)).chunks == (5000,)
        assert writer.alloc("a/z", "f4", (0, 3)).chunks is None


def test_long_and_odd_attributes_survive(tmp_path: Path) -> None:
    from stages.engine.job import Job, RunOptions
    from stages.engine.runner import run_rows
    from tests.helpers.small_artefacts import BODY, MESHES, recover_load

    table = detections(4)
    big = {"per_sequence": {f"sequence {i}": [i, "é", None] for i in range(9000)}}
    job = Job("recover", "meshes", {}, {"detections": table}, MESHES, group_attrs=BODY, attrs={"summary": big})
    with open_artefact(run_rows(job, recover_load(table), tmp_path / "a.h5", RunOptions())) as file:
        assert file.attrs["summary"] == big
        check(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints/xy": np.zeros((10, 16, 2))}, "names 17 joints, its columns have 16|shape"),
        ({"keypoints/xy": np.zeros((9, 17, 2))}, "shape"),
        ({"keypoints/xy": np.zeros((10, 17, 3))}, r"/keypoints/xy has shape \(10, 17, 3\), \(10, 17, 2\) is needed"),
        ({"heatmaps/value": np.zeros((10, 2))}, "no column heatmaps/value"),
        ({"extra/words": np.array(["a"] * 10)}, "type"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    good = detections(10)
    columns = {n: good.read(n) for n in good.columns()} | change
    with pytest.raises(ArtefactError, match=message):
        in_memory("detections", frames=good.frames, rows=good.rows, columns=columns, group_attrs={"keypoints": COCO})


def test_columns_of_ones_own_go_into_extra(tmp_path: Path) -> None:
    good = detections(10)
    columns = {n: good.read(n) for n in good.columns()} | {"extra/mine": np.arange(30).reshape(10, 3)}
    table = in_memory(
        "detections", frames=good.frames, rows=good.rows, columns=columns, group_attrs={"keypoints": COCO}
    )
    with open_artefact(save(table, tmp_path / "a.h5")) as file:
        assert file.read("extra/mine")[9].tolist() == [27, 28, 29]


def test_fingerprints_tell_tables_apart() -> None:
    a, b, c = detections(10), detections(10), detections(10, seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.rows_fingerprint == b.rows_fingerprint != c.rows_fingerprint
    columns = {n: a.read(n) for n in a.columns()}
    columns["keypoints/score"] = columns["keypoints/score"] * 0.5
    d = in_memory("detections", frames=a.frames, rows=a.rows, columns=columns, group_attrs={"keypoints": COCO})
    assert d.rows_fingerprint == a.rows_fingerprint and d.fingerprint != a.fingerprint


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_zero_rows_are_valid_in_every_kind(kind: str, tmp_path: Path) -> None:
    columns, attrs = {}, {}
    for column in KINDS[kind].columns:
        size = [0 if s == "R" else 5 if isinstance(s, str) else s for s in column.shape]
        columns[column.name] = np.zeros(size, column.dtype)
        attrs.setdefault(column.name.split("/")[0], {})["joints"] = list("abcde")
    for group, name, _ in KINDS[kind].group_attrs:
        if group in attrs:
            attrs[group].setdefault(name, "x")
    if KINDS[kind].any_group:
        columns["features/any"] = np.zeros((0, 7, 7), "f2")
    for frames in (0, 2):
        table = in_memory(
            kind,
            frames={
                "name": [f"{i}" for i in range(frames)],
                "size": np.full((frames, 2), 64),
                "K": np.tile(np.eye(3), (frames, 1, 1)),
            },
            rows={"frame": [], "box": np.zeros((0, 4))},
            columns=columns,
            group_attrs=attrs,
        )
        with open_artefact(save(table, tmp_path / f"{frames}.h5"), kind) as file:
            check(file)
            same(table, file)
            assert summary(file)["rows"]["all"] == 0


def broken(tmp_path: Path, path: str, value: object, at: object = 0) -> Path:
    """A good file with one value changed behind hmr's back (checksums renewed by HDF5)."""
    out = save(detections(6), tmp_path / "a.h5")
    with h5py.File(out, "r+") as file:
        file[path][at] = value
    return out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rows/frame", 99, "/rows/frame of row 0 is 99, there are 3"),
        ("rows/frame", -1, "/rows/frame"),
        ("rows/status", 7, "/rows/status"),
        ("rows/box", np.nan, "/rows/box of row 0 is not finite"),
        ("rows/box", 5.0, "rows_fingerprint says [0-9a-f]{12}, the rows give [0-9a-f]{12}"),
        ("frames/name", b"1.jpg", "/frames/name has '1.jpg' twice"),
        ("frames/K", 0.0, "/frames/K of frame 0"),
        ("frames/K", np.nan, "/frames/K of frame 0"),
    ],
)
def test_check_finds_what_opening_cannot(tmp_path: Path, path: str, value: object, message: str) -> None:
    out = broken(tmp_path, path, value)
    with pytest.raises(ArtefactError, match=message) as caught:
        check_file(out)
    assert "\n" not in str(caught.value)


def test_principal_point_in_crop_pixels_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"/frames/K of frame 1 \(1.jpg\): the principal point lies outside"):
        check_file(broken(tmp_path, "frames/K", 900.0, (1, 0, 2)))
    (tmp_path / "a.h5").unlink()
    with pytest.raises(ArtefactError, match=r"/frames/K of frame 2 \(2.jpg\): not a camera"):
        check_file(broken(tmp_path, "frames/K", -800.0, (2, 0, 0)))


def test_a_nan_in_a_row_that_is_ok_is_an_error(tmp_path: Path) -> None:
    from stages.engine.job import RunOptions
    from stages.engine.runner import run_rows
    from tests.helpers.small_artefacts import recover_job, recover_load

    table = detections(6)
    out = run_rows(recover_job(table), recover_load(table), tmp_path / "m.h5", RunOptions())
    check_file(out)
    with h5py.File(out, "r+") as file:
        file["smpl/betas"][3, 2] = np.nan
    with pytest.raises(ArtefactError, match="/smpl/betas of row 3 is not finite, yet the row is ok"):
        check_file(out)
    with h5py.File(out, "r+") as file:
        file["rows/status"][3] = FAILED
    check_file(out)


def test_missing_files_folders_and_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        open_artefact(tmp_path / "no" / "a.h5")
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(InputError, match="is a folder"):
        open_artefact(tmp_path)
    with pytest.raises(UsageError, match="no kind 'mesh'"):
        describe("mesh")
    with pytest.raises(ArtefactError, match="holds detections, meshes are needed"):
        open_artefact(save(detections(2), tmp_path / "a.h5"), "meshes")
