"""What the readers of licensed data sets fill in, and the data set that is made of it.

A reader knows where files lie and what their numbers mean; it returns a `Table`. `TableData` turns that into rows (a
detections artefact in memory) and ground truth: meshes of the annotated gender, or joints where there are no meshes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import K_USER
from stages.artefacts.table import Artefact, in_memory
from stages.datasets.base import Truth
from stages.datasets.protocols import Protocol
from stages.datasets.subsets import definition
from stages.errors import AssetError, UsageError
from stages.keypoints import joint_sets

DETECTED = 0.05  # DPMesh's least confidence of a joint that was found
SMPL = "smpl"  # name of the added bodies: hmr body-model add FILE --name smpl --gender ...
GENDERS = {"m": "male", "f": "female", "n": "neutral", "male": "male", "female": "female", "neutral": "neutral"}
_FILES = {
    "male": ("SMPL_python_v.1.1.0.zip from smpl.is.tue.mpg.de", "basicmodel_m_lbs_10_207_0_v1.1.0.pkl"),
    "female": ("SMPL_python_v.1.1.0.zip from smpl.is.tue.mpg.de", "basicmodel_f_lbs_10_207_0_v1.1.0.pkl"),
    "neutral": ("SMPL_python_v.1.1.0.zip from smpl.is.tue.mpg.de", "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"),
}


@dataclasses.dataclass
class Annotations:
    """name: data set, marked when partial · protocol: the papers' · root: frame names are relative to it.

    frames: name (F,), size (F, 2), K (F, 3, 3) and optionally time, source, view · frame, track (R,), box (R, 4) xyxy ·
    keypoints (R, J, 3) px and score, the papers' input, of `joint_set` (a name, or names) · smpl: body_pose with root
    (R, 72) in the camera frame, betas (R, 10), gender (R,) · joints (R, K, 3) metres, camera frame, NaN where not
    annotated, of `joint_names` · labelled (R, L, 3) px and visibility of `labelled_names`: 2D truth · detected: the
    keypoints are a detector's, and a joint that it did not find counts as hidden (DPMesh's split of the joints)."""

    name: str
    protocol: str
    root: Path
    frames: dict[str, Any]
    frame: np.ndarray
    box: np.ndarray
    keypoints: np.ndarray
    joint_set: str | tuple[str, ...]
    input_2d: str
    track: np.ndarray | None = None
    smpl: dict[str, np.ndarray] | None = None
    joints: np.ndarray | None = None
    joint_names: tuple[str, ...] = ()
    labelled: np.ndarray | None = None
    labelled_names: tuple[str, ...] = ()
    detected: bool = False


class AnnotatedData:
    """A licensed data set, read (stages.datasets.base.Dataset)."""

    def __init__(self, table: Annotations, data: Path) -> None:
        self.table = table
        self.data: Path | None = data
        self.name, self.protocol = table.name, table.protocol
        self.topology = "smpl" if table.smpl is not None else ""
        self.detections = _detections(table)
        self.subset = definition(table.name.split(" ")[0]) | {"rows": self.detections.n_rows}

    def check(self, protocol: Protocol) -> None:
        """Raise AssetError for a body or regressor that scoring will need, before anything is computed."""
        from stages.datasets import joint_regressors

        if self.table.smpl is None:
            return
        for gender in {"neutral", *self._genders(protocol)}:
            joint_regressors.find(_body(str(gender)), protocol.joint_set, self.data)

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Meshes posed with the body of each row's gender, or the annotated joints (Dataset.truth)."""
        found = self._posed(rows, protocol) if self.table.smpl is not None else self._annotated(rows, protocol)
        if self.table.labelled is not None:
            found.labelled, found.labelled_names = self.table.labelled[rows], self.table.labelled_names
        if self.table.detected:
            keypoints = joint_sets.convert(self.table.keypoints[rows], _names(self.table), found.names)
            found.visible = keypoints[..., 2] > DETECTED
        return found

    def _genders(self, protocol: Protocol) -> np.ndarray:
        assert self.table.smpl is not None
        own = self.table.smpl["gender"]
        return np.full(len(own), "neutral") if protocol.gender == "neutral" else own

    def _posed(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        import torch

        from stages.datasets import joint_regressors
        from stages.smpl.body import BATCH_MULTIPLE

        assert self.table.smpl is not None
        pose, betas = (self.table.smpl[k][rows].astype(np.float32) for k in ("pose", "betas"))
        gender = self._genders(protocol)[rows]
        groups = [np.flatnonzero(gender == each) for each in np.unique(gender)]
        meshes, points = [], []
        with torch.no_grad():
            for mine in groups:
                body = _body(str(gender[mine[0]]))
                filled = np.resize(mine, -(-len(mine) // BATCH_MULTIPLE) * BATCH_MULTIPLE)
                orient, turns, shape = (torch.tensor(x[filled]) for x in (pose[:, :3], pose[:, 3:], betas))
                found, tree = body.posed(body.rotmat(orient, turns), shape)
                regress = joint_regressors.find(body, protocol.joint_set, self.data)
                points.append((tree if protocol.joint_set == "smpl24" else regress(found))[: len(mine)])
                meshes.append(found[: len(mine)].permute(1, 2, 0))
            vertices, xyz = meshes[0], points[0]
            if len(groups) > 1:
                order = torch.from_numpy(np.argsort(np.concatenate(groups)))
                vertices, xyz = torch.cat(meshes, 2).index_select(2, order), torch.cat(points)[order]
            vertices = vertices.permute(2, 0, 1)
            # The neutral regressor on every mesh, as in the programs of 3DCrowdNet, JOTR and DPMesh.
            pelvis = joint_regressors.pelvis(_body("neutral"))(vertices)[:, 0]
        return Truth(xyz.numpy(), joint_sets.get(protocol.joint_set), vertices.numpy(), pelvis.numpy())

    def _annotated(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Joints by name; those that the data set does not have are NaN and are not scored."""
        names = joint_sets.get(protocol.joint_set)
        xyz = np.full((len(rows), len(names), 3), np.nan)
        if self.table.joints is not None:
            have = self.table.joint_names
            at = joint_sets.index(have, names)
            if not {*protocol.root} <= {*have} and protocol.joints:
                raise UsageError(
                    f"protocol {protocol.name} wants {' and '.join(protocol.root)}, {self.name} annotates "
                    f"{', '.join(have)}",
                    f"--protocol {self.protocol} is the data set's own",
                )
            xyz[:, at >= 0] = self.table.joints[rows][:, at[at >= 0]]
        return Truth(xyz, names)


def _body(gender: str) -> Any:
    from stages.smpl.body import load_body

    try:
        return load_body(SMPL, gender)
    except AssetError as error:
        archive, member = _FILES[gender]
        raise AssetError(
            f"the ground truth is made of {gender} SMPL bodies, and there is none: {error.message}",
            f"get {member} in {archive}, then: hmr body-model add FILE --name {SMPL} --gender {gender}",
        ) from error


def _names(table: Annotations) -> tuple[str, ...]:
    return joint_sets.get(table.joint_set) if isinstance(table.joint_set, str) else table.joint_set


def _detections(table: Annotations) -> Artefact:
    names = _names(table)
    rows: dict[str, Any] = {"frame": table.frame, "box": table.box}
    if table.track is not None:
        rows["track"] = table.track
    attrs = {"joint_set": table.joint_set if isinstance(table.joint_set, str) else "", "joints": list(names)}
    return in_memory(
        "detections",
        frames={"K_source": K_USER, **table.frames},
        rows=rows,
        columns={"keypoints/xy": table.keypoints[..., :2], "keypoints/score": table.keypoints[..., 2]},
        group_attrs={"keypoints": {**attrs, "score_definition": table.input_2d}},
        attrs={"root": str(table.root.absolute()), "stage": "dataset", "params": {"dataset": table.name}},
    )


def box_of(keypoints: np.ndarray, size: np.ndarray, scale: float = 1.2) -> np.ndarray:
    """Boxes (n, 4) xyxy around the keypoints (n, J, 3) that have a score, `scale` times as large; of rows without
    any, the whole picture (size (n, 2))."""
    seen = np.asarray(keypoints[..., 2] > 0)
    low = np.where(seen[..., None], keypoints[..., :2], 1e9).min(1)
    high = np.where(seen[..., None], keypoints[..., :2], -1e9).max(1)
    centre, half = (low + high) / 2, (high - low) / 2 * scale
    box = np.concatenate([centre - half, centre + half], 1)
    whole = np.concatenate([np.zeros_like(size), size - 1], 1)
    return np.where(seen.any(1, keepdims=True), box, whole)


def runs(sequence: np.ndarray, person: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Track numbers (R,): one per person of a sequence and run of consecutive frame numbers, so that no gap in an
    annotation passes for a step in time."""
    order = np.lexsort((number, person, sequence))
    s, p, n = sequence[order], person[order], number[order]
    new = np.r_[True, (s[1:] != s[:-1]) | (p[1:] != p[:-1]) | (n[1:] != n[:-1] + 1)] if len(order) else np.zeros(0)
    track = np.empty(len(order), np.int64)
    track[order] = np.cumsum(new) - 1
    return track


def turned(root: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Root orientation (n, 3) axis-angle in the world -> in the camera, rotation (n, 3, 3) world to camera."""
    from scipy.spatial.transform import Rotation

    return (Rotation.from_matrix(rotation) * Rotation.from_rotvec(root)).as_rotvec()


def camera_of(xyz: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Intrinsics (3, 3) from points (n, 3) in the camera frame and where they are seen (n, 2): least squares in
    x / z and y / z, no skew. For data sets that give both but no camera (lens distortion becomes noise)."""
    K = np.eye(3)
    good = np.isfinite(xyz).all(1) & np.isfinite(pixels).all(1) & (xyz[:, 2] > 0)
    for axis in range(2):
        slope = np.stack([xyz[good, axis] / xyz[good, 2], np.ones(good.sum())], 1)
        K[axis, axis], K[axis, 2] = np.linalg.lstsq(slope, pixels[good, axis], rcond=None)[0]
    return K


def of_sequences(pieces: Sequence[Mapping[str, Any]], **rest: Any) -> Annotations:
    """One Table of the sequences of a video data set, each with its frames' names, size, K, time and its people's frame
    (counted from the sequence's first), track, box, keypoints, pose, betas, gender; `rest` are Table's other fields."""
    starts = np.cumsum([0] + [len(piece["names"]) for piece in pieces])

    def join(key: str) -> np.ndarray:
        return np.concatenate([piece[key] for piece in pieces])

    return Annotations(
        frames={"name": join("names"), "size": join("size"), "K": join("K"), "time": join("time")},
        frame=np.concatenate([piece["frame"] + start for piece, start in zip(pieces, starts, strict=False)]),
        track=join("track"),
        box=join("box"),
        keypoints=join("keypoints"),
        smpl={key: join(key) for key in ("pose", "betas", "gender")},
        **rest,
    )
