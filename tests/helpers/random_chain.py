"""A kinematic chain in double precision for tests of derivatives."""

from __future__ import annotations

import torch

from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.smpl.body import load_body


def random_chain(pose_dirs: bool) -> KinematicChain:
    """A 24-joint body in double precision whose points are arbitrary mixtures of joints and vertices."""
    g = torch.Generator().manual_seed(1)
    body = load_body("embedded")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weights = torch.rand(9, 24, generator=g, dtype=torch.float64)
    return KinematicChain(
        torch.tensor(body.parents), body.joint_template.double(), body.joint_dirs.double(),
        normal(9, 3), normal(9, 3, 10), weights / weights.sum(1, keepdim=True), normal(7, 33),
        0.1 * normal(9, 3, 207) if pose_dirs else None,
    )  # fmt: skip
