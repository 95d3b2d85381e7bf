"""Small artefacts for tests: people whose every number follows from their row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import JOINT_COLUMNS, SMPL_COLUMNS
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from stages.keypoints.joint_sets import SETS
from stages.params.rules import param

COCO = {"joints": list(SETS["coco17"]), "joint_set": "coco17", "score_definition": "0 to 1"}


def detections(n_rows: int = 10, per_frame: int = 2, seed: int = 0, **attrs: Any) -> Artefact:
    """A detections table in memory: `per_frame` people a picture."""
    rng = np.random.default_rng(seed)
    frames = -(-n_rows // per_frame)
    corner = rng.uniform(0, 200, (n_rows, 2))
    return in_memory(
        "detections",
        frames={
            "name": [f"{i}.jpg" for i in range(frames)],
            "size": np.full((frames, 2), (640, 480)),
            "K": np.tile(np.array([[800, 0, 319.5], [0, 800, 239.5], [0, 0, 1]]), (frames, 1, 1)),
        },
        rows={"frame": np.arange(n_rows) // per_frame, "box": np.concatenate([corner, corner + 100], 1)},
        columns={
            "keypoints/xy": rng.uniform(0, 400, (n_rows, 17, 2)),
            "keypoints/score": rng.uniform(0, 1, (n_rows, 17)),
        },
        group_attrs={"keypoints": COCO},
        attrs=attrs,
    )


@dataclasses.dataclass(frozen=True)
class Params:
    scale: float = param(1.0, "what every value is multiplied with")


MESHES = (*SMPL_COLUMNS, *JOINT_COLUMNS)
BODY = {"smpl": {"body_model": "test", "gender": "neutral"}, "joints": {"joints": list(SETS["smpl24"])}}


def recover_job(source: Artefact, scale: float = 1.0, **changes: Any) -> Job:
    """A stand-in for `hmr recover`: every column follows from the row's keypoints."""
    given: dict[str, Any] = {
        "model": {"name": "test", "sha256": "00", "licence": "none"},
        "columns": MESHES,
        "group_attrs": BODY,
    }
    return Job("recover", "meshes", Params(scale), {"detections": source}, **(given | changes))


def recover_load(source: Artefact, scale: float = 1.0) -> Callable[[], Callable[[np.ndarray], Mapping[str, Any]]]:
    def compute(rows: np.ndarray) -> dict[str, Any]:
        xy = source.read("keypoints/xy", rows) * np.float32(scale)
        return {
            "smpl/global_orient": xy[:, 0, [0, 1, 0]],
            "smpl/body_pose": np.concatenate([xy, xy[:, :6]], 1)[:, :, [0, 1, 1]],
            "smpl/betas": xy[:, :10, 0],
            "smpl/transl": xy[:, 1, [1, 0, 1]],
            "joints/xyz": np.concatenate([xy, xy[:, :7]], 1)[:, :, [1, 1, 0]],
            "joints/confidence": np.concatenate([xy, xy[:, :7]], 1)[:, :, 0],
        }

    return lambda: compute


def save(artefact: Artefact, path: Path) -> Path:
    """The table as a file, through the same door as every stage."""
    job = Job(
        "test",
        artefact.kind,
        {"content": artefact.fingerprint},
        {},
        tuple(c for c in _columns(artefact)),
        group_attrs={g: artefact.group_attrs(g) for g in {c.split("/")[0] for c in artefact.columns()}},
    )
    out = run_whole(job, lambda: artefact, path, RunOptions())
    assert isinstance(out, Path)
    return out


def _columns(artefact: Artefact) -> list[Any]:
    from stages.artefacts.kinds import Column
    from stages.artefacts.schema import find_column

    return [
        find_column(artefact.kind, n) or Column(n, artefact.dtype(n).str[1:], ("R", "...")) for n in artefact.columns()
    ]


def same(a: Artefact, b: Artefact) -> None:
    """Every column, equal byte for byte."""
    assert a.columns() == b.columns()
    for name in a.columns():
        x, y = a.read(name), b.read(name)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), name
    for table in ("frames", "rows"):
        x, y = getattr(a, table), getattr(b, table)
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].tolist() == y[name].tolist() or np.array_equal(x[name], y[name], equal_nan=True), name
