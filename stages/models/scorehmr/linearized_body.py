"""The points of a chain as sums of turned arms: linear in the orientations of the bones, so no tree is walked.

An arm is the way from a joint to its child, or from a joint to a vertex that hangs on it. Errors of a pose are 24
rotation vectors between true and estimated ORIENTATION of each bone, in the camera's axes, then the betas; not joint
angles, because then x and y of a vector always mean depth and z always the picture, whatever the pose.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.scorehmr.kinematic_chain import KinematicChain

POSE = 24 * 3 + 10  # numbers of a pose's error; three of the place follow


@dataclass
class PosedEstimate:
    """n people before a camera that looks at them: rotation (n, 24, 3, 3) of the bones in the camera's axes, betas
    (n, 10), pelvis (n, 3) m; half (n,) tangent of half the keypoints' box."""

    rotation: Tensor
    betas: Tensor
    pelvis: Tensor
    half: Tensor

    def to(self, dtype: torch.dtype) -> PosedEstimate:
        return PosedEstimate(*(getattr(self, f.name).to(dtype) for f in dataclasses.fields(self)))

    def moved(self, error: Tensor) -> PosedEstimate:
        """The scene of which this one is off by error (n, 85): the pose's 82 numbers, then the pelvis sideways (2, in
        half boxes) and the logarithm of its depth."""
        rotation = axis_angle_to_matrix(error[:, :72].unflatten(1, (24, 3))) @ self.rotation
        depth = self.pelvis[:, 2:] * error[:, POSE + 2 :].exp()
        ray = self.pelvis[:, :2] / self.pelvis[:, 2:] + error[:, POSE : POSE + 2] * self.half[:, None]
        return dataclasses.replace(
            self, rotation=rotation, betas=self.betas + error[:, 72:POSE], pelvis=torch.cat([ray * depth, depth], 1)
        )


class LinearizedBody:
    """Point k = pelvis + sum_i mix[k, i] R[bone_i] (rest_i + shape_i betas), for the points of a chain. In double
    precision: batches are summed in different orders, and the update makes more of the differences."""

    def __init__(self, chain: KinematicChain) -> None:
        self.chain, count = chain, len(chain.parents)
        self.vertex, on = torch.nonzero(chain.weights.abs() > 1e-7, as_tuple=True)
        self.bone = torch.cat([chain.parent_index, on])
        joint_dirs = chain.joint_dirs.view(count, 3, -1)
        to_child = chain.joints - chain.joints[chain.parent_index]
        to_child_dirs = joint_dirs - joint_dirs[chain.parent_index]  # the root's arm is zero: it is its own parent
        self.rest = torch.cat([to_child, chain.vertices[self.vertex] - chain.joints[on]]).double()
        vertex_dirs = chain.vertex_dirs.view(len(chain.vertices), 3, -1)
        self.shape = torch.cat([to_child_dirs, vertex_dirs[self.vertex] - joint_dirs[on]]).double()
        share = chain.from_vertices[:, self.vertex] * chain.weights[self.vertex, on]
        self.mix = torch.cat([chain.carried, share], 1).double()
        by_bone = torch.zeros(count, len(self.bone)).to(self.mix)
        by_bone[self.bone, torch.arange(len(self.bone), device=self.bone.device)] = 1
        self.by_bone = (self.mix[:, None] * by_bone).flatten(0, 1)  # (K * 24, I)

    def linearise(self, scene: PosedEstimate) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, K, 3) from the pelvis, levers (n, K, 24, 3) from each joint to what hangs on its own bone (a bone
        that turns by d moves the point by d x lever), and the derivative (n, K, 3, 10) with respect to the betas."""
        K = len(self.mix)
        turn = scene.rotation.permute(1, 2, 3, 0).index_select(0, self.bone)  # (I, 3, 3, n)
        rest = (self.shape.flatten(0, 1) @ scene.betas.t()).view(len(self.bone), 3, -1) + self.rest[..., None]
        if self.chain.pose_dirs is not None:
            rest = rest + self._blend_shapes(scene.rotation)
        arm = turn[:, :, 0] * rest[:, None, 0] + turn[:, :, 1] * rest[:, None, 1] + turn[:, :, 2] * rest[:, None, 2]
        shape = sum(turn[:, :, a, None] * self.shape[:, None, a, :, None] for a in range(3))  # (I, 3, B, n)
        points = (self.mix @ arm.flatten(1)).view(K, 3, -1)
        lever = (self.by_bone @ arm.flatten(1)).view(K, 24, 3, -1)
        swell = (self.mix @ shape.flatten(1)).view(K, 3, self.shape.shape[-1], -1)  # type: ignore[union-attr]
        return points.permute(2, 0, 1), lever.permute(3, 0, 1, 2), swell.permute(3, 0, 1, 2)

    def _blend_shapes(self, rotation: Tensor) -> Tensor:
        """What pose blend shapes add to the arms (I, 3, n); their own derivative is left out."""
        chain, n = self.chain, len(rotation)
        assert chain.pose_dirs is not None
        local = rotation[:, chain.parent_index[1:]].transpose(-1, -2) @ rotation[:, 1:]
        feature = (local - torch.eye(3).to(local)).reshape(n, -1).t()
        moved = (chain.pose_dirs.double() @ feature).view(-1, 3, n)[self.vertex]
        return torch.cat([moved.new_zeros(len(chain.parents), 3, n), moved])


def in_space(lever: Tensor, swell: Tensor) -> Tensor:
    """Derivative (n, 3 K, 82) of the points with respect to the pose's error; levers and swell from linearise()."""
    x, y, z = lever.unbind(-1)
    o = torch.zeros_like(x)
    rows = torch.stack([o, z, -y, -z, o, x, y, -x, o], -1).unflatten(-1, (3, 3))  # d x m as a matrix times d
    turned = rows.permute(0, 1, 3, 2, 4).flatten(3)  # (n, K, 3, 72)
    return torch.cat([turned, swell], -1).flatten(1, 2)


