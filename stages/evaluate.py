"""Errors of meshes against the ground truth of a data set, row by row, and their means.

    hmr eval synth-oc --meshes people.meshes.h5 -o people.scores.h5

In: a meshes artefact and a data set whose rows are the same. Out: a scores artefact with the error of every row and the
summary (means over rows in float64, so shards and batches change nothing). Rows that failed before are left out and
counted; a row without truth is NaN.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from stages.columns import Column
from stages.datasets.protocols import Protocol, protocol_of
from stages.datasets.truth import Dataset, Truth
from stages.errors import ArtefactError, InputError
from stages.human import metrics
from stages.kinds import OK
from stages.params import param


@dataclasses.dataclass(frozen=True)
class Params:
    """How errors are defined."""

    protocol: str = param("", "dpmesh, scorehmr, postometro, emdb or body; empty = the data set's own.")


COLUMNS = (
    Column("errors/mpjpe", "f4", ("R",), "mm", "mean per-joint position error, roots aligned"),
    Column("errors/pa_mpjpe", "f4", ("R",), "mm", "the same after similarity alignment"),
    Column("errors/mpve", "f4", ("R",), "mm", "mean per-vertex error"),
    Column("errors/occ_mpjpe", "f4", ("R",), "mm", "mean over hidden joints"),
    Column("errors/occ_pa_mpjpe", "f4", ("R",), "mm", "mean over hidden joints after similarity alignment"),
    Column("errors/acceleration", "f4", ("R",), "mm/frame^2", "acceleration error"),
    Column("errors/per_joint", "f4", ("R", "J"), "mm", "error of each joint, roots aligned"),
    Column("errors/visible", "u1", ("R", "J"), "", "1 where the joint is visible"),
)
MEANS = ("mpjpe", "pa_mpjpe", "mpve", "occ_mpjpe", "occ_pa_mpjpe", "acceleration")


def run(meshes: Any, dataset: Dataset, out: Path | None, params: Params, run: Any) -> Any:
    """Score every row of `meshes` (path or Artefact) against `dataset`; `out` None = in memory.

    Raises ArtefactError when the rows or the body topology differ.
    """
    from stages.artefact import Artefact, open_artefact
    from stages.progress import Job, run_rows

    table = meshes if isinstance(meshes, Artefact) else open_artefact(meshes, "meshes")
    protocol = protocol_of(params.protocol or dataset.protocol)
    job = Job(
        stage="evaluate",
        kind="scores",
        params={"dataset": dataset.name, "protocol": protocol.name},
        inputs={"meshes": table, "detections": dataset.detections},
        columns=COLUMNS,
        group_attrs={"errors": {"joints": list(protocol.joints)}},
        attrs={"protocol": {**dataclasses.asdict(protocol), "line": protocol.line()}, "dataset": dataset.name},
        batch_size=128,
        finish=summarise,
    )
    return run_rows(job, lambda: _scorer(table, dataset, protocol), out, run)


def _scorer(meshes: Any, dataset: Dataset, protocol: Protocol) -> Any:
    """rows -> the error columns."""
    predict = predictor(meshes, dataset.topology, protocol)
    before, after = neighbours(dataset.detections)

    def score(rows: np.ndarray) -> dict[str, Any]:
        wanted = np.unique(np.concatenate([rows, before[rows], after[rows]]))
        wanted = wanted[wanted >= 0]
        pred, truth = predict(wanted), dataset.truth(wanted, protocol)
        errors = compare(pred, truth, protocol)
        own = np.searchsorted(wanted, rows)
        acceleration = np.full(len(rows), np.nan)
        place = [np.searchsorted(wanted, part[rows]).clip(0, len(wanted) - 1) for part in (before, after)]
        whole = (wanted[place[0]] == before[rows]) & (wanted[place[1]] == after[rows])
        a, b = relative(pred, protocol), relative(truth, protocol)
        second = [x[place[0]] - 2 * x[own] + x[place[1]] for x in (a, b)]
        value = metrics.MM * np.linalg.norm(second[0] - second[1], axis=-1).mean(-1)
        acceleration[whole] = value[whole]
        return {name: values[own] for name, values in errors.items()} | {"errors/acceleration": acceleration}

    return score


def predictor(meshes: Any, topology: str, protocol: Protocol) -> Any:
    """rows -> Truth of what was recovered: vertices as they are, or posed from SMPL parameters."""
    import torch

    from stages.human import joints
    from stages.human.body import load_body

    attrs = meshes.group_attrs("smpl") or meshes.group_attrs("vertices")
    body = load_body(str(attrs.get("body_model", "embedded")).split(" ")[0], str(attrs.get("gender", "neutral")))
    if topology and body.topology != topology:
        raise ArtefactError(
            f"{meshes.path or 'the meshes'} are {body.topology} bodies, the data set's are {topology}",
            "errors between different bodies mean nothing: recover with --body",
        )
    as_vertices = meshes.has("vertices/xyz")
    if not as_vertices and not meshes.has("smpl/body_pose"):
        raise ArtefactError(f"{meshes.path or 'the meshes'} hold neither /smpl nor /vertices")

    def predict(rows: np.ndarray) -> Truth:
        with torch.no_grad():
            if as_vertices:
                vertices = torch.from_numpy(meshes.read("vertices/xyz", rows))
                pelvis = body.regress(vertices, "smpl24")[:, 0]
            else:
                names = ("global_orient", "body_pose", "betas", "transl")
                out = body(*(torch.from_numpy(meshes.read(f"smpl/{name}", rows)) for name in names))
                vertices, pelvis = out.vertices, out.joints[:, 0]
            found = body.regress(vertices, protocol.joint_set)
        names = joints.get(protocol.joint_set)
        bad = meshes.rows["status"][rows] != OK
        xyz = found.numpy().copy()
        xyz[bad] = np.nan
        return Truth(xyz, names, vertices.numpy(), pelvis.numpy())

    return predict


def relative(side: Truth, protocol: Protocol) -> np.ndarray:
    """The protocol's joints (n, J, 3) minus the root."""
    root = side.joints[:, [side.names.index(name) for name in protocol.root]].mean(1)
    return metrics.centred(side.joints[:, [side.names.index(name) for name in protocol.joints]], root)


