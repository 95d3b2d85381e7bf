"""Mesh levels of a real body: what networks are built on."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy import sparse

from stages.errors import AssetError
from stages.smpl import mesh_sampling
from stages.smpl.body import load_body
from stages.smpl.mesh_sampling import MeshSampling


@pytest.fixture(scope="module")
def levels() -> MeshSampling:
    body = load_body()
    return mesh_sampling.build(body.v_template.numpy(), body.faces.numpy())


def test_sizes_are_those_of_the_published_networks(levels: MeshSampling) -> None:
    assert levels.counts == (6890, 1723, 431)


def test_coarse_meshes_stay_close_to_the_body(levels: MeshSampling) -> None:
    template = load_body().v_template.double().numpy()
    for level in (1, 0):
        fine, coarse = levels.down(template, level), levels.down(template, level + 1)
        columns, weights = levels.upsampling(level)
        made = (coarse[columns] * weights[..., None]).sum(1)
        assert np.linalg.norm(made - fine, axis=1).mean() < (0.002, 0.006)[level]
        kept = levels.keep[level]
        assert np.allclose(made[kept], fine[kept], atol=1e-9)


def test_adjacency_is_the_faces(levels: MeshSampling) -> None:
    adjacency = levels.adjacency(2)
    assert adjacency.shape == (431, 431) and (adjacency == adjacency.T).all() and adjacency.diagonal().all()
    assert adjacency.sum() == 431 + 2 * len(levels.edges(2))
    assert 5 < adjacency.sum(1).mean() < 9


def test_the_cache_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is loaded writes nothing; `hmr body-model add` stores the levels."""
    ball = trimesh.creation.icosphere(3)
    mesh = {"v_template": torch.from_numpy(np.array(ball.vertices)), "faces": torch.from_numpy(np.array(ball.faces))}
    body: Any = SimpleNamespace(**mesh, topology="ball")
    monkeypatch.setenv("HMR_CACHE", str(tmp_path))
    first = mesh_sampling.of_body(body)
    assert not list(tmp_path.rglob("*")) and first.counts == (642, 161, 41)
    mesh_sampling.store(body)
    (stored,) = tmp_path.rglob("*.npz")
    monkeypatch.setattr(mesh_sampling, "build", None)
    mesh_sampling._BUILT.clear()
    again = mesh_sampling.of_body(body)
    monkeypatch.undo()
    monkeypatch.setenv("HMR_CACHE", str(tmp_path))
    for field, _ in mesh_sampling.FIELDS:
        assert all(np.array_equal(a, b) for a, b in zip(getattr(first, field), getattr(again, field), strict=True))
    stored.write_bytes(b"cut")
    assert mesh_sampling.of_body(body).counts == first.counts


def test_the_added_body_with_the_published_selection_serves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gender's template selects other vertices, which no published weights know."""
    ball = trimesh.creation.icosphere(3)
    faces, rng = np.asarray(ball.faces, np.int64), np.random.default_rng(0)
    templates = [(ball.vertices + rng.normal(0, 0.03, ball.vertices.shape)).astype(np.float32) for _ in range(2)]
    mine, theirs = (
        SimpleNamespace(v_template=torch.from_numpy(t), faces=torch.from_numpy(faces), topology="smpl")
        for t in templates
    )
    monkeypatch.setenv("HMR_CACHE", str(tmp_path))
    plain, published = (mesh_sampling.of_body(body) for body in (mine, theirs))  # type: ignore[arg-type]
    assert not np.array_equal(plain.keep[0], published.keep[0])
    monkeypatch.setattr(
        mesh_sampling, "PUBLISHED_SHA256", hashlib.sha256(published.keep[0].astype("<i4").tobytes()).hexdigest()
    )
    rows = [{"topology": "free", "error": ""}, {"topology": "smpl", "error": "", "path": "a"}]
    monkeypatch.setattr(mesh_sampling, "listed", lambda: rows)
    monkeypatch.setattr(mesh_sampling, "read_arrays", lambda path: {"v_template": templates[1], "f": faces})
    assert mesh_sampling.selection(mesh_sampling.of_body(mine)) == mesh_sampling.selection(published)  # type: ignore[arg-type]
    own = mesh_sampling.of_body(mine, derive=True)  # type: ignore[arg-type]
    assert mesh_sampling.selection(own) == mesh_sampling.selection(plain)
    coarser = mesh_sampling.of_body(mine, (100, 30))  # type: ignore[arg-type]
    assert coarser.counts == (642, 100, 30)


def write_published(path: Path, levels: MeshSampling, extra: object = None) -> None:
    """The authors' layout: object arrays of scipy matrices, pickled, and meshes that must not be unpickled."""

    def up(k: int) -> sparse.csc_matrix:
        columns, weights = levels.upsampling(k)
        rows = np.repeat(np.arange(len(columns)), 3)
        made = sparse.csc_matrix((weights.ravel(), (rows, columns.ravel())), shape=levels.counts[k : k + 2])
        made.eliminate_zeros()
        return made

    def down(k: int) -> sparse.csc_matrix:
        keep = levels.keep[k]
        return sparse.csc_matrix((np.ones(len(keep)), (np.arange(len(keep)), keep)), (len(keep), levels.counts[k]))

    content = {
        "U": [up(0), up(1)],
        "D": [down(0), down(1)],
        "F": [np.asarray(f, np.uint32) for f in levels.faces],
        "M": [extra],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, objects in content.items():
            array = np.empty(len(objects), object)
            array[:] = objects
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": array.shape})
            stream.write(pickle.dumps(array, protocol=2))
            archive.writestr(f"{name}.npy", stream.getvalue())


class Trap:
    """What a hostile pickle does."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('the pickle was run')",))


def test_the_published_file_is_read_without_running_it(tmp_path: Path, levels: MeshSampling) -> None:
    path = tmp_path / mesh_sampling.PUBLISHED
    write_published(path, levels, Trap())
    read = mesh_sampling.read_published(path)
    assert read.counts == levels.counts
    for a, b in zip(read.keep + read.faces, levels.keep + levels.faces, strict=True):
        assert np.array_equal(a, b)
    coarse = np.random.default_rng(0).normal(size=(1723, 3))
    made = [(coarse[one.columns[0]] * one.weights[0][..., None]).sum(1) for one in (read, levels)]
    assert np.allclose(*made, atol=1e-12)


def test_a_hostile_published_file_is_refused(tmp_path: Path, levels: MeshSampling) -> None:
    path = tmp_path / mesh_sampling.PUBLISHED
    write_published(path, levels)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["U.npy"] = parts["U.npy"][:128].partition(b"\n")[0] + b"\n" + pickle.dumps([Trap()], protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(AssetError):
        mesh_sampling.read_published(path)
