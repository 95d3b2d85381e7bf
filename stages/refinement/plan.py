"""What `hmr refine` computes and writes: the windows of rows that are refined together, the rows of the output, its
columns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from stages.artefacts.kinds import FAILED, JOINT_COLUMNS, OK, SMPL_COLUMNS, Column
from stages.artefacts.table import Artefact, in_memory
from stages.refinement.windows import Interpolated, Window, track_windows, view_windows

if TYPE_CHECKING:
    from stages.params import RefineParams

WINDOW, MARGIN = 256, 64  # frames of a track that are refined together, and further ones on both sides as context
COLUMNS = (
    *SMPL_COLUMNS,
    *JOINT_COLUMNS,
    Column(
        "extra/refined",
        "u1",
        ("R",),
        "",
        "0 untouched (too little evidence), 1 refined, 2 filled in, 3 refined alone: "
        "nothing to join it with in mode video or views",
    ),
    Column("extra/error_before", "f4", ("R",), "px", "mean distance of seen keypoints before; 0 where untouched"),
    Column("extra/error_after", "f4", ("R",), "px", "the same after"),
)
VIEW_COLUMNS = (
    Column("extra/person", "i4", ("R",), "", "the same number in all views: the same person"),
    Column("extra/views", "i4", ("R",), "", "views refined together in this row; 1: this one alone, 0: untouched"),
)


def columns(params: RefineParams) -> tuple[Column, ...]:
    """The columns of the output; with several hypotheses, all of them too."""
    H = params.hypotheses
    if H == 1:
        return (*COLUMNS, *VIEW_COLUMNS) if params.mode == "views" else COLUMNS
    meaning = "of each hypothesis; the first begins at the estimate, the others where the prior draws them"
    each = [
        Column("extra/hypotheses_" + c.name.removeprefix("smpl/"), "f4", ("R", H, *c.shape[1:]), c.unit, meaning)
        for c in SMPL_COLUMNS
    ]
    energy = Column("extra/hypotheses_energy", "f4", ("R", H), "", "how unlikely it is; smpl/ is the least")
    return (*COLUMNS, *each, energy)


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """The rows of the output and the windows that they are computed in.

    table: frames and rows of the output · element: what each row of the output is, a row of the meshes or -1 - k for
    the k-th `interpolated` frame · usable (R,) bool: rows of the meshes that can be refined; the others are windows of
    one row · person (R,): number of the person over all views.
    """

    table: Artefact
    element: np.ndarray
    windows: list[Window]
    interpolated: Interpolated
    usable: np.ndarray
    person: np.ndarray


def usable_rows(meshes: Artefact, features: Artefact | None) -> np.ndarray:
    """Which rows (R,) have finite SMPL parameters and, where the refiner reads features, these too."""
    usable = np.ones(meshes.n_rows, bool)
    for name in ("global_orient", "body_pose", "betas", "transl"):
        finite = np.isfinite(meshes.read(f"smpl/{name}"))
        usable &= finite.all(tuple(range(1, finite.ndim)))
    return usable if features is None else usable & (features.rows["status"] == OK)


def plan_rows(
    meshes: Artefact, params: RefineParams, usable: np.ndarray, person: np.ndarray | None = None
) -> WindowPlan:
    """The windows and, with `fill_gaps`, a table with rows for the interpolated frames.

    usable (R,) bool · person (R,): number of the person over all views in mode views; None: the track.
    """
    rows, frames = meshes.rows, meshes.frames
    person = rows["track"] if person is None else person
    status = np.where(usable, rows["status"], FAILED)
    windows, interpolated = [], Interpolated.none()
    if params.mode == "views":
        windows = view_windows(rows["frame"], person, frames["view"], frames["time"], status)
    elif params.mode == "video":
        windows, interpolated = track_windows(
            rows["frame"], rows["track"], frames["source"], status,
            max_gap=params.max_gap, length=WINDOW, margin=MARGIN,
        )  # fmt: skip
    windows += [Window.of_rows(row) for row in np.argwhere(~usable & (rows["status"] == OK))]
    table, element = meshes, np.arange(meshes.n_rows)
    if params.fill_gaps and len(interpolated):
        table, element = _with_interpolated(meshes, interpolated)
    return WindowPlan(table, element, windows, interpolated, usable, person)


def _with_interpolated(meshes: Artefact, interpolated: Interpolated) -> tuple[Artefact, np.ndarray]:
    """Frames and rows with the interpolated ones among them, by frame; and the element (see WindowPlan) of each row.

    A failed row in a gap is replaced by the interpolated one.
    """
    rows, before, after = meshes.rows, interpolated.before, interpolated.after
    replaced = set(zip(interpolated.frame.tolist(), rows["track"][before].tolist(), strict=True))
    pairs = zip(rows["frame"].tolist(), rows["track"].tolist(), strict=True)
    kept = np.array([k for k, pair in enumerate(pairs) if pair not in replaced], int)
    element = np.r_[kept, -1 - np.arange(len(interpolated))]
    frame = np.r_[rows["frame"][kept], interpolated.frame]
    order = np.lexsort((element < 0, frame))
    low, high = rows["box"][before], rows["box"][after]
    box = low + (high - low) * interpolated.fraction[:, None]
    merged = {name: np.concatenate([rows[name][kept], rows[name][before]])[order] for name in rows}
    merged["frame"], merged["box"] = frame[order], np.concatenate([rows["box"][kept], box])[order]
    merged["score"][element[order] < 0] = 0
    return in_memory("meshes", frames=meshes.frames, rows=merged, columns={}), element[order]
