"""The network of the embedded recoverer: keypoints to pose, betas, translation and confidence, in a few rounds.

Round one is a residual multilayer perceptron on the normalised keypoints (after Martinez et al., ICCV 2017). Its body
is posed and projected; each further round reads the observed keypoints, the projected ones and their difference, and
corrects the estimate (learned gradient descent, Song et al., ECCV 2020, with the residual instead of the gradient).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from stages.models.embedded.kinematics import Skeleton, rot6d_to_matrix
from stages.models.embedded.virtual_camera import INPUTS

OUT = 24 * 6 + 10 + 3  # rotations, betas, translation
FEEDBACK = OUT + 17 * 2 * 2


@dataclasses.dataclass
class Estimate:
    """Batch last: rotation (3, 3, 24, n) virtual camera, betas (10, n), joints (3, 24, n), points (3, 17, n) from the
    pelvis, pelvis (3, n) metres, image (2, 17, n) the projected keypoints, in half sides of the box."""

    rotation: Tensor
    betas: Tensor
    joints: Tensor
    points: Tensor
    pelvis: Tensor
    image: Tensor


class ResidualBlock(nn.Module):
    """Pre-normalised residual block of width `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.down.bias)
        self.down.weight.data.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


def _small(layer: nn.Linear) -> nn.Linear:
    """Starts near zero: the first estimate is the mean pose, corrections are small."""
    layer.weight.data.mul_(0.05)
    nn.init.zeros_(layer.bias)
    return layer


class Network(nn.Module):
    """(n, 52) inputs -> Estimates of each round and logits (n, 24) that a joint is within 10 cm of the truth."""

    start: Tensor

    def __init__(self, skeleton: Skeleton, width: int = 576, blocks: tuple[int, ...] = (1, 1, 1, 1)) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.shape = {"width": width, "blocks": list(blocks)}
        self.enter = nn.ModuleList(
            nn.Linear(INPUTS if i == 0 else width + INPUTS + FEEDBACK, width) for i in range(len(blocks))
        )
        self.trunk = nn.ModuleList(nn.Sequential(*(ResidualBlock(width) for _ in range(count))) for count in blocks)
        self.leave = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), _small(nn.Linear(width, OUT))) for _ in blocks)
        self.sure = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 24))  # confidence; weights files have this name
        # A standing person who faces the camera: y and z of the root point the other way, 1 m half a box side.
        start = torch.zeros(24, 6)
        start[:, 0] = start[:, 4] = 1
        start[0, 4] = -1
        self.register_buffer("start", torch.cat([start.flatten(), torch.zeros(13)]), persistent=False)

    def forward(self, inputs: Tensor, half: Tensor, autocast: bool = False) -> tuple[list[Estimate], Tensor]:
        """inputs (n, 52), half (n,) half side of the box as a tangent: the exact one, not the clamped input."""
        observed = inputs[:, :34].T.unflatten(0, (2, 17))
        visible = (inputs[:, 34:51].T > 0).float()
        numbers: Tensor = self.start
        estimates: list[Estimate] = []
        hidden = inputs[:, :0]
        for enter, trunk, leave in zip(self.enter, self.trunk, self.leave, strict=True):
            x = inputs
            if estimates:
                last = estimates[-1].image
                residual = ((observed - last) * visible).clamp(-1, 1)
                x = torch.cat(
                    [inputs, hidden, numbers.float(), last.clamp(-3, 3).flatten(0, 1).T, 4 * residual.flatten(0, 1).T],
                    1,
                )
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=autocast):
                hidden = trunk(enter(x))
                correction = leave(hidden)
            numbers = numbers + correction.float()
            hidden = hidden.float()
            estimates.append(self.pose(numbers, half))
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=autocast):
            confidence_logits = self.sure(hidden.detach())
        return estimates, confidence_logits.float()

    def pose(self, numbers: Tensor, half: Tensor) -> Estimate:
        """(n, 157) numbers -> the body in front of the virtual camera."""
        flat = numbers.T.contiguous()
        rotation = rot6d_to_matrix(flat[:144].unflatten(0, (24, 6)).transpose(0, 1))
        betas = flat[144:154]
        joints, points = self.skeleton(rotation, betas)
        metres = flat[156].clamp(-3, 3).exp()  # half the box's side at the pelvis's depth
        pelvis = torch.cat([flat[154:156] * metres, (metres / half)[None]])
        z = (points[2] + pelvis[2]).clamp(min=0.1)
        image = (points[:2] + pelvis[:2, None]) / z / half
        return Estimate(rotation, betas, joints, points, pelvis, image)
