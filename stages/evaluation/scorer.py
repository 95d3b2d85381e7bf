"""Errors of rows against the truth: rows -> the columns of a scores artefact."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import Protocol
from stages.errors import ArtefactError, AssetError
from stages.evaluation import metrics

CHUNK = 128  # rows at a time for each thread: enough for products of matrices, few enough for the memory


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """As many as torch may use (OMP_NUM_THREADS), each of which computes alone: no sum is split among them, so their
    number changes no digit, and products this small gain nothing from threads inside."""
    import torch

    count = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.empty(31 << 20, dtype=torch.uint8)  # once so much was freed, glibc keeps pages and hands none back
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def make_scorer(meshes: Any, dataset: Dataset, protocol: Protocol, pool: ThreadPoolExecutor) -> tuple[Any, str]:
    """rows -> the error columns, and which regressor they rest on."""
    from stages.smpl.body import BATCH_MULTIPLE

    predict, points, regressor = predictor(meshes, dataset, protocol)
    before, after = neighbours(dataset.detections)
    mates = frame_mates(dataset.detections) if protocol.matching == "nearest" else None

    def chunk(rows: np.ndarray) -> dict[str, np.ndarray]:
        pred, truth = predict(rows), dataset.truth(rows, protocol)
        if mates is not None:
            pred = nearest(pred, truth, dataset.detections.rows["frame"][rows], protocol)
        both = {"pred": relative(pred, protocol), "truth": relative(truth, protocol)}
        return compare(pred, truth, protocol) | reprojection(pred, truth, dataset.detections, rows, points) | both

    def score(rows: np.ndarray) -> dict[str, Any]:
        near = [rows, before[rows], after[rows]] if mates is None else [mates(rows)]
        wanted = np.unique(np.concatenate(near))
        wanted = wanted[wanted >= 0]
        # Whole steps, filled up with rows again: so no batch, shard or thread changes a digit.
        steps = np.resize(wanted, (-(-len(wanted) // BATCH_MULTIPLE), BATCH_MULTIPLE))
        parts = max(1, len(wanted) // CHUNK) if mates is None else 1
        found = list(pool.map(chunk, (part.ravel() for part in np.array_split(steps, parts))))
        errors = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        pred, truth = errors.pop("pred"), errors.pop("truth")
        own = np.searchsorted(wanted, rows)
        acceleration = np.full(len(rows), np.nan)
        place = [np.searchsorted(wanted, part[rows]).clip(0, len(wanted) - 1) for part in (before, after)]
        whole = (wanted[place[0]] == before[rows]) & (wanted[place[1]] == after[rows])
        second = [x[place[0]] - 2 * x[own] + x[place[1]] for x in (pred, truth)]
        if protocol.joints:
            value = metrics.MM * np.linalg.norm(second[0] - second[1], axis=-1).mean(-1)
            acceleration[whole] = value[whole]
        return {name: values[own] for name, values in errors.items()} | {"errors/acceleration": acceleration}

    return score, regressor


def frame_mates(detections: Any) -> Any:
    """rows -> all rows of the same pictures."""
    order = np.argsort(detections.rows["frame"], kind="stable")
    frame = detections.rows["frame"][order]

    def mates(rows: np.ndarray) -> np.ndarray:
        own = np.unique(detections.rows["frame"][rows])
        low, high = np.searchsorted(frame, own), np.searchsorted(frame, own, side="right")
        return np.concatenate([order[a:b] for a, b in zip(low, high, strict=True)])

    return mates


def nearest(pred: Truth, truth: Truth, frame: np.ndarray, protocol: Protocol) -> Truth:
    """For each row, of the bodies recovered in its picture (frame (n,)) the one with the smallest MPJPE."""
    a, b = relative(pred, protocol), relative(truth, protocol)
    best = np.arange(len(frame))
    for each in np.unique(frame):
        mine = np.flatnonzero(frame == each)
        gap = np.stack([metrics.per_joint_error(a[mine], b[[row] * len(mine)]) for row in mine])
        found = np.stack(
            [
                metrics.masked_mean(g, np.isfinite(b[[row] * len(mine)]).all(-1))
                for g, row in zip(gap, mine, strict=True)
            ]
        )
        best[mine] = mine[np.where(np.isfinite(found), found, np.inf).argmin(1)]
    vertices, root = pred.vertices, pred.vertex_root
    return dataclasses.replace(
        pred,
        joints=pred.joints[best],
        vertices=None if vertices is None else vertices[best],
        vertex_root=None if root is None else root[best],
    )


def predictor(meshes: Any, dataset: Dataset, protocol: Protocol) -> tuple[Any, Points2D, str]:
    """rows -> Truth of what was recovered (vertices as they are, or posed from SMPL parameters), the body's points that
    people label, and which regressor its joints come from."""
    from stages.datasets import joint_regressors
    from stages.keypoints import joint_sets
    from stages.loaders.bodies import BodyLoader

    people = BodyLoader(meshes)
    body = people.body
    check_body(body, dataset, str(meshes.path or "the meshes"))
    regress = joint_regressors.find(body, protocol.joint_set, dataset.data)
    pelvis_of, names = joint_regressors.pelvis(body), joint_sets.get(protocol.joint_set)

    def predict(rows: np.ndarray) -> Truth:
        vertices, tree = people.posed(rows)
        if tree is None:  # a network's own vertices: turned round once, for all the sums that follow
            vertices = vertices.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        found = tree if protocol.joint_set == "smpl24" and tree is not None else regress(vertices)
        xyz = found.numpy().copy()
        xyz[~people.ok[rows]] = np.nan
        return Truth(xyz, names, vertices.numpy(), pelvis_of(vertices)[:, 0].numpy())

    return predict, Points2D(body), regress.about


def check_body(body: Any, dataset: Dataset, meshes: str) -> None:
    """Raise ArtefactError for meshes of another body than the data set's."""
    if dataset.topology and body.topology != dataset.topology:
        raise ArtefactError(
            f"{meshes} are {body.topology} bodies, the data set's are {dataset.topology}",
            "errors between different bodies mean nothing: recover with --ckpt or --body of the same",
        )


