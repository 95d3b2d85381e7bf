"""Plain gradient fitting of the same keypoint loss: what refinement by a prior is to be compared with.

Source: SMPLify (Bogo et al. 2016) in spirit: Adam on the pose under robust reprojection error, with a quadratic prior
that pulls back to where the fit began. There is no notion of a plausible pose, so it needs a stopping point.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stages.models.scorehmr.guidance import Guidance


@torch.no_grad()
def fit(
    pose: Tensor, guidance: Guidance, steps: int = 60, rate: float = 0.01, prior: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pose (n, 144) and transl (n, 3) after every step. `prior`: weight of the squared distance to the start."""
    term, start = guidance.keypoints, pose
    assert term is not None
    m, v = torch.zeros_like(pose), torch.zeros_like(pose)
    for k in range(1, steps + 1):
        guidance.look(pose, None)
        gradient, _ = guidance.gradient(pose, None, None)
        gradient = gradient + 2 * prior * (pose - start)
        m.lerp_(gradient, 0.1)
        v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        pose = pose - rate / (1 - 0.9**k) * m / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        term.move_camera()
        yield pose, term.transl.t().contiguous()
