"""SMPL parameters of a mesh, for networks that predict vertices alone: every consumer of /smpl then works with them.

First every joint's rotation by weighted Procrustes (Kabsch) of the vertices that it moves, then Gauss-Newton on all
rotations, betas and the translation together, with the exact Jacobian of linear blend skinning (pose blend
shape_jacobian are followed from step to step, not differentiated). Batched; no loop over people.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.smpl.body import Body

EVERY = 4  # every fourth vertex is fitted: neighbours move alike, so the others add little


@dataclasses.dataclass
class Fit:
    """global_orient (n, 3), body_pose (n, 23, 3) axis-angle · betas (n, 10) · transl (n, 3) m
    · residual (n,): mean distance in metres between the fitted vertices and those of the mesh."""

    global_orient: Tensor
    body_pose: Tensor
    betas: Tensor
    transl: Tensor
    residual: Tensor


@torch.no_grad()
def fit_smpl(body: Body, vertices: Tensor, steps: int = 6, shape_weight: float = 1e-8, damping: float = 1e-7) -> Fit:
    """Fit the body to vertices (n, V, 3) of its topology, in metres.

    `shape_weight` (m^2 per vertex and unit of beta squared) keeps betas small where the mesh does not determine them;
    `damping` (m^2 a vertex) regularises the rotations of joints that move few vertices.
    """
    vertices = vertices.to(body.dtype)
    model = _Model(body, torch.arange(0, vertices.shape[1], EVERY, device=body.device))
    all_vertices, vertices = vertices, vertices[:, model.indices]
    n, count = len(vertices), vertices.shape[1]
    betas = vertices.new_zeros(n, body.num_betas)
    rotations = model.procrustes(vertices, betas, None)
    rotations = model.procrustes(vertices, betas, rotations)
    transl = (vertices - model.pose(rotations, betas)[0]).mean(1)
    best, best_error = [rotations, betas, transl], vertices.new_full((n,), float("inf"))
    for step in range(steps + 1):
        posed, rotation_jacobian, shape_jacobian = model.pose(rotations, betas)
        residual = vertices - posed - transl[:, None]
        error = residual.square().sum((1, 2)) + count * shape_weight * betas.square().sum(1)
        better = error < best_error
        current = (rotations, betas, transl)
        best = [torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(current, best, strict=True)]
        best_error = torch.minimum(error, best_error)
        if step == steps:
            break
        rotation_step, betas_step, transl_step = _solve(
            residual, rotation_jacobian, shape_jacobian, betas, count * shape_weight, count * damping
        )
        rotations = axis_angle_to_matrix(rotation_step) @ rotations
        betas, transl = betas + betas_step, transl + transl_step
    rotations, betas, transl = best
    local = model.local(rotations)
    axis_angle = matrix_to_axis_angle(local)
    fitted = body.forward_rotmat(axis_angle_to_matrix(axis_angle), betas, transl).vertices
    return Fit(axis_angle[:, 0], axis_angle[:, 1:], betas, transl, (fitted - all_vertices).norm(dim=-1).mean(1))


def _solve(
    residual: Tensor,
    rotation_jacobian: Tensor,
    shape_jacobian: Tensor,
    betas: Tensor,
    shape_weight: float,
    damping: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One damped Gauss-Newton step: rotations (n, 24, 3), betas (n, B), translation (n, 3).

    residual (n, V, 3) m · rotation_jacobian (n, 24, V, 3) in the form of a cross product: a small rotation w of a joint
    moves a vertex by w x that vector · shape_jacobian (n, V, 3, B). The normal matrix needs only inner products of
    those vectors, so the (3 V, 72) Jacobian of the rotations is never built.
    """
    n, joints, count, _ = rotation_jacobian.shape
    flat = rotation_jacobian.permute(0, 1, 3, 2).reshape(n, joints * 3, count)
    gram = (flat @ flat.transpose(1, 2)).view(n, joints, 3, joints, 3).permute(0, 1, 3, 2, 4)  # sum of a b^T
    eye = torch.eye(3, dtype=residual.dtype, device=residual.device)
    rotation_block = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * eye - gram.transpose(-1, -2)
    rotation_block = rotation_block.permute(0, 1, 3, 2, 4).reshape(n, joints * 3, joints * 3)
    # cross products summed over vertices, with the columns of betas, of the translation and of the residual
    extra = torch.cat([shape_jacobian, eye.expand(n, count, 3, 3), residual[..., None]], -1)
    outer = (flat @ extra.reshape(n, count, -1)).view(n, joints, 3, 3, -1)  # axis of the vector, axis of the column
    crossed = torch.stack([outer[:, :, i, j] - outer[:, :, j, i] for i, j in ((1, 2), (2, 0), (0, 1))], 2)
    crossed = crossed.reshape(n, joints * 3, -1)
    rest = extra[..., :-1].reshape(n, count * 3, -1)
    size = rest.shape[-1]
    normal = residual.new_zeros(n, joints * 3 + size, joints * 3 + size)
    normal[:, : joints * 3, : joints * 3] = rotation_block
    normal[:, : joints * 3, joints * 3 :] = crossed[..., :-1]
    normal[:, joints * 3 :, : joints * 3] = crossed[..., :-1].transpose(1, 2)
    normal[:, joints * 3 :, joints * 3 :] = rest.transpose(1, 2) @ rest
    right = torch.cat([crossed[..., -1], (rest.transpose(1, 2) @ residual.reshape(n, -1, 1))[..., 0]], 1)
    right[:, joints * 3 : -3] -= shape_weight * betas
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += damping
    diagonal[:, joints * 3 : -3] += shape_weight
    step = torch.linalg.solve(normal.double(), right.double()).to(residual.dtype)
    return step[:, : joints * 3].view(n, joints, 3), step[:, joints * 3 : -3], step[:, -3:]