def compare(pred: Truth, truth: Truth, protocol: Protocol) -> dict[str, np.ndarray]:
    """The error columns of n rows, but for the acceleration."""
    a, b = relative(pred, protocol), relative(truth, protocol)
    each = metrics.per_joint_error(a, b)
    aligned = metrics.per_joint_error(metrics.align(a, b), b)
    visible = np.ones_like(each, dtype=bool)
    if truth.visible is not None:
        visible = truth.visible[:, [truth.names.index(name) for name in protocol.joints]]
    return {
        "errors/mpjpe": metrics.masked_mean(each),
        "errors/pa_mpjpe": metrics.masked_mean(aligned),
        "errors/mpve": _vertex_error(pred, truth, protocol),
        "errors/occ_mpjpe": metrics.masked_mean(each, ~visible),
        "errors/occ_pa_mpjpe": metrics.masked_mean(aligned, ~visible),
        "errors/per_joint": each,
        "errors/visible": visible,
    }


def _vertex_error(pred: Truth, truth: Truth, protocol: Protocol) -> np.ndarray:
    if pred.vertices is None or truth.vertices is None:
        return np.full(len(pred.joints), np.nan)

    def root(side: Truth) -> np.ndarray:
        if protocol.vertex_root == "smpl24 pelvis":
            assert side.vertex_root is not None
            return side.vertex_root
        wanted = ("left_hip", "right_hip") if protocol.vertex_root == "hips" else ("pelvis",)
        return side.joints[:, [side.names.index(name) for name in wanted]].mean(1)

    # float32: the errors are fractions of a millimetre at least, and meshes are what costs
    shift = (root(pred) - root(truth)).astype(np.float32)
    gap = pred.vertices - truth.vertices - shift[:, None]
    return metrics.MM * np.sqrt(np.einsum("nvc,nvc->nv", gap, gap)).mean(1, dtype=np.float64)


def neighbours(detections: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (R,) of the same track in the frame before and after, -1 where there is none."""
    track, frame = detections.rows["track"], detections.rows["frame"]
    source, view = detections.frames["source"], detections.frames["view"]
    before, after = np.full(len(track), -1), np.full(len(track), -1)
    tracked = np.flatnonzero(track >= 0)
    order = tracked[np.lexsort((frame[tracked], track[tracked]))]
    first, second = order[:-1], order[1:]
    next_to = (track[first] == track[second]) & (frame[second] == frame[first] + 1)
    next_to &= (source[frame[first]] == source[frame[second]]) & (view[frame[first]] == view[frame[second]])
    before[second[next_to]], after[first[next_to]] = first[next_to], second[next_to]
    return before, after


def summarise(table: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Root attribute `summary`: means over scored rows, how many there are and how many were left out (Job.finish)."""
    ok = table.rows["status"] == OK
    summary: dict[str, Any] = {"rows": len(ok), "failed": int((~ok).sum())}
    for name in MEANS:
        values = table.read(f"errors/{name}")[ok].astype(np.float64) if table.n_rows else np.zeros(0)
        values = values[np.isfinite(values)]
        if name == "mpjpe":
            summary["scored"] = len(values)
        summary[name] = float(values.mean()) if len(values) else None
    return {}, {"summary": summary}


def mean_rows(scores: Any) -> dict[str, Any]:
    """The summary of a scores artefact (path or Artefact). Raises InputError if it has none."""
    from stages.artefact import Artefact, open_artefact

    table = scores if isinstance(scores, Artefact) else open_artefact(scores, "scores")
    summary = table.attrs.get("summary")
    if not isinstance(summary, dict):
        raise InputError(f"{table.path}: no summary")
    protocol = table.attrs["protocol"]
    return {"dataset": table.attrs.get("dataset"), "protocol": protocol["name"], "line": protocol["line"], **summary}
