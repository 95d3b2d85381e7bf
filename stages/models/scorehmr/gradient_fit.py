"""Plain gradient fitting of the same keypoint loss, for comparison with refinement by a prior.

Source: SMPLify (Bogo et al. 2016) in spirit: Adam on the pose under robust reprojection error, with a quadratic prior
towards the start. It knows nothing of plausible poses, so somebody has to say when to stop.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stages.models.scorehmr.guidance import Guidance


@torch.no_grad()
def fit(
    pose: Tensor, guidance: Guidance, steps: int = 60, learning_rate: float = 0.01, prior: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pose (n, 144) and transl (n, 3) after every step. `prior`: weight of the squared distance to the start."""
    term, start = guidance.keypoints, pose
    assert term is not None
    mean, variance = torch.zeros_like(pose), torch.zeros_like(pose)
    for step in range(1, steps + 1):
        guidance.evaluate_keypoints(pose, None)
        gradient, _ = guidance.gradient(pose, None, None)
        gradient = gradient + 2 * prior * (pose - start)
        mean.lerp_(gradient, 0.1)
        variance.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        pose = pose - learning_rate / (1 - 0.9**step) * mean / ((variance / (1 - 0.999**step)).sqrt() + 1e-8)
        term.move_camera()
        yield pose, term.transl.t().contiguous()