class _Model:
    """Linear blend skinning of the vertices `indices` in global rotations (n, 24, 3, 3), and its derivatives."""

    def __init__(self, body: Body, indices: Tensor) -> None:
        self.body, self.parents, self.indices = body, body.parents, indices
        self.weights, self.shapedirs = body.weights[indices], body.shapedirs[indices]
        joints = len(self.parents)
        subtree = torch.eye(joints, dtype=body.dtype, device=body.device)  # subtree[j, k]: k is j or a descendant
        for k in reversed(range(1, joints)):
            subtree[self.parents[k]] += subtree[k]
        self.subtree_weights = self.weights @ subtree.T  # V, 24: the weight of a joint and all its descendants

    def local(self, rotations: Tensor) -> Tensor:
        """Rotations relative to the parent."""
        parent = rotations[:, list(self.parents[1:])]
        return torch.cat([rotations[:, :1], parent.transpose(-1, -2) @ rotations[:, 1:]], 1)

    def rest(self, rotations: Tensor | None, betas: Tensor) -> Tensor:
        """Vertices before skinning (n, V, 3), with pose blend shapes once there is a pose (None: none yet)."""
        eye = torch.eye(3, dtype=betas.dtype, device=betas.device).expand(len(betas), 24, 3, 3)
        return self.body.blended_vertices(eye if rotations is None else self.local(rotations), betas, self.indices)

    def pose(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices (n, V, 3), rotation_jacobian (n, 24, V, 3) and shape_jacobian (n, V, 3, B) as in `_solve`."""
        body = self.body
        rest, joints = self.rest(rotations, betas), body.rest_joints(betas)
        positions, position_dirs = [joints[:, 0]], [body.joint_dirs[0].expand(len(betas), -1, -1)]
        for j in range(1, len(self.parents)):
            p = self.parents[j]
            parent = rotations[:, p]
            positions.append(positions[p] + (parent @ (joints[:, j] - joints[:, p])[..., None])[..., 0])
            position_dirs.append(position_dirs[p] + parent @ (body.joint_dirs[j] - body.joint_dirs[p]))
        posed_joints, posed_dirs = torch.stack(positions, 1), torch.stack(position_dirs, 1)
        shift = posed_joints - (rotations @ joints[..., None])[..., 0]
        shift_dirs = posed_dirs - rotations @ body.joint_dirs
        blend = (self.weights @ rotations.flatten(2)).unflatten(2, (3, 3))  # n, V, 3, 3
        vertices = (blend * rest[:, :, None]).sum(-1) + self.weights @ shift
        shape_jacobian = (self.weights @ shift_dirs.flatten(2)).unflatten(2, (3, -1))
        for b in range(3):  # 3 x 3 by 3 x 10 for every vertex: too small for a matrix product
            shape_jacobian = shape_jacobian + blend[..., b, None] * self.shapedirs[:, None, b]
        # Rotating a joint moves its own share of a vertex about the joint, and all of its descendants' shares.
        rotation_jacobian = rest[:, None] @ rotations.transpose(2, 3) - (rotations @ joints[..., None]).transpose(2, 3)
        rotation_jacobian = rotation_jacobian * self.weights.T[..., None]
        for j in range(1, len(self.parents)):
            p = self.parents[j]
            bone = (posed_joints[:, j] - posed_joints[:, p])[:, None]
            rotation_jacobian[:, p] += self.subtree_weights[:, j, None] * bone
        return vertices, rotation_jacobian, shape_jacobian

    def procrustes(self, vertices: Tensor, betas: Tensor, rotations: Tensor | None) -> Tensor:
        """Global rotations (n, 24, 3, 3): the best one of each joint for the vertices that it moves, weighted."""
        weights = self.weights.square()  # vertices that one joint moves alone are the most informative
        rest = self.rest(rotations, betas)
        total = weights.sum(0)[:, None]
        source = weights.T @ rest / total
        target = weights.T @ vertices / total
        products = (vertices[..., :, None] * rest[..., None, :]).flatten(2)
        covariance = (weights.T @ products).unflatten(2, (3, 3))
        covariance = covariance - total[..., None] * target[..., None] * source[..., None, :]
        u, _, vh = torch.linalg.svd(covariance)
        sign = torch.linalg.det(u @ vh)
        u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
        return u @ vh
