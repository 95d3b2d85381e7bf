"""From the regressor's numbers to bodies: as the reference reports them (crop camera) and as hmr stores them (image).

The crop's camera has focal length f over 256 crop pixels, f the diagonal of the image (CLIFF). The reference takes
the first image's diagonal for a whole batch; here every row has its own, unless `focal` is one number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.geometry.cameras import crop_to_full
from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.dpmesh.inputs import CROP
from stages.models.dpmesh.network import camera_translation, project_to_crop

# Vertices of SMPL for nose, eyes and ears (left first) in the 30-joint set. DPMesh and 3DCrowdNet chose these; they are
# not the landmarks of smpl/body_files.py (SMPLify's choice), and scores depend on the difference.
FACE = (331, 2802, 6262, 3489, 3990)


class JointRegressor:
    """DPMesh's 30 joints of a posed mesh: 24 by SMPL's regressor, five vertices, and the top of the head.

    smpl (24, 6890); head_top (6890,): row 3 of the data sets' J_regressor_extra.npy, which no checkpoint holds.
    """

    def __init__(self, smpl: Tensor, head_top: Tensor) -> None:
        face = torch.zeros(len(FACE), smpl.shape[1]).to(smpl)
        face[torch.arange(len(FACE)), list(FACE)] = 1
        self.matrix = torch.cat([smpl, face, head_top.to(smpl)[None]])

    def __call__(self, vertices: Tensor) -> Tensor:
        """(n, 6890, 3) -> (n, 30, 3)."""
        return self.matrix.to(vertices) @ vertices


def body_outputs(
    body: Any, joints: JointRegressor, pose: Tensor, betas: Tensor, transl: Tensor, focal: Tensor
) -> dict[str, Tensor]:
    """What the reference returns of a body: pose (n, 72), betas (n, 10), transl (n, 3) in the crop's camera.

    joint_cam (n, 30, 3) and mesh_cam (n, 6890, 3) relative to the pelvis, mesh_cam_render (n, 6890, 3) in the camera,
    joint_proj (n, 30, 2) in 64ths of the crop.
    """
    rotations = axis_angle_to_matrix(pose.reshape(-1, 24, 3))
    mesh = body.forward_rotmat(rotations, betas, transl).vertices
    xyz = joints(mesh)
    root = xyz[:, :1]
    return {
        "joint_cam": xyz - root,
        "mesh_cam": mesh - root,
        "mesh_cam_render": mesh,
        "joint_proj": project_to_crop(xyz, focal),
    }


def reference_outputs(out: dict[str, Tensor], body: Any, joints: JointRegressor, focal: Tensor) -> dict[str, Tensor]:
    """The reference's output dictionary from `DPMesh.regress`. focal (n,), or () for its one focal length per batch."""
    pose = torch.cat([out["global_orient"], out["body_pose"].flatten(1)], 1)
    transl = camera_translation(out["camera"], torch.as_tensor(focal).to(pose))
    return {
        "tokens": out["tokens"],
        "joint_img": out["joint_img"],
        "root6d": out["root6d"],
        "pose_latent": out["pose"],
        "smpl_shape": out["betas"],
        "cam_param": out["camera"],
        "smpl_pose": pose,
        **body_outputs(body, joints, pose, out["betas"], transl, torch.as_tensor(focal).to(pose)),
    }


def full_translation(camera: Tensor, focal: Tensor, center: Tensor, side: Tensor, K: Tensor) -> Tensor:
    """Translation (n, 3) m in the image's camera K (n, 3, 3): the body covers the same image pixels as in the crop.

    camera (n, 3) network numbers · focal (n,) of the crop's camera · center (n, 2), side (n,) the crop in image px.
    """
    return crop_to_full(camera_translation(camera, focal), focal, CROP, center, side, K)
