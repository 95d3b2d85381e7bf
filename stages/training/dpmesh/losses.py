"""DPMesh's training terms as released (not as printed in the paper), their learned weights, and the two NKR losses.

Every term is a mean over all entries, zeros included, so a batch with few labels has small losses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.keypoints.joint_sets import SETS, index

# Heatmap-like unit of joint_img and joint_proj: the crop is 64 wide.
UNIT = 64
JOINTS15 = index(SETS["dpmesh30"], SETS["dpmesh15"])
# The data sets' fits are not reliable at these SMPL joints: their `fit_param_valid` is 0.
UNSUPERVISED = index(
    SETS["smpl24"],
    [f"{side}_{joint}" for joint in ("ankle", "foot", "wrist", "hand") for side in ("left", "right")],
)


def terms(out: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The six terms from `outputs.reference_outputs` and targets.

    Targets (n first): orig_joint_img, fit_joint_img (30, 3) in 64ths of the crop; orig_joint_cam (30, 3) m;
    orig_joint_trunc, fit_joint_trunc, orig_joint_valid (30, 1); pose_param (72), shape_param (10); fit_param_valid
    (72); is_valid_fit, is_3D ().
    """
    img = out["joint_img"] * UNIT
    is_3d, fitted = target["is_3D"][:, None, None], target["is_valid_fit"][:, None]

    def joint_img(name: str) -> Tensor:
        truth, inside = target[f"{name}_joint_img"][:, JOINTS15], target[f"{name}_joint_trunc"][:, JOINTS15]
        return (img - truth).abs() * inside / UNIT

    annotated, fit = joint_img("orig"), joint_img("fit") * fitted[..., None]
    pose = (out["smpl_pose"] - target["pose_param"]).abs() * target["fit_param_valid"] * fitted
    shape = (out["smpl_shape"] - target["shape_param"]).abs() * fitted
    projected = (out["joint_proj"] - target["orig_joint_img"][..., :2]).abs() * target["orig_joint_trunc"]
    joints = (out["joint_cam"] - target["orig_joint_cam"]).abs() * target["orig_joint_valid"] * is_3d
    return {
        "body_joint_img_0": torch.cat([annotated[..., :2], annotated[..., 2:] * is_3d], -1).mean(),
        "smpl_joint_img_0": fit.mean(),
        "smpl_pose_0": 2 * pose.mean(),
        "smpl_shape_0": 2 * shape.mean(),
        "body_joint_proj_0": projected.mean(),
        "body_joint_cam_0": 2 * joints.mean(),
    }


class LearnedWeights(nn.Module):
    """0.5 / p^2 L + log(1 + p^2) for each term (Kendall et al. 2018, as AutomaticWeightedLoss); p by sorted name."""

    def __init__(self, count: int = 9) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(count))

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms, under their names."""
        squares = self.p**2
        return {n: 0.5 / squares[i] * losses[n] + torch.log1p(squares[i]) for i, n in enumerate(sorted(losses))}


def nt_xent(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Contrastive part of noisy keypoint reasoning: NT-Xent over 2n flattened views (n, ...), cosine similarity."""
    views = F.normalize(torch.cat([student.flatten(1), teacher.flatten(1)]), dim=1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(student)
    partner = torch.arange(2 * n, device=views.device).roll(n)
    return F.cross_entropy(similarity, partner)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """The other part: elementwise mean squared error."""
    return F.mse_loss(student, teacher)
