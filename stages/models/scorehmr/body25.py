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
# For each point the joint (below 24) or 24 + place in the list above. Neck, hips and mid-hip are SMPL's own joints.
OPENPOSE25_MIX = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34]


def chain_of(body: Body) -> KinematicChain:
    """The chain of the 25 points. SMPL: as released (joints, and single vertices). Others: the body's own regressor."""
    if body.topology == "smpl":
        which = torch.tensor(OPENPOSE25_VERTICES, device=body.device)
        mix = torch.eye(24 + len(which), dtype=body.dtype, device=body.device)[OPENPOSE25_MIX]
    else:
        rows = body.regressor("body25")
        which = torch.nonzero((rows != 0).any(0))[:, 0]
        mix = torch.cat([rows.new_zeros(len(rows), 24), rows[:, which]], 1)
    vertices, dirs, weights = body.v_template[which], body.shapedirs[which], body.weights[which]
    pose_dirs = None if body.posedirs is None else body.posedirs[which]
    if pose_dirs is None:
        vertices, dirs, weights, mix = _fold(vertices, dirs, weights, mix)
    parents = torch.tensor(body.parents)
    return KinematicChain(parents, body.joint_template, body.joint_dirs, vertices, dirs, weights, mix, pose_dirs)


def _fold(vertices: Tensor, dirs: Tensor, weights: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without pose blend shapes a mixture of vertices moves with each bone as one rest point: far fewer points, each on
    one bone. vertices (V, 3), dirs (V, 3, B), weights (V, 24), mix (K, 24 + V) -> the same for the folded points."""
    bones = weights.shape[1]
    share = mix[:, bones:, None] * weights  # (K, V, bones)
    total = share.sum(1)
    k, b = torch.nonzero(share.abs().sum(1) > 1e-7, as_tuple=True)
    size = total[k, b]
    part = share[k, :, b] / size[:, None]  # (P, V)
    folded = torch.zeros(len(mix), bones + len(k), dtype=mix.dtype, device=mix.device)
    folded[:, :bones] = mix[:, :bones]
    folded[k, bones + torch.arange(len(k), device=k.device)] = size
    one_bone = torch.zeros(len(k), bones, dtype=mix.dtype, device=mix.device)
    one_bone[torch.arange(len(k), device=k.device), b] = 1
    return part @ vertices, torch.einsum("pv,vcb->pcb", part, dirs), one_bone, folded


def evidence(keypoints: Tensor, names: tuple[str, ...]) -> Tensor:
    """Keypoints (n, J, 3) of `names` -> (n, 25, 3) by name; what is absent or not finite has confidence 0.

    Nothing is made up: a neck that the detector does not give stays unseen.
    """
    source = [name if name in names else {"mid_hip": "pelvis", "pelvis": "mid_hip"}.get(name, name) for name in NAMES]
    at = torch.from_numpy(joint_sets.index(names, source)).to(keypoints.device)
    found = keypoints[:, at.clamp_min(0)].clone()
    found[:, at < 0] = 0
    bad = ~torch.isfinite(found).all(-1)
    found[bad] = 0
    found[..., 2].clamp_min_(0)
    return found
