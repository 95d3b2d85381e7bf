"""Files that hmr did not write: each is refused in one sentence that names the place."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.validate import check_file
from stages.errors import ArtefactError, InputError
from tests.helpers.small_artefacts import detections, save


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def edited(tmp_path: Path, edit: Callable[[h5py.File], object]) -> Path:
    path = save(detections(6), tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def put(name: str, **how: object) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, **how)  # type: ignore[arg-type]

    return edit


def external(file: h5py.File) -> None:
    put("keypoints/score", shape=(6, 17), dtype="f4", external=[("/etc/passwd", 0, 408)])(file)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6, 17), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (6, 17))
    del file["keypoints/score"]
    file.create_virtual_dataset("keypoints/score", layout)


def link(target: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["keypoints/score"]
        file["keypoints/score"] = target

    return edit


def inflating(file: h5py.File) -> None:
    put("keypoints/score", data=np.zeros((6, 17 * 200_000), "f4"), compression="gzip", compression_opts=9)(file)


def foreign_filter(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((6, 17))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    del file["keypoints/score"]
    space = h5py.h5s.create_simple((6, 17))
    h5py.h5d.create(file["keypoints"].id, b"score", h5py.h5t.IEEE_F32LE, space, plan)


CASES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external storage": (external, "/keypoints/score keeps its data in other files"),
    "virtual": (virtual, "/keypoints/score keeps its data in other files"),
    "external link": (link(h5py.ExternalLink("/etc/x.h5", "/x")), "/keypoints/score is a link"),
    "soft link": (link(h5py.SoftLink("/rows/box")), "/keypoints/score is a link"),
    "group link": (lambda f: f.__setitem__("extra", h5py.ExternalLink("x.h5", "/")), "/extra is a link"),
    "references": (put("keypoints/score", shape=(6, 17), dtype=h5py.ref_dtype), "neither numbers nor text"),
    "ragged": (put("keypoints/score", shape=(6,), dtype=h5py.vlen_dtype("f4")), "neither numbers nor text"),
    "compound": (put("keypoints/score", shape=(6,), dtype=[("a", "f4")]), "neither numbers nor text"),
    "declared": (
        put("keypoints/score", shape=(10**9, 17), dtype="f4", chunks=(64, 17)),
        "declares 68,000,000,000 bytes",
    ),
    "inflating": (inflating, "declares 81,600,000 bytes"),
    "filter": (foreign_filter, "filter 32015"),
    "bytes": (put("keypoints/score", data=np.zeros((6, 17), "S5")), r"type \|S5, f4 is needed|neither"),
    "wrong type": (
        put("keypoints/score", data=np.zeros((6, 17), "f8")),
        "/keypoints/score has type float64, f4 is needed",
    ),
    "wrong shape": (put("keypoints/score", data=np.zeros((6, 16), "f4")), r"score has shape \(6, 16\), \(6, 17\) is"),
    "wrong rows": (put("keypoints/score", data=np.zeros((5, 17), "f4")), r"/keypoints/score has shape \(5, 17\)"),
    "missing": (lambda f: f.__delitem__("rows/track"), "column /rows/track is missing"),
    "unknown column": (put("keypoints/hue", data=np.zeros(6, "f4")), "/keypoints/hue is not one of detections"),
    "unknown group": (put("heatmaps/value", data=np.zeros(6, "f4")), "/heatmaps/value is not one of detections"),
    "deep": (put("keypoints/a/b", data=np.zeros(6, "f4")), "/keypoints/a is not an array"),
    "flat": (put("loose", data=np.zeros(6, "f4")), "/loose is not a group"),
    "joints": (lambda f: f["keypoints"].attrs.__setitem__("joints", '["a"]'), "names 1 joints, its columns have 17"),
    "no joints": (lambda f: f["keypoints"].attrs.__delitem__("joints"), "does not name its joints"),
    "no kind": (lambda f: f.attrs.__delitem__("kind"), "not an hmr artefact"),
    "unknown kind": (lambda f: f.attrs.__setitem__("kind", "hmr/meals"), "unknown kind 'hmr/meals'"),
    "other kind": (lambda f: f.attrs.__setitem__("kind", "hmr/meshes"), "not one of meshes"),
    "future": (lambda f: f.attrs.__setitem__("schema", "2.0"), "schema '2.0', this hmr reads 1.0"),
    "bad attribute": (lambda f: f.attrs.__setitem__("params", f["rows"].ref), "attribute params"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_the_place_in_one_line(tmp_path: Path, case: str) -> None:
    edit, message = CASES[case]
    path = edited(tmp_path, edit)
    with pytest.raises(ArtefactError, match=message) as caught:
        open_artefact(path)
    assert caught.value.exit_code == 3 and "\n" not in caught.value.message and str(path) in caught.value.message


def test_the_future_minor_version_may_have_more(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file.attrs["schema"] = "1.7"
        file["keypoints/hue"] = np.zeros(6, "f4")

    with open_artefact(edited(tmp_path, edit)) as artefact:
        assert artefact.read("keypoints/score").shape == (6, 17)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "not an HDF5 file"),
        (b"words\n" * 100, "not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "is damaged"),
    ],
)
def test_not_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        open_artefact(tmp_path / "a.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_files(tmp_path: Path, share: float) -> None:
    path = save(detections(400), tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ArtefactError, match="is damaged"):
        check_file(path)


def test_a_flipped_bit_in_any_column_is_found(tmp_path: Path) -> None:
    path = save(detections(400), tmp_path / "a.h5")
    good = path.read_bytes()
    with h5py.File(path) as file:
        names = [f"{g}/{n}" for g in file for n in file[g]]
        places = {n: file[n].id.get_chunk_info(0).byte_offset for n in names if file[n].chunks}
    assert len(places) >= 15
    for name, place in places.items():
        path.write_bytes(good[: place + 5] + bytes([good[place + 5] ^ 4]) + good[place + 6 :])
        with pytest.raises(ArtefactError, match=f"damaged at /{name}"):
            check_file(path)


def test_fuzzed_files_never_crash(tmp_path: Path) -> None:
    """Random damage to the metadata: an InputError or a good read, never another exception."""
    rng = np.random.default_rng(5)
    good = save(detections(6), tmp_path / "a.h5").read_bytes()
    path = tmp_path / "b.h5"
    refused = 0
    for _ in range(100):
        content = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(content) - 8))
            content[at : at + 4] = struct.pack("<I", int(rng.integers(0, 2**32)))
        path.write_bytes(content)
        try:
            check_file(path)
        except InputError as error:
            refused += 1
            assert "\n" not in error.message
    assert refused > 20
