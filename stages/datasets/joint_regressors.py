"""The joint regressors that benchmarks are defined by: files of the user, checked by shape, row sums and hash.

hmr carries none of them (their licence is SMPL's). They are looked for in the data set's folder, where the reference
programs keep them, and in `regressors` of the cache. Bodies of another topology than SMPL's have their own.
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
class RegressorFile:
    """files: its possible names · sha256: the start of the published file's, '' unknown · source: where to obtain it ·
    keep: number of rows in the file -> which of them are the set, where files differ."""

    files: tuple[str, ...]
    sha256: str
    source: DatasetOrigin
    keep: dict[int, slice] = dataclasses.field(default_factory=dict)


FILES = {
    "h36m17": RegressorFile(
        ("J_regressor_h36m_correct.npy",),
        "1835d641",
        DatasetOrigin(
            "github.com/mks0601/I2L-MeshNet_RELEASE", "data/Human36M (also in FastMETRO's src/modeling/data)"
        ),
    ),
    "lsp14": RegressorFile(
        ("J_regressor_lsp.npy",), "", DatasetOrigin("github.com/wzyzyy/PostoMETRO", "src/modeling/data")
    ),
    "j19": RegressorFile(
        ("SMPL_to_J19.pkl", "SMPL_to_J19.npy"),
        "",
        DatasetOrigin(
            "github.com/nkolot/ProHMR", "the data package that its fetch_data.sh downloads (also 4D-Humans')"
        ),
    ),
    # Two different files have this name: SPIN's nine rows, and GraphCMR's fourteen, five vertices of the face before.
    "extra9": RegressorFile(
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
    def _nonzero(self) -> tuple[Tensor, Tensor]:
        """Indices of the vertices that any row uses, and the matrix over them."""
        which = torch.nonzero((self.matrix != 0).any(0))[:, 0]
        return which, self.matrix[:, which]

    def __call__(self, vertices: Tensor) -> Tensor:
        which, matrix = self._nonzero
        used = vertices.permute(1, 2, 0)[which]  # in the memory order of Body.posed: one product for all meshes
        return (matrix.to(vertices.dtype) @ used.flatten(1)).unflatten(1, used.shape[1:]).permute(2, 0, 1)


def find(body: Body, joint_set: str, data: Path | None = None) -> Regressor:
    """The matrix that defines `joint_set` on this body. Raises AssetError naming the file and where to obtain it.

    smpl24 is the kinematic tree's; its matrix serves only vertices without parameters.
    """
    if body.topology != "smpl" or joint_set == "smpl24":
        return of_body(body, joint_set)
    file = FILES.get(joint_set)
    for folder in _folders(data) if file else ():
        for name in file.files if file else ():
            if (folder / name).is_file():
                return read(folder / name, joint_set)
    if joint_set in body.added_regressors:
        return Regressor(body.regressor(joint_set), f"given with the body {body.name}")
    if file is None:
        return Regressor(body.regressor(joint_set), f"{body.name}'s own")
    raise AssetError(
        f"{file.files[0]} (joint set {joint_set}) is neither below {data or 'the data folder'} nor in {_cache()}",
        file.source.hint(file.files[0]),
    )


@functools.lru_cache(maxsize=16)
def of_body(body: Body, joint_set: str) -> Regressor:
    """The body's own regressor of a set. Raises AssetError for points that it does not have."""
    return Regressor(body.regressor(joint_set), f"{body.name}'s own")


@functools.lru_cache(maxsize=16)
def pelvis(body: Body) -> Regressor:
    """SMPL's regressor, vertices (n, V, 3) -> (n, 24, 3), of which the first joint is used: a product with a single row
    sums in an order that depends on n."""
    return Regressor(body.J_regressor, "")


def _cache() -> Path:
    return cache_dir() / "regressors"


def _folders(data: Path | None) -> list[Path]:
    """The data folder and its neighbours, as DPMesh's and ScoreHMR's users have them; then the cache."""
    folders: list[Path] = []
    if data is not None:
        root = data if data.is_dir() else data.parent
        folders = [root, root / "data", root / "Human36M", root.parent, root.parent / "Human36M"]
    return [*folders, _cache()]


@functools.lru_cache(maxsize=8)
def read(path: Path, joint_set: str) -> Regressor:
    """A checked regressor file. Raises AssetError for one of another shape or whose rows do not sum to one."""
    file = FILES[joint_set]
    rows = file.keep or {len(joint_sets.get(joint_set)): slice(None)}
    expected = " or ".join(f"{n} x {VERTICES}" for n in rows)
    digest = sha256_of(path)
    matrix = _array(path, file)
    if matrix.ndim != 2 or matrix.shape[1] != VERTICES or len(matrix) not in rows:
        raise AssetError(
            f"{path}: {joint_set} regressor of shape {matrix.shape}, needed {expected}", file.source.hint()
        )
    if not np.isfinite(matrix).all() or np.abs(matrix.sum(1) - 1).max() > 1e-2:
        raise AssetError(f"{path}: its rows do not sum to one", f"get it again; {file.source.hint()}")
    known = "" if not file.sha256 or digest.startswith(file.sha256) else ", not the published file"
    about = f"{path.name} sha256 {digest[:16]}{known}"
    return Regressor(torch.from_numpy(matrix[rows[len(matrix)]].astype(np.float32)), about)


def _array(path: Path, file: RegressorFile) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float64)
        content: Any = read_pickle(path, file.source)
        dense = content.toarray() if hasattr(content, "toarray") else content  # scipy.sparse
        return np.asarray(dense, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise AssetError(f"{path}: cannot be read ({error})", f"get it again; {file.source.hint()}") from error
