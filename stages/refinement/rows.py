"""The rows of `hmr refine`: what is computed together, what is read for it, what comes out.

A unit (refinement/windows.py) is refined as a whole: a person in a frame, a window of a track, a person in all views.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.artefacts.kinds import FAILED, JOINT_COLUMNS, K_DEFAULT, OK, SMPL_COLUMNS, Column
from stages.artefacts.table import Artefact, in_memory
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, slerp
from stages.models.scorehmr.body25 import evidence
from stages.models.scorehmr.kalman_update import NOT_UPDATED
from stages.models.scorehmr.refiner import EstimateBatch, RefinedBatch, ScoreHmrRefiner, ScoreHmrSettings
from stages.refinement.rig import CameraRig, read_rig
from stages.refinement.windows import Interpolated, Window, track_windows, view_windows

if TYPE_CHECKING:
    from stages.params import RefineParams

WINDOW, MARGIN = 256, 64  # frames of a track that are computed together, and more on both sides that only steady them
LIMIT = 512  # elements at once
SHAPE_MOMENTS = 48  # moments, evenly over a take, from which the shape of a person in several views is taken
UNTOUCHED, REFINED, FILLED, ALONE = 0, 1, 2, 3
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
    Column(
        "extra/views",
        "i4",
        ("R",),
        "",
        "how many views were refined together in this row; 1: this one alone, 0: untouched",
    ),
)


def columns(params: RefineParams) -> tuple[Column, ...]:
    """What is written; with several hypotheses, all of them too."""
    N = params.hypotheses
    if N == 1:
        return (*COLUMNS, *VIEW_COLUMNS) if params.mode == "views" else COLUMNS
    meaning = "of each hypothesis; the first begins at the estimate, the others where the prior draws them"
    each = [
        Column("extra/hypotheses_" + c.name.removeprefix("smpl/"), "f4", ("R", N, *c.shape[1:]), c.unit, meaning)
        for c in SMPL_COLUMNS
    ]
    energy = Column("extra/hypotheses_energy", "f4", ("R", N), "", "how unlikely it is; smpl/ is the least")
    return (*COLUMNS, *each, energy)


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """`table` gives the rows to write; element[r] is what row r is: a row of the meshes, or -1 - k of `filled`. Rows of
    the meshes that are not `usable` stand alone. person (R,): who is seen, over all views."""

    table: Artefact
    element: np.ndarray
    units: list[Window]
    filled: Interpolated
    usable: np.ndarray
    person: np.ndarray

    @property
    def joined(self) -> int:
        """Rows that are refined together with others."""
        return sum(len(unit) for unit in self.units if len(unit) > 1)


def usable(meshes: Artefact, features: Artefact | None) -> np.ndarray:
    """Which rows (R,) have finite SMPL parameters and, if the weights need them, features."""
    good = np.ones(meshes.n_rows, bool)
    for name in ("global_orient", "body_pose", "betas", "transl"):
        value = np.isfinite(meshes.read(f"smpl/{name}"))
        good &= value.all(tuple(range(1, value.ndim)))
    return good if features is None else good & (features.rows["status"] == OK)


def plan_rows(
    meshes: Artefact, params: RefineParams, usable: np.ndarray, person: np.ndarray | None = None
) -> WindowPlan:
    """What is computed together, and, with `fill_gaps`, the table with rows for the filled frames. person (R,): who is
    seen, in mode views; else, and without it, the track."""
    rows, frames = meshes.rows, meshes.frames
    person = rows["track"] if person is None else person
    status = np.where(usable, rows["status"], FAILED)
    none = np.zeros(0, int)
    units, filled = [], Interpolated(none, none, none, np.zeros(0))
    element = np.arange(meshes.n_rows)
    if params.mode == "views":
        units = view_windows(rows["frame"], person, frames["view"], frames["time"], status)
    elif params.mode == "video":
        units, filled = track_windows(
            rows["frame"], rows["track"], frames["source"], status,
            max_gap=params.max_gap, window=WINDOW, margin=MARGIN,
        )  # fmt: skip
    units += [Window.plain(row) for row in np.argwhere(~usable & (rows["status"] == OK))]
    if not (params.fill_gaps and len(filled)):
        return WindowPlan(meshes, element, units, filled, usable, person)
    # A failed row in a gap gives way to the filled one.
    taken = set(zip(filled.frame.tolist(), rows["track"][filled.before].tolist(), strict=True))
    stays = [
        k
        for k, pair in enumerate(zip(rows["frame"].tolist(), rows["track"].tolist(), strict=True))
        if pair not in taken
    ]
    element = np.r_[element[stays], -1 - np.arange(len(filled))]
    frame = np.r_[rows["frame"][stays], filled.frame]
    order = np.lexsort((element < 0, frame))
    low, high = rows["box"][filled.before], rows["box"][filled.after]
    box = low + (high - low) * filled.fraction[:, None]
    made = {name: np.concatenate([rows[name][stays], rows[name][filled.before]])[order] for name in rows}
    made["frame"], made["box"] = frame[order], np.concatenate([rows["box"][stays], box])[order]
    made["score"][element[order] < 0] = 0
    table = in_memory("meshes", frames=frames, rows=made, columns={})
    return WindowPlan(table, element[order], units, filled, usable, person)


def settings(refiner: ScoreHmrRefiner, params: RefineParams, rig: CameraRig | None) -> ScoreHmrSettings:
    """What the refiner is told."""
    base = refiner.preset(params.preset, alone=params.mode == "frame" or (rig is not None and rig.placed))
    return dataclasses.replace(
        base,
        plan=dataclasses.replace(base.plan, loops=params.loops or base.plan.loops),
        w_keypoints=params.keypoint_weight or base.w_keypoints,
        w_smooth=params.smooth,
        method=params.method,
        fit_steps=params.fit_steps,
        fit_prior=params.fit_prior,
        use_hips=params.hips,
        hypotheses=params.hypotheses,
    )


class RowRefiner:
    """rows -> columns. Units of several rows are computed once and kept until their last row has been asked for."""

    def __init__(
        self, tables: dict[str, Artefact], refiner: ScoreHmrRefiner, params: RefineParams, plan: WindowPlan
    ) -> None:
        self.meshes, self.detections, self.features = tables["meshes"], tables["detections"], tables.get("features")
        self.refiner, self.params, self.plan, self.rig = refiner, params, plan, read_rig(params.cameras)
        self.settings = settings(refiner, params, self.rig)
        self.names = tuple(self.detections.group_attrs("keypoints")["joints"])
        self.known_shape = np.zeros(self.meshes.n_rows, np.float32)
        self.betas = self._shared_betas()
        self.unit_of = {int(e): k for k, unit in enumerate(plan.units) for e in unit.row[unit.own]}
        self.last = np.full(len(plan.units), -1)
        for row, e in enumerate(plan.element.tolist()):
            if e in self.unit_of:  # a failed row belongs to none
                self.last[self.unit_of[e]] = row
        self.done: dict[int, dict[str, Any]] = {}
        if self.betas is not None and self.rig is not None and self.rig.placed and not refiner.published:
            self._take_shapes(self.betas)

    def __call__(self, rows: np.ndarray) -> dict[str, Any]:
        elements = self.plan.element[rows]
        if self.params.mode == "frame":
            return self._compute(Window.plain(elements), np.arange(len(rows)))
        units = [self.unit_of[int(e)] for e in elements]
        for now, joined, group in self._batches(sorted({k for k in units if k not in self.done})):
            values = self._compute(joined, group)
            for g, k in enumerate(now):
                mine = (group == g) & joined.own
                at = {int(e): i for i, e in enumerate(joined.row[mine])}
                self.done[k] = {"at": at, **{name: value[mine] for name, value in values.items()}}
        places = [(self.done[k], self.done[k]["at"][int(e)]) for k, e in zip(units, elements, strict=True)]
        out = {c.name: np.stack([values[c.name][i] for values, i in places]) for c in columns(self.params)}
        self.done = {k: v for k, v in self.done.items() if self.last[k] > rows.max()}
        return out

    def _batches(self, todo: list[int]) -> Iterator[tuple[list[int], Window, np.ndarray]]:
        """The units `todo` in batches of about LIMIT elements: their numbers, all their elements, whose those are."""
        while todo:
            count = max(1, int((np.cumsum([len(self.plan.units[k]) for k in todo]) <= LIMIT).sum()))
            now, todo = todo[:count], todo[count:]
            group = np.repeat(np.arange(len(now)), [len(self.plan.units[k]) for k in now])
            yield now, Window.join([self.plan.units[k] for k in now]), group

    def _take_shapes(self, betas: np.ndarray) -> None:
        """Put one shape for each person seen in several views into betas (R, 10), from moments over the whole take."""
        shown: dict[int, list[int]] = {}
        for k, unit in enumerate(self.plan.units):
            if len(unit) > 1:
                shown.setdefault(int(self.plan.person[unit.row[0]]), []).append(k)
        for person, units in shown.items():
            spread = np.unique(np.linspace(0, len(units) - 1, SHAPE_MOMENTS).astype(int))
            parts = [
                self.refiner.shape(self._estimates(joined, group, *self._start(joined)[0]), self.settings)
                for _, joined, group in self._batches([units[i] for i in spread])
            ]
            rows = self.plan.person == person
            betas[rows] = functools.reduce(operator.add, parts).betas().cpu().numpy()
            self.known_shape[rows] = 1

    def _shared_betas(self) -> np.ndarray | None:
        """Betas (R, 10) to use instead of the rows' own: one shape for a track, or for a person in all views."""
        mode, shape = self.params.mode, self.params.shape
        if shape == "row" or mode == "frame":
            return None
        rows, betas = self.meshes.rows, self.meshes.read("smpl/betas").astype(np.float64)
        if mode == "views":
            key = np.full(self.meshes.n_rows, -1)
            for k, unit in enumerate(self.plan.units):
                key[unit.row] = k
        else:
            source = self.meshes.frames["source"][rows["frame"]].astype(np.int64)
            key = np.where(rows["track"] >= 0, rows["track"] + ((source + 1) << 32), -1)
        chosen = (rows["status"] == OK) & self.plan.usable & (key >= 0)
        _, group = np.unique(key[chosen], return_inverse=True)
        total = np.zeros((group.max(initial=-1) + 1, betas.shape[1]))
        np.add.at(total, group, betas[chosen])
        betas[chosen] = (total / np.maximum(np.bincount(group, minlength=len(total)), 1)[:, None])[group]
        return betas.astype(np.float32)

    # ---- one batch

    def _compute(self, unit: Window, group: np.ndarray) -> dict[str, np.ndarray]:
        """All columns of all elements; rows with too little evidence are copied and marked."""
        start, axis = self._start(unit)
        seen = self._estimates(unit, group, *start)
        enough = (seen.keypoints[..., 2] > 0).sum(1) >= self.params.min_joints
        seen.keypoints[~enough] = 0
        # Frame by frame, too little evidence means no change; a track or another view may still say something.
        use = enough if self.params.mode == "frame" else torch.ones_like(enough)
        use &= torch.from_numpy(self.plan.usable[unit.before])
        at = torch.nonzero(use)[:, 0]
        made = self.refiner(seen.each(lambda v: v[at]), self.settings) if len(at) else None
        pose, betas, transl = axis.clone(), seen.betas.clone(), seen.transl.clone()
        error, rotmat = torch.zeros(len(use), 2), seen.rotmat.clone()
        if made is not None:
            pose[at], betas[at], transl[at] = (
                matrix_to_axis_angle(made.rotmat).cpu(),
                made.betas.cpu(),
                made.transl.cpu(),
            )
            rotmat[at], error[at] = made.rotmat.cpu(), made.error.cpu()
            if not self.settings.plan.loops:  # what could not be weighed stayed
                use[at] = made.energy.cpu() < NOT_UPDATED
                pose, betas, transl = (
                    torch.where(use.view(-1, *[1] * (new.dim() - 1)), new, old)
                    for new, old in ((pose, axis), (betas, seen.betas), (transl, seen.transl))
                )
                error[~use] = 0
        body = self.refiner.body
        joints = body.joints(rotmat.to(body.device), betas.to(body.device), transl.to(body.device)).cpu()
        views = np.bincount(group)[group]
        done = REFINED if self.params.mode == "frame" else np.where(views > 1, REFINED, ALONE)
        refined = np.where(unit.row < 0, FILLED, np.where(use.numpy(), done, UNTOUCHED))
        values = {
            "smpl/global_orient": pose[:, 0],
            "smpl/body_pose": pose[:, 1:],
            "smpl/betas": betas,
            "smpl/transl": transl,
            "joints/xyz": joints,
            "joints/confidence": self._confidence(unit, joints),
            "extra/refined": torch.from_numpy(refined.astype(np.uint8)),
            "extra/error_before": error[:, 0],
            "extra/error_after": error[:, 1],
        }
        if self.params.mode == "views":
            values["extra/person"] = torch.from_numpy(self.plan.person[unit.row])
            values["extra/views"] = torch.from_numpy(np.where(use.numpy(), views, 0))
        if self.params.hypotheses > 1:
            values |= self._hypotheses(pose, betas, transl, at, None if made is None else made.hypotheses)
        return {name: value.numpy() for name, value in values.items()}

    def _hypotheses(
        self,
        pose: torch.Tensor,
        betas: torch.Tensor,
        transl: torch.Tensor,
        at: torch.Tensor,
        every: RefinedBatch | None,
    ) -> dict[str, torch.Tensor]:
        """All hypotheses of the refined rows `at`; of the others N times the same, with energy 0."""
        N = self.params.hypotheses
        pose, betas, transl = (v[:, None].repeat(1, N, *[1] * (v.dim() - 1)) for v in (pose, betas, transl))
        energy = torch.zeros(pose.shape[:2])
        if every is not None:
            pose[at], energy[at] = matrix_to_axis_angle(every.rotmat).cpu(), every.energy.cpu()
            betas[at], transl[at] = every.betas.cpu(), every.transl.cpu()
        return {
            "extra/hypotheses_global_orient": pose[:, :, 0],
            "extra/hypotheses_body_pose": pose[:, :, 1:],
            "extra/hypotheses_betas": betas,
            "extra/hypotheses_transl": transl,
            "extra/hypotheses_energy": energy,
        }

    def _start(self, unit: Window) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Rotation matrices and translations of the elements, filled ones between their neighbours; axis-angle."""
        rows = [
            torch.from_numpy(self.meshes.read(f"smpl/{n}", unit.before))
            for n in ("global_orient", "body_pose", "transl")
        ]
        axis, transl = torch.cat([rows[0][:, None], rows[1]], 1), rows[2]
        rotmat = axis_angle_to_matrix(axis)
        gap = np.flatnonzero(unit.row < 0)
        if len(gap):
            rows = [
                torch.from_numpy(self.meshes.read(f"smpl/{n}", unit.after[gap]))
                for n in ("global_orient", "body_pose", "transl")
            ]
            goal = axis_angle_to_matrix(torch.cat([rows[0][:, None], rows[1]], 1))
            part = torch.from_numpy(unit.fraction[gap]).float()
            rotmat[gap] = slerp(rotmat[gap], goal, part[:, None])
            axis[gap] = matrix_to_axis_angle(rotmat[gap])
            transl[gap] = torch.lerp(transl[gap], rows[2], part[:, None])
        return (rotmat, transl), axis

    def _estimates(self, unit: Window, group: np.ndarray, rotmat: torch.Tensor, transl: torch.Tensor) -> EstimateBatch:
        """What the refiner reads; filled elements see nothing."""
        d, frames, frame = self.detections, self.meshes.frames, self.meshes.rows["frame"][unit.before]
        betas = self.meshes.read("smpl/betas", unit.before) if self.betas is None else self.betas[unit.before]
        xy, score = d.read("keypoints/xy", unit.before), d.read("keypoints/score", unit.before)
        score = np.where((score >= self.params.min_score) & (unit.row >= 0)[:, None], score, 0)
        keypoints = torch.from_numpy(np.concatenate([xy, score[..., None]], -1).astype(np.float32))
        video, views = self.params.mode == "video", self.params.mode == "views"
        return EstimateBatch(
            rotmat=rotmat,
            betas=torch.from_numpy(betas),
            transl=transl,
            keypoints=evidence(keypoints, self.names),
            K=torch.from_numpy(frames["K"][frame]).float(),
            size=torch.from_numpy(frames["size"][frame]).float(),
            known=torch.from_numpy(frames["K_source"][frame] != K_DEFAULT),
            seed=torch.tensor([zlib.crc32(points.tobytes()) for points in xy], dtype=torch.long),  # whatever the order
            features=self._features(unit),
            linked=torch.from_numpy(unit.linked) if video else None,
            group=torch.from_numpy(group) if views else None,
            **(self._camera_poses(unit, frames["view"][frame]) if views and self.rig is not None else {}),
        )

    def _features(self, unit: Window) -> torch.Tensor | None:
        kind = self.refiner.condition
        if not kind or self.params.method == "fit":
            return None
        assert self.features is not None
        values = self.features.read(f"features/{kind}", unit.before).astype(np.float32)
        if (unit.row < 0).any():
            after = self.features.read(f"features/{kind}", unit.after)
            values += unit.fraction[:, None].astype(np.float32) * (after - values)
        return torch.from_numpy(values)

    def _camera_poses(self, unit: Window, view: np.ndarray) -> dict[str, torch.Tensor]:
        assert self.rig is not None
        R, t = self.rig.of(view)
        found = {"turn": torch.from_numpy(R.swapaxes(1, 2).copy())}
        if t is not None:
            found |= {"t": torch.from_numpy(t), "known_shape": torch.from_numpy(self.known_shape[unit.before])}
        return found

    def _confidence(self, unit: Window, joints: torch.Tensor) -> torch.Tensor:
        """The recoverer's own, if it is of the same joints; a filled frame is not sure of anything."""
        names = self.meshes.group_attrs("joints").get("joints")
        if self.meshes.has("joints/confidence") and list(names or ()) == list(self.refiner.body.joint_names):
            value = torch.from_numpy(self.meshes.read("joints/confidence", unit.before)).float()
        else:
            value = torch.ones(joints.shape[:2])
        value[torch.from_numpy(unit.row < 0)] = 0
        return value
