"""The synthetic sets (stages/synthetic) as data sets: the truth is in the `extra` columns of their detections."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.datasets import joint_regressors
from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import Protocol
from stages.errors import ArtefactError
from stages.keypoints import joint_sets
from stages.smpl.body import load_body


class SynthData(Dataset):
    """A synthetic set, from the artefact that `hmr synth` wrote. Raises ArtefactError for other detections."""

    protocol = "body"
    data: Path | None = None

    def __init__(self, source: str | Path | Artefact) -> None:
        self.detections = source if isinstance(source, Artefact) else open_artefact(source, "detections")
        benchmark = self.detections.attrs.get("benchmark")
        if not isinstance(benchmark, dict) or not self.detections.has("extra/body_pose"):
            raise ArtefactError(f"{source}: these detections hold no ground truth", "make them with hmr synth")
        part = "" if benchmark.get("whole", True) else ", shortened"
        self.name = f"{benchmark['set']} (version {benchmark['version']}{part})"
        self.subset = {**benchmark, "rows": self.detections.n_rows}
        self.body = load_body("embedded")
        self.topology = self.body.topology

    def check(self, protocol: Protocol) -> None:
        """Only joints can be missing that the free body does not have."""
        self.body.regressor(protocol.joint_set)

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Posed with the exact parameters; a joint is visible if its nearest COCO keypoint is."""
        index = torch.from_numpy(rows)
        pose = [self._truth[name][index] for name in ("global_orient", "body_pose", "betas", "transl")]
        with torch.no_grad():
            vertices, tree = self.body.posed(self.body.rotmat(*pose[:2]), *pose[2:])
            regressor = joint_regressors.of_body(self.body, protocol.joint_set)
            joints = tree if protocol.joint_set == "smpl24" else regressor(vertices)
            pelvis = joint_regressors.pelvis(self.body)(vertices)[:, 0]
        names = joint_sets.get(protocol.joint_set)
        coco_visible = self._truth["seen"][index].numpy().astype(bool)
        return Truth(
            joints.numpy(),
            names,
            vertices.numpy(),
            pelvis.numpy(),
            visible=_visible(coco_visible, names),
            labelled=np.concatenate([self._truth["keypoints"][index].numpy(), coco_visible[..., None]], -1),
            labelled_names=joint_sets.get("coco17"),
        )

    @functools.cached_property
    def _truth(self) -> dict[str, torch.Tensor]:
        """The truth of all rows: half a kilobyte each, and single rows are slow to read. Tensors as in BodyLoader."""
        names = ("global_orient", "body_pose", "betas", "transl", "seen", "keypoints")
        return {name: torch.from_numpy(self.detections.read(f"extra/{name}")) for name in names}


# COCO's keypoints that stand in for other joints; "hip" for those of the trunk.
_STAND_INS = {"neck": "shoulder", "head_top": "nose eye ear", "head": "nose eye ear", "foot": "ankle", "hand": "wrist"}


def _visible(coco_visible: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Visibility (n, J) of any joints from that of COCO's (n, 17): by name, or of one of the joint's stand-ins."""
    coco = joint_sets.get("coco17")

    def one(name: str) -> np.ndarray:
        if name in coco:
            return coco_visible[:, coco.index(name)]
        side, _, part = name.rpartition("_") if name.startswith(("left_", "right_")) else ("", "", name)
        parts = _STAND_INS.get(part, _STAND_INS.get(name, "hip")).split()
        indices = [i for i, c in enumerate(coco) if c.split("_")[-1] in parts and c.startswith(side)]
        return np.asarray(coco_visible[:, indices].any(1))

    return np.stack([one(name) for name in names], 1)
