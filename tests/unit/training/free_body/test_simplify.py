"""Mirror-symmetric decimation, and the embedded body made again by its script (slow, needs anny)."""

from __future__ import annotations

import numpy as np
import pytest

from stages.smpl.body_files import EMBEDDED
from stages.training.free_body.simplify import decimate, mirror_of

trimesh = pytest.importorskip("trimesh")


def test_nested_closed_and_symmetric():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices = np.asarray(sphere.vertices) * (1, 1.5, 0.7)
    faces = np.asarray(sphere.faces)
    levels = decimate(vertices, faces, [301, 120], np.ones(len(vertices)))
    whole = set(range(len(vertices)))
    for (kept, reduced), count in zip(levels, (301, 120), strict=True):
        assert len(kept) == count and set(kept.tolist()) < whole
        whole = set(kept.tolist())
        mesh = trimesh.Trimesh(vertices[kept], reduced, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
        assert len(reduced) == 2 * count - 4
        m = mirror_of(vertices[kept])
        have = {frozenset(f) for f in reduced.tolist()}
        assert {frozenset(m[list(f)].tolist()) for f in have} == have
        assert 0.8 < mesh.volume / sphere.volume / 1.05 < 1.01
    detail = np.where(vertices[:, 1] > 0, 100.0, 1.0)
    ((kept, _),) = decimate(vertices, faces, [200], detail)
    assert (vertices[kept, 1] > 0).mean() > 0.6  # detail is kept where it is asked for


def test_a_mesh_without_symmetry_is_refused():
    vertices = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ValueError, match="mirror image"):
        mirror_of(vertices)


@pytest.mark.slow
def test_the_script_makes_the_embedded_body_again():
    pytest.importorskip("anny")
    from stages.training.free_body.build import build

    arrays, report = build()
    with np.load(EMBEDDED, allow_pickle=False) as file:
        assert set(file.files) == set(arrays)
        for key in file.files:
            if file[key].dtype.kind == "f":  # bit for bit on one machine; other linear algebra kernels round otherwise
                assert np.allclose(file[key], arrays[key], atol=2e-6), key
            else:
                assert np.array_equal(file[key], arrays[key]), key
    assert report["joint_gap_mm"] <= 6 and report["shape_error_mm"] <= 3 and report["variance_explained"] >= 0.99
