"""SMPL parameters of a given mesh: what a network that predicts vertices lacks, so that every consumer of /smpl works.

First every joint's rotation by weighted Procrustes (Kabsch) of the vertices that it moves, then Gauss-Newton on all
rotations, betas and the translation together, with the exact Jacobian of linear blend skinning (pose blend shapes are
followed from step to step, not differentiated). Batched; no loop over people.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.smpl.body import Body

EVERY = 4  # a quarter of the vertices tells the same: neighbours move alike


@dataclasses.dataclass
class Fit:
    """global_orient (n, 3), body_pose (n, 23, 3) axis-angle · betas (n, 10) · transl (n, 3) m
    · residual (n,): mean distance in metres between the fitted and the given vertices."""

    global_orient: Tensor
    body_pose: Tensor
    betas: Tensor
    transl: Tensor
    residual: Tensor


@torch.no_grad()
def fit_smpl(body: Body, vertices: Tensor, steps: int = 6, shape_weight: float = 1e-8, damping: float = 1e-7) -> Fit:
    """Fit the body to vertices (n, V, 3) of its own topology, in metres.

    `shape_weight` (m^2 per vertex and unit of beta squared) keeps betas small where the mesh does not tell; `damping`
    (m^2 a vertex) steadies parts that few vertices see.
    """
    vertices = vertices.to(body.dtype)
    model = _Model(body, torch.arange(0, vertices.shape[1], EVERY, device=body.device))
    every, vertices = vertices, vertices[:, model.which]
    n, count = len(vertices), vertices.shape[1]
    betas = vertices.new_zeros(n, body.num_betas)
    turns = model.procrustes(vertices, betas, None)
    turns = model.procrustes(vertices, betas, turns)
    transl = (vertices - model.pose(turns, betas)[0]).mean(1)
    best, best_error = [turns, betas, transl], vertices.new_full((n,), float("inf"))
    for step in range(steps + 1):
        posed, arms, shapes = model.pose(turns, betas)
        gap = vertices - posed - transl[:, None]
        error = gap.square().sum((1, 2)) + count * shape_weight * betas.square().sum(1)
        better = error < best_error
        now = (turns, betas, transl)
        best = [torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(now, best, strict=True)]
        best_error = torch.minimum(error, best_error)
        if step == steps:
            break
        turn, shape, move = _solve(gap, arms, shapes, betas, count * shape_weight, count * damping)
        turns = axis_angle_to_matrix(turn) @ turns
        betas, transl = betas + shape, transl + move
    turns, betas, transl = best
    local = model.local(turns)
    axis_angle = matrix_to_axis_angle(local)
    fitted = body.forward_rotmat(axis_angle_to_matrix(axis_angle), betas, transl).vertices
    return Fit(axis_angle[:, 0], axis_angle[:, 1:], betas, transl, (fitted - every).norm(dim=-1).mean(1))


def _solve(
    gap: Tensor, arms: Tensor, shapes: Tensor, betas: Tensor, shape_weight: float, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One damped Gauss-Newton step: rotations (n, 24, 3), betas (n, B), translation (n, 3).

    gap (n, V, 3) · arms (n, 24, V, 3): a small turn w of a joint moves a vertex by w x arm · shapes (n, V, 3, B).
    The normal matrix needs only inner products of arms, never the Jacobian of the rotations itself.
    """
    n, joints, count, _ = arms.shape
    flat = arms.permute(0, 1, 3, 2).reshape(n, joints * 3, count)
    gram = (flat @ flat.transpose(1, 2)).view(n, joints, 3, joints, 3).permute(0, 1, 3, 2, 4)  # sum of a b^T
    eye = torch.eye(3, dtype=gap.dtype, device=gap.device)
    turns = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * eye - gram.transpose(-1, -2)
    turns = turns.permute(0, 1, 3, 2, 4).reshape(n, joints * 3, joints * 3)
    # sum over vertices of arm x column, for the columns of shapes, of the translation and of the gap
    extra = torch.cat([shapes, eye.expand(n, count, 3, 3), gap[..., None]], -1)
    outer = (flat @ extra.reshape(n, count, -1)).view(n, joints, 3, 3, -1)  # arm axis, column axis
    crossed = torch.stack([outer[:, :, i, j] - outer[:, :, j, i] for i, j in ((1, 2), (2, 0), (0, 1))], 2)
    crossed = crossed.reshape(n, joints * 3, -1)
    rest = extra[..., :-1].reshape(n, count * 3, -1)
    size = rest.shape[-1]
    normal = gap.new_zeros(n, joints * 3 + size, joints * 3 + size)
    normal[:, : joints * 3, : joints * 3] = turns
    normal[:, : joints * 3, joints * 3 :] = crossed[..., :-1]
    normal[:, joints * 3 :, : joints * 3] = crossed[..., :-1].transpose(1, 2)
    normal[:, joints * 3 :, joints * 3 :] = rest.transpose(1, 2) @ rest
    right = torch.cat([crossed[..., -1], (rest.transpose(1, 2) @ gap.reshape(n, -1, 1))[..., 0]], 1)
    right[:, joints * 3 : -3] -= shape_weight * betas
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += damping
    diagonal[:, joints * 3 : -3] += shape_weight
    step = torch.linalg.solve(normal.double(), right.double()).to(gap.dtype)
    return step[:, : joints * 3].view(n, joints, 3), step[:, joints * 3 : -3], step[:, -3:]