def in_picture(scene: PosedEstimate, points: Tensor, lever: Tensor, swell: Tensor) -> tuple[Tensor, Tensor]:
    """Drawn points (n, K, 2) in half boxes and their derivative (n, 2 K, 85) with respect to the scene's error."""
    n, K = points.shape[:2]
    pelvis, half = scene.pelvis, scene.half[:, None]
    place = points + pelvis[:, None]
    depth = place[..., 2].clamp_min(0.1)
    u, v = place[..., 0] / depth, place[..., 1] / depth
    scale = 1 / (depth * half)
    x, y, z = lever.unbind(-1)
    s, a, b = scale[..., None], u[..., None], v[..., None]
    J = points.new_empty(n, K, 2, POSE + 3)
    # A point that moves by (dx, dy, dz) moves in the picture by (dx - u dz, dy - v dz) / depth.
    J[:, :, 0, :72] = (torch.stack([-a * y, z + a * x, -y], -1) * s[..., None]).flatten(2)
    J[:, :, 1, :72] = (torch.stack([-z - b * y, b * x, x], -1) * s[..., None]).flatten(2)
    J[:, :, 0, 72:POSE] = (swell[:, :, 0] - a * swell[:, :, 2]) * s
    J[:, :, 1, 72:POSE] = (swell[:, :, 1] - b * swell[:, :, 2]) * s
    aside = half * pelvis[:, 2:] * scale
    J[:, :, 0, POSE], J[:, :, 0, POSE + 1] = aside, 0
    J[:, :, 1, POSE], J[:, :, 1, POSE + 1] = 0, aside
    J[:, :, 0, POSE + 2] = (pelvis[:, :1] - u * pelvis[:, 2:]) * scale
    J[:, :, 1, POSE + 2] = (pelvis[:, 1:2] - v * pelvis[:, 2:]) * scale
    return torch.stack([u, v], -1) / half[..., None], J.flatten(1, 2)
