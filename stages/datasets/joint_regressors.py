"""The joint regressors that benchmarks are defined by: files of the user, checked by shape, row sums and hash.

hmr carries none of them (their licence is SMPL's). They are looked for in the data set's folder, where the reference
programs have them, and in `regressors` of the cache. Bodies of another topology than SMPL's bring their own.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.datasets.files import DatasetOrigin, read_pickle
from stages.errors import AssetError
from stages.files.folders import cache_dir
from stages.files.hashing import sha256_of
from stages.keypoints import joint_sets
from stages.smpl.body import Body

VERTICES = 6890


@dataclasses.dataclass(frozen=True)
class Named:
    """A regressor file: possible names, rows, the start of the published file's SHA-256 ('' unknown), where it is."""

    files: tuple[str, ...]
    sha256: str
    source: DatasetOrigin
    keep: dict[int, slice] = dataclasses.field(default_factory=dict)  # rows in the file -> which of them are the set


FILES = {
    "h36m17": Named(
        ("J_regressor_h36m_correct.npy",),
        "1835d641",
        DatasetOrigin(
            "github.com/mks0601/I2L-MeshNet_RELEASE", "data/Human36M (also in FastMETRO's src/modeling/data)"
        ),
    ),
    "lsp14": Named(("J_regressor_lsp.npy",), "", DatasetOrigin("github.com/wzyzyy/PostoMETRO", "src/modeling/data")),
    "j19": Named(
        ("SMPL_to_J19.pkl", "SMPL_to_J19.npy"),
        "",
        DatasetOrigin(
            "github.com/nkolot/ProHMR", "the data package that its fetch_data.sh downloads (also 4D-Humans')"
        ),
    ),
    # Two different files have this name: SPIN's nine rows, and GraphCMR's fourteen, five vertices of the face before.
    "extra9": Named(
        ("J_regressor_extra.npy",),
        "",
        DatasetOrigin("github.com/nkolot/SPIN", "the data package that its fetch_data.sh downloads"),
        {9: slice(0, 9), 14: slice(5, 14)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Regressor:
    """vertices (n, V, 3) -> joints (n, J, 3). `about` says which matrix: the file's name and SHA-256."""

    matrix: Tensor
    about: str

    @functools.cached_property
    def _needed(self) -> tuple[Tensor, Tensor]:
        """Vertices that any row uses, and the matrix over them."""
        which = torch.nonzero((self.matrix != 0).any(0))[:, 0]
        return which, self.matrix[:, which]

    def __call__(self, vertices: Tensor) -> Tensor:
        which, matrix = self._needed
        needed = vertices.permute(1, 2, 0)[which]  # in the order of Body.posed: one product for all meshes
        return (matrix.to(vertices.dtype) @ needed.flatten(1)).unflatten(1, needed.shape[1:]).permute(2, 0, 1)


def find(body: Body, joint_set: str, data: Path | None = None) -> Regressor:
    """The matrix that defines `joint_set` on this body. Raises AssetError naming the file and where it is to be had.

    smpl24 is the kinematic tree's; its matrix serves only vertices without parameters.
    """
    if body.topology != "smpl" or joint_set == "smpl24":
        return own(body, joint_set)
    named = FILES.get(joint_set)
    for folder in _places(data) if named else ():
        for name in named.files if named else ():
            if (folder / name).is_file():
                return read(folder / name, joint_set)
    if joint_set in body._given:
        return Regressor(body.regressor(joint_set), f"given with the body {body.name}")
    if named is None:
        return Regressor(body.regressor(joint_set), f"{body.name}'s own")
    raise AssetError(
        f"{named.files[0]} (joint set {joint_set}) is neither below {data or 'the data folder'} nor in {_cache()}",
        named.source.hint(named.files[0]),
    )


@functools.lru_cache(maxsize=16)
def own(body: Body, joint_set: str) -> Regressor:
    """The body's own regressor of a set. Raises AssetError for points that it does not have."""
    return Regressor(body.regressor(joint_set), f"{body.name}'s own")


@functools.lru_cache(maxsize=16)
def pelvis(body: Body) -> Regressor:
    """SMPL's regressor, vertices (n, V, 3) -> (n, 24, 3), for its first joint: a product with one row of a matrix is a
    sum in an order that depends on n."""
    return Regressor(body.J_regressor, "")


def _cache() -> Path:
    return cache_dir() / "regressors"


def _places(data: Path | None) -> list[Path]:
    """The data folder and its neighbours, as DPMesh's and ScoreHMR's users have them; then the cache."""
    near = []
    if data is not None:
        root = data if data.is_dir() else data.parent
        near = [root, root / "data", root / "Human36M", root.parent, root.parent / "Human36M"]
    return [*near, _cache()]


@functools.lru_cache(maxsize=8)
def read(path: Path, joint_set: str) -> Regressor:
    """A checked regressor file. Raises AssetError for one of another shape or whose rows do not sum to one."""
    named = FILES[joint_set]
    rows = named.keep or {len(joint_sets.get(joint_set)): slice(None)}
    wanted = " or ".join(f"{n} x {VERTICES}" for n in rows)
    digest = sha256_of(path)
    matrix = _array(path, named)
    if matrix.ndim != 2 or matrix.shape[1] != VERTICES or len(matrix) not in rows:
        raise AssetError(f"{path}: {joint_set} regressor of shape {matrix.shape}, needed {wanted}", named.source.hint())
    if not np.isfinite(matrix).all() or np.abs(matrix.sum(1) - 1).max() > 1e-2:
        raise AssetError(f"{path}: its rows do not sum to one", f"get it again; {named.source.hint()}")
    known = "" if not named.sha256 or digest.startswith(named.sha256) else ", not the published file"
    about = f"{path.name} sha256 {digest[:16]}{known}"
    return Regressor(torch.from_numpy(matrix[rows[len(matrix)]].astype(np.float32)), about)


def _array(path: Path, named: Named) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float64)
        content: Any = read_pickle(path, named.source)
        dense = content.toarray() if hasattr(content, "toarray") else content
        return np.asarray(dense, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise AssetError(f"{path}: cannot be read ({error})", f"get it again; {named.source.hint()}") from error