class _Model:
    """Linear blend skinning of the vertices `which` in global rotations (n, 24, 3, 3), and its derivatives."""

    def __init__(self, body: Body, which: Tensor) -> None:
        self.body, self.parents, self.which = body, body.parents, which
        self.weights, self.shapedirs = body.weights[which], body.shapedirs[which]
        joints = len(self.parents)
        below = torch.eye(joints, dtype=body.dtype, device=body.device)  # below[j, k]: k is j or hangs on it
        for k in reversed(range(1, joints)):
            below[self.parents[k]] += below[k]
        self.carried = self.weights @ below.T  # V, 24: the weight of a joint with all that hangs on it

    def local(self, turns: Tensor) -> Tensor:
        """Rotations relative to the parent."""
        up = turns[:, list(self.parents[1:])]
        return torch.cat([turns[:, :1], up.transpose(-1, -2) @ turns[:, 1:]], 1)

    def rest(self, turns: Tensor | None, betas: Tensor) -> Tensor:
        """Vertices before skinning (n, V, 3), pose blend shapes included once there is a pose."""
        eye = torch.eye(3, dtype=betas.dtype, device=betas.device).expand(len(betas), 24, 3, 3)
        return self.body._posed_rest(eye if turns is None else self.local(turns), betas, self.which)

    def pose(self, turns: Tensor, betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices (n, V, 3), arms (n, 24, V, 3) and derivatives by the betas (n, V, 3, B)."""
        body = self.body
        rest, joints = self.rest(turns, betas), body.rest_joints(betas)
        placed, placed_dirs = [joints[:, 0]], [body.joint_dirs[0].expand(len(betas), -1, -1)]
        for j in range(1, len(self.parents)):
            p = self.parents[j]
            up = turns[:, p]
            placed.append(placed[p] + (up @ (joints[:, j] - joints[:, p])[..., None])[..., 0])
            placed_dirs.append(placed_dirs[p] + up @ (body.joint_dirs[j] - body.joint_dirs[p]))
        at, at_dirs = torch.stack(placed, 1), torch.stack(placed_dirs, 1)
        shift = at - (turns @ joints[..., None])[..., 0]
        shift_dirs = at_dirs - turns @ body.joint_dirs
        blend = (self.weights @ turns.flatten(2)).unflatten(2, (3, 3))  # n, V, 3, 3
        vertices = (blend * rest[:, :, None]).sum(-1) + self.weights @ shift
        shapes = (self.weights @ shift_dirs.flatten(2)).unflatten(2, (3, -1))
        for b in range(3):  # 3 x 3 by 3 x 10 for every vertex: too small for a matrix product
            shapes = shapes + blend[..., b, None] * self.shapedirs[:, None, b]
        # A joint's turn carries its own share of a vertex about the joint, and whole limbs below it.
        arms = rest[:, None] @ turns.transpose(2, 3)
        arms = (arms - (turns @ joints[..., None]).transpose(2, 3)) * self.weights.T[..., None]
        for j in range(1, len(self.parents)):
            p = self.parents[j]
            arms[:, p] += self.carried[:, j, None] * (at[:, j] - at[:, p])[:, None]
        return vertices, arms, shapes

    def procrustes(self, vertices: Tensor, betas: Tensor, turns: Tensor | None) -> Tensor:
        """Global rotations (n, 24, 3, 3): each joint's best turn of the vertices that it moves, by their weights."""
        weights = self.weights.square()  # what a joint moves alone says most
        rest = self.rest(turns, betas)
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