class Points2D:
    """The points of a body that people label in pictures, as far as it has them: vertices (n, V, 3) -> (n, L, 3)."""

    def __init__(self, body: Any) -> None:
        self.body = body

    @functools.cached_property
    def rows(self) -> dict[str, Any]:
        from stages.keypoints import joint_sets

        found: dict[str, Any] = {}
        for joint_set in ("coco17", "lsp14", "smpl24"):
            with contextlib.suppress(AssetError):
                rows = zip(joint_sets.get(joint_set), self.body.regressor(joint_set), strict=True)
                found = {**dict(rows), **found}
        return found

    @functools.cached_property
    def regressor(self) -> Any:
        import torch

        from stages.datasets.joint_regressors import Regressor

        return Regressor(torch.stack(list(self.rows.values())), "")

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        import torch

        return self.regressor(torch.from_numpy(vertices)).numpy()


def reprojection(
    pred: Truth, truth: Truth, detections: Any, rows: np.ndarray, points: Points2D
) -> dict[str, np.ndarray]:
    """errors/error_2d (px) and errors/pck of rows: the body's points in the picture against the labelled ones."""
    from stages.geometry.cameras import project
    from stages.keypoints import joint_sets

    if truth.labelled is None or pred.vertices is None:
        return {name: np.full(len(rows), np.nan) for name in ("errors/error_2d", "errors/pck")}
    at = joint_sets.index(tuple(points.rows), truth.labelled_names)
    frame = detections.rows["frame"][rows]
    drawn = points(pred.vertices)[:, at.clip(0)].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = project(drawn, detections.frames["K"][frame].astype(float))
    given = (truth.labelled[..., 2] > 0) & (at >= 0)
    box = detections.rows["box"][rows]
    radius = 0.1 * (box[:, 2:] - box[:, :2]).max(1)
    goal = truth.labelled[..., :2]
    return {
        "errors/error_2d": metrics.masked_mean(np.linalg.norm(drawn - goal, axis=-1), given),
        "errors/pck": metrics.pck(drawn, goal, radius, given),
    }


def relative(side: Truth, protocol: Protocol) -> np.ndarray:
    """The protocol's joints (n, J, 3) minus the root."""
    if not protocol.joints:
        return np.zeros((len(side.joints), 0, 3))
    root = side.joints[:, [side.names.index(name) for name in protocol.root]].mean(1)
    return metrics.centred(side.joints[:, [side.names.index(name) for name in protocol.joints]], root)


def compare(pred: Truth, truth: Truth, protocol: Protocol) -> dict[str, np.ndarray]:
    """The error columns of n rows, but for the acceleration."""
    a, b = relative(pred, protocol), relative(truth, protocol)
    each = metrics.per_joint_error(a, b)
    aligned = metrics.per_joint_error(metrics.align(a, b), b)
    given = np.isfinite(b).all(-1)  # joints that a data set does not annotate are not scored
    visible = np.ones_like(each, dtype=bool)
    if truth.visible is not None:
        visible = truth.visible[:, [truth.names.index(name) for name in protocol.joints]]
    return {
        "errors/mpjpe": metrics.masked_mean(each, given),
        "errors/pa_mpjpe": metrics.masked_mean(aligned),
        "errors/mpve": _vertex_error(pred, truth, protocol),
        "errors/occ_mpjpe": metrics.masked_mean(each, given & ~visible),
        "errors/occ_pa_mpjpe": metrics.masked_mean(aligned, ~visible),
        "errors/per_joint": each,
        "errors/visible": visible,
    }


def _vertex_error(pred: Truth, truth: Truth, protocol: Protocol) -> np.ndarray:
    if pred.vertices is None or truth.vertices is None or not protocol.joints:
        return np.full(len(pred.joints), np.nan)

    def root(side: Truth) -> np.ndarray:
        if protocol.vertex_root == "smpl24 pelvis":
            assert side.vertex_root is not None
            return side.vertex_root
        wanted = ("left_hip", "right_hip") if protocol.vertex_root == "hips" else ("pelvis",)
        return side.joints[:, [side.names.index(name) for name in wanted]].mean(1)

    # float32: the errors are fractions of a millimetre at least, and meshes are what costs; some vertices at a time, in
    # the order of Body.posed
    shift = (root(pred) - root(truth)).astype(np.float32).T
    total = np.zeros(len(pred.joints))
    for part in (slice(i, i + 256) for i in range(0, pred.vertices.shape[1], 256)):
        gap = (pred.vertices[:, part] - truth.vertices[:, part]).transpose(1, 2, 0)
        gap -= shift
        total += np.sqrt(np.square(gap, out=gap).sum(1)).sum(0, dtype=np.float64)
    return metrics.MM * total / pred.vertices.shape[1]


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
