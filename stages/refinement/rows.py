"""The rows of `hmr refine`: what is read for a window, how the refiner's result becomes columns.

A window (windows.py) is refined as a whole: a person in a frame, part of a track, a person in all views.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import K_DEFAULT, OK
from stages.artefacts.table import Artefact
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, slerp
from stages.keypoints.body25 import to_body25
from stages.models.base import EstimateBatch, RefinedBatch, Refiner
from stages.refinement.plan import WindowPlan, columns
from stages.refinement.rig import CameraRig
from stages.refinement.windows import Window

if TYPE_CHECKING:
    from stages.params import RefineParams

LIMIT = 512  # elements in a batch of windows
SHAPE_MOMENTS = 48  # moments, evenly over a take, from which the betas of a person in several views are estimated
UNTOUCHED, REFINED, FILLED, ALONE = 0, 1, 2, 3  # the values of extra/refined


class RowRefiner:
    """rows -> columns. Windows of several rows are refined once and kept until their last row has been requested."""

    def __init__(
        self,
        tables: dict[str, Artefact],
        refiner: Refiner,
        params: RefineParams,
        plan: WindowPlan,
        rig: CameraRig | None,
    ) -> None:
        self.meshes, self.detections, self.features = tables["meshes"], tables["detections"], tables.get("features")
        self.refiner, self.params, self.plan, self.rig = refiner, params, plan, rig
        self.settings, self.condition = refiner.settings(params), refiner.features(params)
        self.joints = tuple(self.detections.group_attrs("keypoints")["joints"])
        self.betas_known = np.zeros(self.meshes.n_rows, bool)
        self.betas = self._mean_betas()
        self.window_of = {int(e): k for k, window in enumerate(plan.windows) for e in window.row[window.is_core]}
        self.last_row = np.full(len(plan.windows), -1)
        for row, element in enumerate(plan.element.tolist()):
            if element in self.window_of:  # a failed row belongs to no window
                self.last_row[self.window_of[element]] = row
        self.refined: dict[int, dict[str, Any]] = {}  # by window: index of each element, and the columns
        if self.betas is not None and rig is not None and rig.has_positions:
            self._share_betas(self.betas)

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        elements = self.plan.element[rows]
        if self.params.mode == "frame":
            return self._refine(Window.of_rows(elements), np.arange(len(rows)))
        windows = [self.window_of[int(element)] for element in elements]
        for numbers, batch, group in self._batches(sorted({k for k in windows if k not in self.refined})):
            values = self._refine(batch, group)
            for g, k in enumerate(numbers):
                core = (group == g) & batch.is_core
                index = {int(element): i for i, element in enumerate(batch.row[core])}
                self.refined[k] = {"index": index, **{name: value[core] for name, value in values.items()}}
        sources = [(self.refined[k], int(element)) for k, element in zip(windows, elements, strict=True)]
        out = {c.name: np.stack([v[c.name][v["index"][e]] for v, e in sources]) for c in columns(self.params)}
        self.refined = {k: v for k, v in self.refined.items() if self.last_row[k] > rows.max()}
        return out

    def _batches(self, numbers: list[int]) -> Iterator[tuple[list[int], Window, np.ndarray]]:
        """Windows in batches of about LIMIT elements: their numbers, all elements, and whose window each element is."""
        while numbers:
            lengths = [len(self.plan.windows[k]) for k in numbers]
            count = max(1, int((np.cumsum(lengths) <= LIMIT).sum()))
            batch, numbers = numbers[:count], numbers[count:]
            group = np.repeat(np.arange(count), lengths[:count])
            yield batch, Window.concatenate([self.plan.windows[k] for k in batch]), group

    # ---- betas that rows share

    def _mean_betas(self) -> np.ndarray | None:
        """Betas (R, 10) in place of the rows' own: the mean over a track, or over the views of a moment."""
        mode, shape = self.params.mode, self.params.shape
        if shape == "row" or mode == "frame":
            return None
        rows, betas = self.meshes.rows, self.meshes.read("smpl/betas").astype(np.float64)
        if mode == "views":
            key = np.full(self.meshes.n_rows, -1)
            for k, window in enumerate(self.plan.windows):
                key[window.row] = k
        else:
            source = self.meshes.frames["source"][rows["frame"]].astype(np.int64)
            key = np.where(rows["track"] >= 0, rows["track"] + ((source + 1) << 32), -1)
        chosen = (rows["status"] == OK) & self.plan.usable & (key >= 0)
        _, group = np.unique(key[chosen], return_inverse=True)
        total = np.zeros((group.max(initial=-1) + 1, betas.shape[1]))
        np.add.at(total, group, betas[chosen])
        betas[chosen] = (total / np.maximum(np.bincount(group, minlength=len(total)), 1)[:, None])[group]
        return betas.astype(np.float32)

    def _share_betas(self, betas: np.ndarray) -> None:
        """Write the refiner's one shape of each person whom several views show into betas (R, 10)."""
        windows_of: dict[int, list[int]] = {}
        for k, window in enumerate(self.plan.windows):
            if len(window) > 1:
                windows_of.setdefault(int(self.plan.person[window.row[0]]), []).append(k)
        for person, windows in windows_of.items():
            spread = np.unique(np.linspace(0, len(windows) - 1, SHAPE_MOMENTS).astype(int))
            batches = self._batches([windows[i] for i in spread])
            moments = (self._estimates(batch, group, *self._bodies(batch)[:2]) for _, batch, group in batches)
            shared = self.refiner.shared_betas(moments, self.settings)
            if shared is not None:
                rows = self.plan.person == person
                betas[rows] = shared.cpu().numpy()
                self.betas_known[rows] = True

    # ---- one batch

    def _refine(self, window: Window, group: np.ndarray) -> dict[str, np.ndarray]:
        """All columns of all elements; rows with too little evidence are copied and marked."""
        rotmat, transl, pose = self._bodies(window)
        estimates = self._estimates(window, group, rotmat, transl)
        enough = (estimates.keypoints[..., 2] > 0).sum(1) >= self.params.min_joints
        estimates.keypoints[~enough] = 0
        # In mode frame, too little evidence means no change; in a track or in views, other rows may determine the body.
        chosen = enough if self.params.mode == "frame" else torch.ones_like(enough)
        chosen &= torch.from_numpy(self.plan.usable[window.before])
        rows = torch.nonzero(chosen)[:, 0]
        result = self.refiner(estimates.map(lambda v: v[rows]), self.settings) if len(rows) else None
        if result is not None and result.refined is not None:
            chosen[rows] = result.refined.cpu()
        body = _Bodies(rotmat, pose, estimates.betas, transl, torch.zeros(len(chosen), 2))
        if result is not None:
            body = body.replaced(rows, result, chosen)
        values = self._columns(window, body)
        views = np.bincount(group)[group]
        refined = REFINED if self.params.mode == "frame" else np.where(views > 1, REFINED, ALONE)
        status = np.where(window.row < 0, FILLED, np.where(chosen.numpy(), refined, UNTOUCHED))
        values["extra/refined"] = torch.from_numpy(status.astype(np.uint8))
        if self.params.mode == "views":
            values["extra/person"] = torch.from_numpy(self.plan.person[window.row])
            values["extra/views"] = torch.from_numpy(np.where(chosen.numpy(), views, 0))
        if self.params.hypotheses > 1:
            values |= self._hypotheses(body, rows, None if result is None else result.hypotheses)
        return {name: value.numpy() for name, value in values.items()}

    def _columns(self, window: Window, bodies: _Bodies) -> dict[str, Tensor]:
        """The columns of mode frame, without extra/refined."""
        model = self.refiner.body
        rotmat, betas, transl = (v.to(model.device) for v in (bodies.rotmat, bodies.betas, bodies.transl))
        joints = model.joints(rotmat, betas, transl).cpu()
        return {
            "smpl/global_orient": bodies.pose[:, 0],
            "smpl/body_pose": bodies.pose[:, 1:],
            "smpl/betas": bodies.betas,
            "smpl/transl": bodies.transl,
            "joints/xyz": joints,
            "joints/confidence": self._confidence(window, joints),
            "extra/error_before": bodies.error[:, 0],
            "extra/error_after": bodies.error[:, 1],
        }

    def _hypotheses(self, bodies: _Bodies, rows: Tensor, hypotheses: RefinedBatch | None) -> dict[str, Tensor]:
        """All hypotheses of the refined `rows`; of the others H times the body, with energy 0."""
        H = self.params.hypotheses
        pose, betas, transl = (
            v[:, None].repeat(1, H, *[1] * (v.dim() - 1)) for v in (bodies.pose, bodies.betas, bodies.transl)
        )
        energy = torch.zeros(pose.shape[:2])
        if hypotheses is not None:
            pose[rows], energy[rows] = matrix_to_axis_angle(hypotheses.rotmat).cpu(), hypotheses.energy.cpu()
            betas[rows], transl[rows] = hypotheses.betas.cpu(), hypotheses.transl.cpu()
        return {
            "extra/hypotheses_global_orient": pose[:, :, 0],
            "extra/hypotheses_body_pose": pose[:, :, 1:],
            "extra/hypotheses_betas": betas,
            "extra/hypotheses_transl": transl,
            "extra/hypotheses_energy": energy,
        }

    def _confidence(self, window: Window, joints: Tensor) -> Tensor:
        """The recoverer's joint confidences where they are of the same joints, else 1; 0 in interpolated frames."""
        names = self.meshes.group_attrs("joints").get("joints")
        if self.meshes.has("joints/confidence") and list(names or ()) == list(self.refiner.body.joint_names):
            value = torch.from_numpy(self.meshes.read("joints/confidence", window.before)).float()
        else:
            value = torch.ones(joints.shape[:2])
        value[torch.from_numpy(window.row < 0)] = 0
        return value

    # ---- inputs

    def _bodies(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Rotation matrices (n, 24, 3, 3), translations (n, 3) m and axis-angle (n, 24, 3) rad of the elements;
        interpolated ones lie between their rows."""
        pose, transl = self._read_bodies(window.before)
        rotmat = axis_angle_to_matrix(pose)
        gap = np.flatnonzero(window.row < 0)
        if len(gap):
            next_pose, next_transl = self._read_bodies(window.after[gap])
            fraction = torch.from_numpy(window.fraction[gap]).float()
            rotmat[gap] = slerp(rotmat[gap], axis_angle_to_matrix(next_pose), fraction[:, None])
            pose[gap] = matrix_to_axis_angle(rotmat[gap])
            transl[gap] = torch.lerp(transl[gap], next_transl, fraction[:, None])
        return rotmat, transl, pose

    def _read_bodies(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Axis-angle (n, 24, 3) and translation (n, 3) of rows of the meshes."""
        root, limbs, transl = (
            torch.from_numpy(self.meshes.read(f"smpl/{name}", rows))
            for name in ("global_orient", "body_pose", "transl")
        )
        return torch.cat([root[:, None], limbs], 1), transl

    def _estimates(self, window: Window, group: np.ndarray, rotmat: Tensor, transl: Tensor) -> EstimateBatch:
        """What the refiner reads; interpolated elements have no visible keypoint."""
        frames, frame = self.meshes.frames, self.meshes.rows["frame"][window.before]
        betas = self.meshes.read("smpl/betas", window.before) if self.betas is None else self.betas[window.before]
        xy, score = (self.detections.read(f"keypoints/{name}", window.before) for name in ("xy", "score"))
        confidence = np.where((score >= self.params.min_score) & (window.row >= 0)[:, None], score, 0)
        keypoints = np.concatenate([xy, confidence[..., None]], -1).astype(np.float32)
        video, views = self.params.mode == "video", self.params.mode == "views"
        return EstimateBatch(
            rotmat=rotmat,
            betas=torch.from_numpy(betas),
            transl=transl,
            keypoints=torch.from_numpy(to_body25(keypoints, self.joints)),
            K=torch.from_numpy(frames["K"][frame]).float(),
            size=torch.from_numpy(frames["size"][frame]).float(),
            K_known=torch.from_numpy(frames["K_source"][frame] != K_DEFAULT),
            seed=torch.tensor([zlib.crc32(points.tobytes()) for points in xy], dtype=torch.long),  # whatever the order
            features=self._features(window),
            consecutive=torch.from_numpy(window.consecutive) if video else None,
            group=torch.from_numpy(group) if views else None,
            **(self._camera_poses(window, frames["view"][frame]) if views and self.rig is not None else {}),
        )

    def _features(self, window: Window) -> Tensor | None:
        if not self.condition:
            return None
        assert self.features is not None
        values = self.features.read(f"features/{self.condition}", window.before).astype(np.float32)
        if (window.row < 0).any():
            after = self.features.read(f"features/{self.condition}", window.after)
            values += window.fraction[:, None].astype(np.float32) * (after - values)
        return torch.from_numpy(values)

    def _camera_poses(self, window: Window, view: np.ndarray) -> dict[str, Tensor]:
        """The fields of EstimateBatch that a rig gives."""
        assert self.rig is not None
        R, t = self.rig.poses(view)
        fields = {"R_camera_to_world": torch.from_numpy(R.swapaxes(1, 2).copy())}
        if t is not None:
            fields["t_world_to_camera"] = torch.from_numpy(t)
            fields["betas_known"] = torch.from_numpy(self.betas_known[window.before])
        return fields


@dataclasses.dataclass
class _Bodies:
    """Bodies of the elements of a batch: rotmat (n, 24, 3, 3), pose (n, 24, 3) the same as axis-angle, betas (n, 10),
    transl (n, 3) m; error (n, 2) px before and after."""

    rotmat: Tensor
    pose: Tensor
    betas: Tensor
    transl: Tensor
    error: Tensor

    def replaced(self, rows: Tensor, result: RefinedBatch, chosen: Tensor) -> _Bodies:
        """The bodies with the result (m rows) at `rows` (m,), where chosen (n,) says that they are refined."""
        pose = matrix_to_axis_angle(result.rotmat)
        values = {"pose": pose, "betas": result.betas, "transl": result.transl, "error": result.error}
        refined = chosen[rows]
        bodies = _Bodies(*(getattr(self, f.name).clone() for f in dataclasses.fields(self)))
        for name, value in values.items():
            getattr(bodies, name)[rows[refined]] = value.cpu()[refined]
        bodies.rotmat[rows] = result.rotmat.cpu()  # rows that are not refined return as they were
        return bodies
