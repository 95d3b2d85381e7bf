"""DPMesh as a recoverer: SMPL parameters in the camera of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stages.artefacts.kinds import JOINT_COLUMNS, SMPL_COLUMNS
from stages.files.checkpoints import Checkpoint
from stages.geometry import crops
from stages.geometry.rotations import axis_angle_to_matrix
from stages.keypoints.joint_sets import SETS
from stages.models.base import PersonBatch
from stages.models.dpmesh.extractors import DPMeshModel, load_network, weights_origin
from stages.models.dpmesh.inputs import CROP, FEATURES, LATENT, crops_of
from stages.smpl.body import Body, load_body

NO_BODY = (
    "the checkpoint holds no SMPL body, so joints are those of the embedded body, which DPMesh was not trained with; "
    "give it by --body smpl (hmr body-model add)"
)


class DPMeshRecoverer(DPMeshModel):
    """SMPL parameters in the image's camera, and the body's 24 joints.

    The confidence of a joint is the score of the corresponding keypoint in the network's input, 0 where there is none:
    DPMesh itself predicts no confidence. `focal`: "row", or "first" as in the authors' program, which translates every
    body of a batch for a camera with the focal length of the batch's first image.
    """

    columns = (*SMPL_COLUMNS, *JOINT_COLUMNS)
    uses = (FEATURES, *DPMeshModel.uses)
    options = {"focal": ("row", "first")}  # noqa: RUF012
    focal = "row"

    def __init__(self, model: Any, body: Body, **options: Any) -> None:
        super().__init__(model, **options)
        self.body = body.to(self.device)
        self.group_attrs = {
            "smpl": {"body_model": body.name, "gender": body.gender},
            "joints": {"joints": list(SETS["smpl24"])},
        }

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> DPMeshRecoverer:
        """`body`: the body to report joints of; else the checkpoint's own SMPL, else the embedded one."""
        from stages.models.dpmesh.checkpoint_names import body_arrays

        model, arrays = load_network(checkpoint)
        smpl = body_arrays(arrays)
        remark = "" if smpl or body is not None else NO_BODY
        if body is None:
            body = Body.from_arrays(**smpl, name="smpl", licence="SMPL licence") if smpl else load_body("embedded")
        recoverer = cls(model, body, device=device, **weights_origin(checkpoint))
        recoverer.remark = remark
        return recoverer

    def needs_images(self, available: frozenset[str]) -> bool:
        return FEATURES not in available and LATENT not in available

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        from stages.models.dpmesh.network import focal_of
        from stages.models.dpmesh.outputs import full_translation

        condition = crops_of(people)
        if FEATURES in people.columns:
            merged = torch.from_numpy(np.asarray(people.columns[FEATURES], np.float32)).to(self.device)
        else:
            merged = self.diffusion(people, condition)["merged"]
        out = self.by_row(self.model.regress, merged)
        back = crops.invert(np.where(condition.valid[:, None, None], condition.affine, np.eye(2, 3)))
        center = torch.from_numpy(crops.apply(back, np.full((len(people), 1, 2), CROP / 2))[:, 0]).float()
        side = torch.from_numpy(back[:, 0, 0] * CROP).float()
        focal, K = focal_of(torch.from_numpy(people.size)).float(), torch.from_numpy(people.K).float()
        if self.focal == "first":
            K = K.clone()
            K[:, [0, 1], [0, 1]] = focal[0]
        camera = (x.to(self.device) for x in (focal, center, side, K))
        transl = full_translation(out["camera"], *camera)
        pose = torch.cat([out["global_orient"][:, None], out["body_pose"]], 1)
        return {
            "smpl/global_orient": out["global_orient"],
            "smpl/body_pose": out["body_pose"],
            "smpl/betas": out["betas"],
            "smpl/transl": transl,
            "joints/xyz": self.body.joints(axis_angle_to_matrix(pose), out["betas"], transl),
            "joints/confidence": (condition.keypoints[:, :24, 2] * condition.mask[:, :24]).clip(0, 1),
            "error": condition.errors,
        }
