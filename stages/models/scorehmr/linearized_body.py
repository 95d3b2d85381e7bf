"""The points of a kinematic chain as sums of rotated bone vectors: linear in the orientations of the bones, so that the
derivatives need no walk through the tree.

A bone vector leads from a joint to its child, or from a joint to a vertex that is skinned to it. The error of a pose is
24 rotation vectors between the true and the estimated ORIENTATION of each bone, in the camera's axes, then the betas.
Orientations and not joint angles, because then x and y of a rotation vector always concern depth and z always the image
plane, whatever the pose.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.scorehmr.kinematic_chain import KinematicChain

POSE_SIZE = 24 * 3 + 10  # numbers of a pose's error; three of the pelvis' position follow
MIN_DEPTH = 0.1  # m; nothing that is visible is nearer to the camera


@dataclass
class PosedEstimate:
    """n people before a camera that looks at them: rotation (n, 24, 3, 3) of the bones in the camera's axes, betas
    (n, 10), pelvis (n, 3) m; half_box (n,) tangent of half the keypoints' box."""

    rotation: Tensor
    betas: Tensor
    pelvis: Tensor
    half_box: Tensor

    def to(self, dtype: torch.dtype) -> PosedEstimate:
        return PosedEstimate(*(getattr(self, f.name).to(dtype) for f in dataclasses.fields(self)))

    def corrected(self, error: Tensor) -> PosedEstimate:
        """The bodies that differ from these by error (n, 85): the pose's 82 numbers, then the pelvis sideways (2, in
        half boxes) and the logarithm of its depth."""
        rotation = axis_angle_to_matrix(error[:, :72].unflatten(1, (24, 3))) @ self.rotation
        depth = self.pelvis[:, 2:] * error[:, POSE_SIZE + 2 :].exp()
        ray = self.pelvis[:, :2] / self.pelvis[:, 2:] + error[:, POSE_SIZE : POSE_SIZE + 2] * self.half_box[:, None]
        pelvis = torch.cat([ray * depth, depth], 1)
        return dataclasses.replace(self, rotation=rotation, betas=self.betas + error[:, 72:POSE_SIZE], pelvis=pelvis)


class LinearizedBody:
    """point_k = pelvis + sum_i mixture[k, i] R[bone_i] (rest_i + dirs_i betas), for the K points of a chain and its I
    bone vectors. In double precision: batches are summed in different orders, and the update enlarges the differences.
    """

    def __init__(self, chain: KinematicChain) -> None:
        self.chain, count = chain, len(chain.parents)
        self.vertex, bone_of_vertex = torch.nonzero(chain.weights.abs() > 1e-7, as_tuple=True)
        self.bone = torch.cat([chain.parent_index, bone_of_vertex])
        joint_dirs = chain.joint_dirs.view(count, 3, -1)
        to_child = chain.joints - chain.joints[chain.parent_index]
        to_child_dirs = joint_dirs - joint_dirs[chain.parent_index]  # the root is its own parent: its vector is zero
        self.rest = torch.cat([to_child, chain.vertices[self.vertex] - chain.joints[bone_of_vertex]]).double()
        vertex_dirs = chain.vertex_dirs.view(len(chain.vertices), 3, -1)
        self.dirs = torch.cat([to_child_dirs, vertex_dirs[self.vertex] - joint_dirs[bone_of_vertex]]).double()
        share = chain.from_vertices[:, self.vertex] * chain.weights[self.vertex, bone_of_vertex]
        self.mixture = torch.cat([chain.carried, share], 1).double()
        by_bone = torch.zeros(count, len(self.bone)).to(self.mixture)
        by_bone[self.bone, torch.arange(len(self.bone), device=self.bone.device)] = 1
        self.by_bone = (self.mixture[:, None] * by_bone).flatten(0, 1)  # (K * 24, I)

    def linearize(self, estimate: PosedEstimate) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, K, 3) from the pelvis and their derivatives.

        rotation_jacobian (n, K, 24, 3): vectors v from each joint to what is skinned to its own bone; a rotation of
        the bone by d moves the point by d x v · shape_jacobian (n, K, 3, 10) with respect to the betas.
        """
        K = len(self.mixture)
        R = estimate.rotation.permute(1, 2, 3, 0).index_select(0, self.bone)  # (I, 3, 3, n)
        rest = (self.dirs.flatten(0, 1) @ estimate.betas.t()).view(len(self.bone), 3, -1) + self.rest[..., None]
        if self.chain.pose_dirs is not None:
            rest = rest + self._blend_shapes(estimate.rotation)
        rotated = R[:, :, 0] * rest[:, None, 0] + R[:, :, 1] * rest[:, None, 1] + R[:, :, 2] * rest[:, None, 2]
        dirs = sum(R[:, :, a, None] * self.dirs[:, None, a, :, None] for a in range(3))  # (I, 3, B, n)
        points = (self.mixture @ rotated.flatten(1)).view(K, 3, -1)
        rotation_jacobian = (self.by_bone @ rotated.flatten(1)).view(K, 24, 3, -1)
        betas = self.dirs.shape[-1]
        shape_jacobian = (self.mixture @ dirs.flatten(1)).view(K, 3, betas, -1)  # type: ignore[union-attr]
        return points.permute(2, 0, 1), rotation_jacobian.permute(3, 0, 1, 2), shape_jacobian.permute(3, 0, 1, 2)

    def _blend_shapes(self, rotation: Tensor) -> Tensor:
        """What pose blend shapes add to the bone vectors (I, 3, n); their own derivative is left out."""
        chain, n = self.chain, len(rotation)
        assert chain.pose_dirs is not None
        local = rotation[:, chain.parent_index[1:]].transpose(-1, -2) @ rotation[:, 1:]
        feature = (local - torch.eye(3).to(local)).reshape(n, -1).t()
        offsets = (chain.pose_dirs.double() @ feature).view(-1, 3, n)[self.vertex]
        return torch.cat([offsets.new_zeros(len(chain.parents), 3, n), offsets])


def point_jacobian(rotation_jacobian: Tensor, shape_jacobian: Tensor) -> Tensor:
    """Derivative (n, 3 K, 82) of the points with respect to the pose's error, from the derivatives of linearize()."""
    x, y, z = rotation_jacobian.unbind(-1)
    o = torch.zeros_like(x)
    rows = torch.stack([o, z, -y, -z, o, x, y, -x, o], -1).unflatten(-1, (3, 3))  # d x v as a matrix times d
    by_rotation = rows.permute(0, 1, 3, 2, 4).flatten(3)  # (n, K, 3, 72)
    return torch.cat([by_rotation, shape_jacobian], -1).flatten(1, 2)


