"""The 25 points that the keypoint loss reads (OpenPose BODY_25), on a body of any topology."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.keypoints import joint_sets
from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.smpl.body import Body

NAMES = joint_sets.SETS["body25"]
HIPS = joint_sets.index(NAMES, ("mid_hip", "right_hip", "left_hip"))
# SMPL's topology only: nose, right and left eye, right and left ear, left big and small toe and heel, the same right.
OPENPOSE25_VERTICES = [332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787]
# For each point the joint (below 24) or 24 + index in the list above. Neck, hips and mid-hip are SMPL's own joints.
OPENPOSE25_MIX = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34]


def chain_of(body: Body) -> KinematicChain:
    """The kinematic chain of the 25 points: SMPL's joints and single vertices as released; for another topology, the
    body's own regressor."""
    if body.topology == "smpl":
        vertex_indices = torch.tensor(OPENPOSE25_VERTICES, device=body.device)
        mixture = torch.eye(24 + len(vertex_indices), dtype=body.dtype, device=body.device)[OPENPOSE25_MIX]
    else:
        rows = body.regressor("body25")
        vertex_indices = torch.nonzero((rows != 0).any(0))[:, 0]
        mixture = torch.cat([rows.new_zeros(len(rows), 24), rows[:, vertex_indices]], 1)
    vertices, dirs, weights = (v[vertex_indices] for v in (body.v_template, body.shapedirs, body.weights))
    pose_dirs = None if body.posedirs is None else body.posedirs[vertex_indices]
    if pose_dirs is None:
        vertices, dirs, weights, mixture = _fold(vertices, dirs, weights, mixture)
    parents = torch.tensor(body.parents)
    return KinematicChain(parents, body.joint_template, body.joint_dirs, vertices, dirs, weights, mixture, pose_dirs)


def _fold(vertices: Tensor, dirs: Tensor, weights: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One rest point per body point and bone in place of many vertices: without pose blend shapes, the vertices of a
    mixture that are skinned to one bone move with it as their weighted mean. vertices (V, 3), dirs (V, 3, B), weights
    (V, 24), mixture (K, 24 + V) -> the same for the merged points."""
    bones = weights.shape[1]
    share = mixture[:, bones:, None] * weights  # (K, V, bones)
    share_of_bone = share.sum(1)
    point, bone = torch.nonzero(share.abs().sum(1) > 1e-7, as_tuple=True)
    weight = share_of_bone[point, bone]
    normalized = share[point, :, bone] / weight[:, None]  # (P, V)
    folded = torch.zeros(len(mixture), bones + len(point), dtype=mixture.dtype, device=mixture.device)
    folded[:, :bones] = mixture[:, :bones]
    folded[point, bones + torch.arange(len(point), device=point.device)] = weight
    one_bone = torch.zeros(len(point), bones, dtype=mixture.dtype, device=mixture.device)
    one_bone[torch.arange(len(point), device=point.device), bone] = 1
    return normalized @ vertices, torch.einsum("pv,vcb->pcb", normalized, dirs), one_bone, folded
