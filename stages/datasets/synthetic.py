"""The synthetic sets (stages/synth) as data sets: the truth is in the `extra` columns of their detections artefact."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.datasets import joint_regressors
from stages.datasets.base import Truth
from stages.datasets.protocols import Protocol
from stages.errors import ArtefactError
from stages.keypoints import joint_sets
from stages.smpl.body import load_body


class SynthData:
    """A built synthetic set, from its artefact."""

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
        """Nothing can be missing (Dataset.check); AssetError for joints that the free body does not have."""
        self.body.regressor(protocol.joint_set)

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """Posed with the exact parameters; a joint is visible if its nearest COCO keypoint is (Dataset.truth)."""
        at = torch.from_numpy(rows)
        pose = [self._truth[name][at] for name in ("global_orient", "body_pose", "betas", "transl")]
        with torch.no_grad():
            vertices, tree = self.body.posed(self.body.rotmat(*pose[:2]), *pose[2:])
            own = joint_regressors.own(self.body, protocol.joint_set)
            found = tree if protocol.joint_set == "smpl24" else own(vertices)
            pelvis = joint_regressors.pelvis(self.body)(vertices)[:, 0]
        names = joint_sets.get(protocol.joint_set)
        seen = self._truth["seen"][at].numpy().astype(bool)
        labelled = np.concatenate([self._truth["keypoints"][at].numpy(), seen[..., None]], -1)
        visible = _visible(seen, names)
        return Truth(
            found.numpy(), names, vertices.numpy(), pelvis.numpy(), visible, labelled, joint_sets.get("coco17")
        )

    @functools.cached_property
    def _truth(self) -> dict[str, torch.Tensor]:
        """All rows at once: half a kilobyte each, and single rows are slow to read. Tensors as in BodyLoader."""
        names = ("global_orient", "body_pose", "betas", "transl", "seen", "keypoints")
        return {name: torch.from_numpy(self.detections.read(f"extra/{name}")) for name in names}


def _visible(seen: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Visibility (n, J) of any joints from COCO's: by name; neck by a shoulder, head by the face, trunk by a hip."""
    coco = joint_sets.get("coco17")
    stand_in = {
        "neck": "shoulder",
        "head_top": "nose eye ear",
        "head": "nose eye ear",
        "foot": "ankle",
        "hand": "wrist",
    }

    def one(name: str) -> np.ndarray:
        if name in coco:
            return seen[:, coco.index(name)]
        side, _, part = name.rpartition("_") if name.startswith(("left_", "right_")) else ("", "", name)
        kin = stand_in.get(part, stand_in.get(name, "hip")).split()
        like = [i for i, c in enumerate(coco) if c.split("_")[-1] in kin and c.startswith(side)]
        return np.asarray(seen[:, like].any(1))

    return np.stack([one(name) for name in names], 1)