def project_with_jacobian(
    estimate: PosedEstimate, points: Tensor, rotation_jacobian: Tensor, shape_jacobian: Tensor
) -> tuple[Tensor, Tensor]:
    """Projected points (n, K, 2) in half boxes and their derivative (n, 2 K, 85) with respect to the estimate's error
    (see `PosedEstimate.corrected`)."""
    n, K = points.shape[:2]
    pelvis, half = estimate.pelvis, estimate.half_box[:, None]
    position = points + pelvis[:, None]
    depth = position[..., 2].clamp_min(MIN_DEPTH)
    u, v = position[..., 0] / depth, position[..., 1] / depth
    scale = 1 / (depth * half)
    x, y, z = rotation_jacobian.unbind(-1)
    s, a, b = scale[..., None], u[..., None], v[..., None]
    J = points.new_empty(n, K, 2, POSE_SIZE + 3)
    # A point that moves by (dx, dy, dz) moves in the image by (dx - u dz, dy - v dz) / depth.
    J[:, :, 0, :72] = (torch.stack([-a * y, z + a * x, -y], -1) * s[..., None]).flatten(2)
    J[:, :, 1, :72] = (torch.stack([-z - b * y, b * x, x], -1) * s[..., None]).flatten(2)
    J[:, :, 0, 72:POSE_SIZE] = (shape_jacobian[:, :, 0] - a * shape_jacobian[:, :, 2]) * s
    J[:, :, 1, 72:POSE_SIZE] = (shape_jacobian[:, :, 1] - b * shape_jacobian[:, :, 2]) * s
    sideways = half * pelvis[:, 2:] * scale
    J[:, :, 0, POSE_SIZE], J[:, :, 0, POSE_SIZE + 1] = sideways, 0
    J[:, :, 1, POSE_SIZE], J[:, :, 1, POSE_SIZE + 1] = 0, sideways
    J[:, :, 0, POSE_SIZE + 2] = (pelvis[:, :1] - u * pelvis[:, 2:]) * scale
    J[:, :, 1, POSE_SIZE + 2] = (pelvis[:, 1:2] - v * pelvis[:, 2:]) * scale
    return torch.stack([u, v], -1) / half[..., None], J.flatten(1, 2)
