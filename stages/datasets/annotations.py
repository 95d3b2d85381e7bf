"""What the readers of licensed data sets fill in, and the data set that is made of it.

A reader knows where files are and what their numbers mean; it returns `Annotations`. `AnnotatedData` turns these into
rows (a detections artefact in memory) and ground truth: meshes of the annotated gender, or joints where there are none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from stages.artefacts.kinds import K_USER
from stages.artefacts.table import Artefact, in_memory
from stages.datasets import joint_regressors
from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import Protocol
from stages.datasets.subsets import definition
from stages.errors import AssetError, UsageError
from stages.keypoints import joint_sets
from stages.smpl.body import BATCH_MULTIPLE, Body, load_body

MIN_CONFIDENCE = 0.05  # of a joint that counts as detected, DPMesh's
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
    keypoints are a detector's, and a joint that it missed counts as hidden (DPMesh's split of the joints)."""

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


class AnnotatedData(Dataset):
    """The data set of a reader's annotations. data: the folder or file that they were read from."""

    def __init__(self, annotations: Annotations, data: Path) -> None:
        self.annotations, self.data = annotations, data
        self.name, self.protocol = annotations.name, annotations.protocol
        self.topology = "smpl" if annotations.smpl is not None else ""
        self.detections = _detections(annotations)
        self.subset = definition(annotations.name.split(" ")[0]) | {"rows": self.detections.n_rows}

    def check(self, protocol: Protocol) -> None:
        if self.annotations.smpl is None:
            return
        for gender in {"neutral", *self._genders(protocol)}:
            joint_regressors.find(_body(str(gender)), protocol.joint_set, self.data)

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Meshes posed with the body of each row's gender, or the annotated joints."""
        source = self.annotations
        truth = self._posed(rows, protocol) if source.smpl is not None else self._annotated(rows, protocol)
        if source.labelled is not None:
            truth.labelled, truth.labelled_names = source.labelled[rows], source.labelled_names
        if source.detected:
            keypoints = joint_sets.convert(source.keypoints[rows], _names(source), truth.names)
            truth.visible = keypoints[..., 2] > MIN_CONFIDENCE
        return truth

    def _genders(self, protocol: Protocol) -> np.ndarray:
        assert self.annotations.smpl is not None
        gender = self.annotations.smpl["gender"]
        return np.full(len(gender), "neutral") if protocol.gender == "neutral" else gender

    @torch.no_grad()
    def _posed(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Meshes of rows, one gender after the other, in whole multiples of BATCH_MULTIPLE rows."""
        assert self.annotations.smpl is not None
        pose, betas = (self.annotations.smpl[k][rows].astype(np.float32) for k in ("pose", "betas"))
        gender = self._genders(protocol)[rows]
        groups = [np.flatnonzero(gender == each) for each in np.unique(gender)]
        meshes, joints = [], []
        for group in groups:
            body = _body(str(gender[group[0]]))
            padded = np.resize(group, -(-len(group) // BATCH_MULTIPLE) * BATCH_MULTIPLE)
            orient, body_pose, shape = (torch.tensor(x[padded]) for x in (pose[:, :3], pose[:, 3:], betas))
            vertices, tree = body.posed(body.rotmat(orient, body_pose), shape)
            regress = joint_regressors.find(body, protocol.joint_set, self.data)
            joints.append((tree if protocol.joint_set == "smpl24" else regress(vertices))[: len(group)])
            meshes.append(vertices[: len(group)].permute(1, 2, 0))
        vertices, xyz = meshes[0], joints[0]
        if len(groups) > 1:
            order = torch.from_numpy(np.argsort(np.concatenate(groups)))
            vertices, xyz = torch.cat(meshes, 2).index_select(2, order), torch.cat(joints)[order]
        vertices = vertices.permute(2, 0, 1)
        # The neutral regressor on every mesh, as in the programs of 3DCrowdNet, JOTR and DPMesh.
        pelvis = joint_regressors.pelvis(_body("neutral"))(vertices)[:, 0]
        return Truth(xyz.numpy(), joint_sets.get(protocol.joint_set), vertices.numpy(), pelvis.numpy())

    def _annotated(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Joints by name; those that the data set does not have are NaN and are not scored."""
        names = joint_sets.get(protocol.joint_set)
        xyz = np.full((len(rows), len(names), 3), np.nan)
        if self.annotations.joints is not None:
            annotated = self.annotations.joint_names
            index = joint_sets.index(annotated, names)
            if not {*protocol.root} <= {*annotated} and protocol.joints:
                raise UsageError(
                    f"protocol {protocol.name} needs {' and '.join(protocol.root)}, {self.name} annotates "
                    f"{', '.join(annotated)}",
                    f"--protocol {self.protocol} is the data set's own",
                )
            xyz[:, index >= 0] = self.annotations.joints[rows][:, index[index >= 0]]
        return Truth(xyz, names)


def _body(gender: str) -> Body:
    """The added SMPL body of a gender. Raises AssetError that names the archive."""
    try:
        return load_body(SMPL, gender)
    except AssetError as error:
        archive, member = _FILES[gender]
        raise AssetError(
            f"the ground truth is made of {gender} SMPL bodies, and there is none: {error.message}",
            f"get {member} in {archive}, then: hmr body-model add FILE --name {SMPL} --gender {gender}",
        ) from error


def _names(annotations: Annotations) -> tuple[str, ...]:
    """The names of its keypoints."""
    joint_set = annotations.joint_set
    return joint_sets.get(joint_set) if isinstance(joint_set, str) else joint_set


def _detections(annotations: Annotations) -> Artefact:
    names = _names(annotations)
    rows: dict[str, Any] = {"frame": annotations.frame, "box": annotations.box}
    if annotations.track is not None:
        rows["track"] = annotations.track
    attrs = {
        "joint_set": annotations.joint_set if isinstance(annotations.joint_set, str) else "",
        "joints": list(names),
    }
    return in_memory(
        "detections",
        frames={"K_source": K_USER, **annotations.frames},
        rows=rows,
        columns={"keypoints/xy": annotations.keypoints[..., :2], "keypoints/score": annotations.keypoints[..., 2]},
        group_attrs={"keypoints": {**attrs, "score_definition": annotations.input_2d}},
        attrs={"root": str(annotations.root.absolute()), "stage": "dataset", "params": {"dataset": annotations.name}},
    )


def box_of(keypoints: np.ndarray, size: np.ndarray, scale: float = 1.2) -> np.ndarray:
    """Boxes (n, 4) xyxy around the keypoints (n, J, 3) that have a score, `scale` times as large; of rows without
    any, the whole image (size (n, 2))."""
    scored = np.asarray(keypoints[..., 2] > 0)
    low = np.where(scored[..., None], keypoints[..., :2], 1e9).min(1)
    high = np.where(scored[..., None], keypoints[..., :2], -1e9).max(1)
    centre, half = (low + high) / 2, (high - low) / 2 * scale
    box = np.concatenate([centre - half, centre + half], 1)
    whole = np.concatenate([np.zeros_like(size), size - 1], 1)
    return np.where(scored.any(1, keepdims=True), box, whole)


def consecutive_tracks(sequence: np.ndarray, person: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Track numbers (R,): one per person of a sequence and run of consecutive frame numbers, so that no gap in the
    annotation is taken for one step in time."""
    order = np.lexsort((number, person, sequence))
    s, p, n = sequence[order], person[order], number[order]
    new = np.r_[True, (s[1:] != s[:-1]) | (p[1:] != p[:-1]) | (n[1:] != n[:-1] + 1)] if len(order) else np.zeros(0)
    track = np.empty(len(order), np.int64)
    track[order] = np.cumsum(new) - 1
    return track


def orient_to_camera(orient_world: np.ndarray, R_world_to_camera: np.ndarray) -> np.ndarray:
    """Root orientation (n, 3) axis-angle in the world -> in the camera; R_world_to_camera (n, 3, 3)."""
    return (Rotation.from_matrix(R_world_to_camera) * Rotation.from_rotvec(orient_world)).as_rotvec()


def intrinsics_of(xyz: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Intrinsics (3, 3) from points (n, 3) in the camera frame and their pixels (n, 2): least squares in x / z and
    y / z, no skew. For data sets that give both but no camera (lens distortion becomes noise)."""
    K = np.eye(3)
    good = np.isfinite(xyz).all(1) & np.isfinite(pixels).all(1) & (xyz[:, 2] > 0)
    for axis in range(2):
        slope = np.stack([xyz[good, axis] / xyz[good, 2], np.ones(good.sum())], 1)
        K[axis, axis], K[axis, 2] = np.linalg.lstsq(slope, pixels[good, axis], rcond=None)[0]
    return K


def join_sequences(pieces: Sequence[Mapping[str, Any]], **rest: Any) -> Annotations:
    """The annotations of all sequences of a video data set.

    Each piece has its frames' names, size, K, time and its people's frame (counted from the sequence's first), track,
    box, keypoints, pose, betas, gender; `rest` are the other fields of Annotations.
    """
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
