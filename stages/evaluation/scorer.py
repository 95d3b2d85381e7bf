"""Errors of rows against the truth: rows -> the columns of a scores artefact."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.table import Artefact
from stages.datasets import joint_regressors
from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import Protocol
from stages.errors import ArtefactError, AssetError
from stages.evaluation import metrics
from stages.geometry.cameras import project
from stages.keypoints import joint_sets
from stages.loaders.bodies import BodyLoader
from stages.smpl.body import BATCH_MULTIPLE, Body

CHUNK = 128  # rows at a time for each thread: enough for matrix products, few enough for the memory

Columns = dict[str, np.ndarray]


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch may use (OMP_NUM_THREADS), each of which computes alone.

    No sum is split among them, so their number changes no digit, and products this small gain nothing from threads
    inside.
    """
    count = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.empty(31 << 20, dtype=torch.uint8)  # once this much was freed, glibc keeps its pages for later chunks
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


class Scorer:
    """rows (n,) -> the error columns of these rows. `regressor` says which regressor the predicted joints come from.

    Raises ArtefactError for meshes of another body than the data set's.
    """

    def __init__(self, meshes: Artefact, dataset: Dataset, protocol: Protocol, pool: ThreadPoolExecutor) -> None:
        self.dataset, self.protocol, self.pool = dataset, protocol, pool
        self.predicted = PredictedBodies(meshes, dataset, protocol)
        self.regressor = self.predicted.regressor.about
        self.before, self.after = neighbours(dataset.detections)
        self.rows_of_same_frames = frame_mates(dataset.detections) if protocol.matching == "nearest" else None

    def __call__(self, rows: np.ndarray) -> Columns:
        if self.rows_of_same_frames is None:
            needed = np.unique(np.concatenate([rows, self.before[rows], self.after[rows]]))
            needed = needed[needed >= 0]
            chunks = max(1, len(needed) // CHUNK)
        else:
            needed, chunks = np.unique(self.rows_of_same_frames(rows)), 1
        # Whole multiples, padded by repeating rows: so no batch, shard or thread changes a digit.
        padded = np.resize(needed, (-(-len(needed) // BATCH_MULTIPLE), BATCH_MULTIPLE))
        results = list(self.pool.map(self._chunk, (part.ravel() for part in np.array_split(padded, chunks))))
        columns = {name: np.concatenate([each[name] for each in results]) for name in results[0]}
        acceleration = self._acceleration(rows, needed, columns.pop("pred"), columns.pop("truth"))
        index = np.searchsorted(needed, rows)
        return {name: values[index] for name, values in columns.items()} | {"errors/acceleration": acceleration}

    def _chunk(self, rows: np.ndarray) -> Columns:
        """The error columns of rows but the acceleration, and the root-relative joints "pred" and "truth" for it."""
        pred, truth = self.predicted(rows), self.dataset.truth(rows, self.protocol)
        detections = self.dataset.detections
        if self.rows_of_same_frames is not None:
            pred = nearest(pred, truth, detections.rows["frame"][rows], self.protocol)
        errors = pose_errors(pred, truth, self.protocol)
        errors |= reprojection(pred, truth, detections, rows, self.predicted.labelled_points)
        return errors | {"pred": relative(pred, self.protocol), "truth": relative(truth, self.protocol)}

    def _acceleration(self, rows: np.ndarray, needed: np.ndarray, pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Acceleration error (n,) of rows, mm per frame^2; NaN without both neighbours. pred, truth: of `needed`."""
        error = np.full(len(rows), np.nan)
        if not self.protocol.joints:
            return error
        index = np.searchsorted(needed, rows)
        before, after = (np.searchsorted(needed, side[rows]) for side in (self.before, self.after))
        before, after = before.clip(0, len(needed) - 1), after.clip(0, len(needed) - 1)
        both = (needed[before] == self.before[rows]) & (needed[after] == self.after[rows])
        second = [x[before] - 2 * x[index] + x[after] for x in (pred, truth)]
        value = metrics.MM * np.linalg.norm(second[0] - second[1], axis=-1).mean(-1)
        error[both] = value[both]
        return error


def frame_mates(detections: Artefact) -> Callable[[np.ndarray], np.ndarray]:
    """rows -> all rows of the same images."""
    order = np.argsort(detections.rows["frame"], kind="stable")
    frame = detections.rows["frame"][order]

    def mates(rows: np.ndarray) -> np.ndarray:
        frames = np.unique(detections.rows["frame"][rows])
        low, high = np.searchsorted(frame, frames), np.searchsorted(frame, frames, side="right")
        return np.concatenate([order[a:b] for a, b in zip(low, high, strict=True)])

    return mates


def nearest(pred: Truth, truth: Truth, frame: np.ndarray, protocol: Protocol) -> Truth:
    """For each row, the body with the smallest MPJPE of those that were recovered in its image (frame (n,))."""
    a, b = relative(pred, protocol), relative(truth, protocol)
    best = np.arange(len(frame))
    for each in np.unique(frame):
        rows = np.flatnonzero(frame == each)
        for row in rows:
            true = b[[row] * len(rows)]
            error = metrics.masked_mean(metrics.per_joint_error(a[rows], true), np.isfinite(true).all(-1))
            best[row] = rows[np.where(np.isfinite(error), error, np.inf).argmin()]
    vertices, root = pred.vertices, pred.vertex_root
    return dataclasses.replace(
        pred,
        joints=pred.joints[best],
        vertices=None if vertices is None else vertices[best],
        vertex_root=None if root is None else root[best],
    )


class PredictedBodies:
    """rows (n,) -> Truth of the recovered bodies: vertices as they are, or posed from SMPL parameters.

    `regressor`: of their joints · `labelled_points`: the points of this body that people label in images.
    """

    def __init__(self, meshes: Artefact, dataset: Dataset, protocol: Protocol) -> None:
        self.bodies, self.joint_set = BodyLoader(meshes), protocol.joint_set
        body = self.bodies.body
        check_body(body, dataset, str(meshes.path or "the meshes"))
        self.regressor = joint_regressors.find(body, protocol.joint_set, dataset.data)
        self.pelvis, self.names = joint_regressors.pelvis(body), joint_sets.get(protocol.joint_set)
        self.labelled_points = LabelledPoints(body)

    def __call__(self, rows: np.ndarray) -> Truth:
        vertices, tree = self.bodies.posed(rows)
        if tree is None:  # a network's own vertices: transposed once, into the layout of Body.posed
            vertices = vertices.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        joints = tree if self.joint_set == "smpl24" and tree is not None else self.regressor(vertices)
        xyz = joints.numpy().copy()
        xyz[~self.bodies.ok[rows]] = np.nan
        return Truth(xyz, self.names, vertices.numpy(), self.pelvis(vertices)[:, 0].numpy())


def check_body(body: Body, dataset: Dataset, meshes: str) -> None:
    """Raise ArtefactError for meshes of another body than the data set's."""
    if dataset.topology and body.topology != dataset.topology:
        raise ArtefactError(
            f"{meshes} are {body.topology} bodies, the data set's are {dataset.topology}",
            "errors between different bodies mean nothing: recover with --ckpt or --body of the same",
        )


class LabelledPoints:
    """The points of a body that people label in images, as far as it has them: vertices (n, V, 3) -> (n, L, 3)."""

    def __init__(self, body: Body) -> None:
        self.body = body

    @functools.cached_property
    def rows(self) -> dict[str, Tensor]:
        """Regressor row (V,) of each point, by name; of a name in several sets, COCO's."""
        rows: dict[str, Tensor] = {}
        for joint_set in ("coco17", "lsp14", "smpl24"):
            with contextlib.suppress(AssetError):
                rows = {**dict(zip(joint_sets.get(joint_set), self.body.regressor(joint_set), strict=True)), **rows}
        return rows

    @functools.cached_property
    def regressor(self) -> joint_regressors.Regressor:
        return joint_regressors.Regressor(torch.stack(list(self.rows.values())), "")

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        return self.regressor(torch.from_numpy(vertices)).numpy()


def reprojection(
    pred: Truth, truth: Truth, detections: Artefact, rows: np.ndarray, points: LabelledPoints
) -> dict[str, np.ndarray]:
    """errors/error_2d (px) and errors/pck of rows: the body's points, projected, against the labelled ones."""
    if truth.labelled is None or pred.vertices is None:
        return {name: np.full(len(rows), np.nan) for name in ("errors/error_2d", "errors/pck")}
    index = joint_sets.index(tuple(points.rows), truth.labelled_names)
    frame = detections.rows["frame"][rows]
    projected = points(pred.vertices)[:, index.clip(0)].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = project(projected, detections.frames["K"][frame].astype(float))
    scored = (truth.labelled[..., 2] > 0) & (index >= 0)
    box = detections.rows["box"][rows]
    radius = 0.1 * (box[:, 2:] - box[:, :2]).max(1)
    labelled = truth.labelled[..., :2]
    return {
        "errors/error_2d": metrics.masked_mean(np.linalg.norm(projected - labelled, axis=-1), scored),
        "errors/pck": metrics.pck(projected, labelled, radius, scored),
    }


def relative(side: Truth, protocol: Protocol) -> np.ndarray:
    """The protocol's joints (n, J, 3) minus the root."""
    if not protocol.joints:
        return np.zeros((len(side.joints), 0, 3))
    return metrics.centred(side.select(protocol.joints), side.select(protocol.root).mean(1))


def pose_errors(pred: Truth, truth: Truth, protocol: Protocol) -> dict[str, np.ndarray]:
    """The error columns of n rows in space, without the acceleration."""
    a, b = relative(pred, protocol), relative(truth, protocol)
    each = metrics.per_joint_error(a, b)
    aligned = metrics.per_joint_error(metrics.align(a, b), b)
    annotated = np.isfinite(b).all(-1)  # joints that a data set does not annotate are not scored
    visible = np.ones_like(each, dtype=bool)
    if truth.visible is not None:
        visible = truth.visible[:, [truth.names.index(name) for name in protocol.joints]]
    return {
        "errors/mpjpe": metrics.masked_mean(each, annotated),
        "errors/pa_mpjpe": metrics.masked_mean(aligned),
        "errors/mpve": _vertex_error(pred, truth, protocol),
        "errors/occ_mpjpe": metrics.masked_mean(each, annotated & ~visible),
        "errors/occ_pa_mpjpe": metrics.masked_mean(aligned, ~visible),
        "errors/per_joint": each,
        "errors/visible": visible,
    }


def _vertex_error(pred: Truth, truth: Truth, protocol: Protocol) -> np.ndarray:
    """MPVE (n,) mm, vertices minus the protocol's vertex root; NaN where either side has no vertices."""
    if pred.vertices is None or truth.vertices is None or not protocol.joints:
        return np.full(len(pred.joints), np.nan)

    def root(side: Truth) -> np.ndarray:
        if protocol.vertex_root == "smpl24 pelvis":
            assert side.vertex_root is not None
            return side.vertex_root
        return side.select(("left_hip", "right_hip") if protocol.vertex_root == "hips" else ("pelvis",)).mean(1)

    # float32, because errors are fractions of a millimetre at least and meshes cost most of the time; 256 vertices at
    # a time, in the memory order of Body.posed
    shift = (root(pred) - root(truth)).astype(np.float32).T
    total = np.zeros(len(pred.joints))
    for part in (slice(i, i + 256) for i in range(0, pred.vertices.shape[1], 256)):
        gap = (pred.vertices[:, part] - truth.vertices[:, part]).transpose(1, 2, 0)
        gap -= shift
        total += np.sqrt(np.square(gap, out=gap).sum(1)).sum(0, dtype=np.float64)
    return metrics.MM * total / pred.vertices.shape[1]


def neighbours(detections: Artefact) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (R,) of the same track in the frame before and after, -1 where there is none."""
    track, frame = detections.rows["track"], detections.rows["frame"]
    source, view = detections.frames["source"], detections.frames["view"]
    before, after = np.full(len(track), -1), np.full(len(track), -1)
    tracked = np.flatnonzero(track >= 0)
    order = tracked[np.lexsort((frame[tracked], track[tracked]))]
    first, second = order[:-1], order[1:]
    consecutive = (track[first] == track[second]) & (frame[second] == frame[first] + 1)
    consecutive &= (source[frame[first]] == source[frame[second]]) & (view[frame[first]] == view[frame[second]])
    before[second[consecutive]], after[first[consecutive]] = first[consecutive], second[consecutive]
    return before, after
