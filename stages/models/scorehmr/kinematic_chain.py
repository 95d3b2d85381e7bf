"""The few body points that a keypoint loss reads, and the gradient of that loss, without mesh and without autograd.

Forward: kinematic chain and linear blend skinning (Loper et al. 2015, eqs. 2 to 4) of the vertices that are read.
Backward: statics instead of the chain rule. A loss pulls every point with a force; the derivative with respect to a
joint's rotation is the torque about that joint of all forces further out, so one product with the table of descendants
replaces the backward pass through the tree. The gradient of the six numbers of a joint then follows from the torque
through the Gram-Schmidt step.

Arrays keep people in the LAST axis (bones first), so that every constant table acts by one matrix product and every
element-wise step runs along memory, for one person as for 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RestSkeleton:
    """The unposed body of n people: joints (24, 3, n), offsets to the parent (24, 3, n), read vertices (V, 3, n)."""

    joints: Tensor
    offsets: Tensor
    vertices: Tensor


@dataclass
class PosedChain:
    """The posed body, as `backward` needs it. points (K, 3, n), body frame (no translation), metres."""

    rest: RestSkeleton
    points: Tensor
    l1: Tensor
    l2: Tensor
    dot: Tensor
    local: Tensor  # (24, 3, 3, n)
    world: Tensor  # (24, 3, 4, n): rotation | position of the joint
    bones: Tensor  # (24, 3, 4, n): rotation | translation of a rest point
    blended: Tensor  # (V, 3, 4, n)
    vertices: Tensor  # (V, 3, n): read vertices before skinning, with pose blend shapes


def _matmul(table: Tensor, value: Tensor) -> Tensor:
    """table (A, B) times value (B, ..., n) -> (A, ..., n)."""
    return (table @ value.reshape(value.shape[0], -1)).view(table.shape[0], *value.shape[1:])


def _rotate(matrix: Tensor, vector: Tensor) -> Tensor:
    """(B, 3, 3+, n) times (B, 3, n) -> (B, 3, n)."""
    out = matrix[:, :, 0] * vector[:, None, 0]
    out.addcmul_(matrix[:, :, 1], vector[:, None, 1])
    return out.addcmul_(matrix[:, :, 2], vector[:, None, 2])


def _rotate_back(matrix: Tensor, vector: Tensor) -> Tensor:
    """The same with the transposed matrix."""
    out = matrix[:, 0, :3] * vector[:, 0, None]
    out.addcmul_(matrix[:, 1, :3], vector[:, 1, None])
    return out.addcmul_(matrix[:, 2, :3], vector[:, 2, None])


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """(B, 3, n) x (B, 3, n)."""
    out = a.roll(-1, 1) * b.roll(-2, 1)
    return out.addcmul_(a.roll(-2, 1), b.roll(-1, 1), value=-1)


def _axial(q: Tensor) -> Tensor:
    """sum of x cross f from q = sum of x outer f: (B, 3, 3, n) -> (B, 3, n)."""
    return torch.stack([q[:, 1, 2] - q[:, 2, 1], q[:, 2, 0] - q[:, 0, 2], q[:, 0, 1] - q[:, 1, 0]], 1)


class KinematicChain:
    """K points of a 24-joint body: each a fixed mixture of joints and of V vertices.

    joints (24, 3), joint_dirs (24, 3, B) · vertices (V, 3), vertex_dirs (V, 3, B), weights (V, 24) · pose_dirs
    (V, 3, 207) or None · points (K, 24 + V), each row a mixture of the joints and then of the vertices.
    """

    def __init__(
        self,
        parents: Tensor,
        joints: Tensor,
        joint_dirs: Tensor,
        vertices: Tensor,
        vertex_dirs: Tensor,
        weights: Tensor,
        points: Tensor,
        pose_dirs: Tensor | None = None,
    ) -> None:
        self.parents = parents.tolist()
        count = len(self.parents)
        self.joints, self.joint_dirs = joints, joint_dirs.reshape(count * 3, -1).contiguous()
        self.vertices, self.vertex_dirs = vertices, vertex_dirs.reshape(len(vertices) * 3, -1).contiguous()
        self.weights, self.weights_t = weights.contiguous(), weights.t().contiguous()
        self.from_joints, self.from_vertices = points[:, :count].contiguous(), points[:, count:].contiguous()
        self.to_joints, self.to_vertices = self.from_joints.t().contiguous(), self.from_vertices.t().contiguous()
        self.pose_dirs = None if pose_dirs is None else pose_dirs.reshape(len(vertices) * 3, -1).contiguous()
        self.pose_dirs_t = None if self.pose_dirs is None else self.pose_dirs.t().contiguous()
        device = joints.device
        self.parent_index = torch.tensor([max(p, 0) for p in self.parents], device=device)
        self.identity = torch.eye(3, device=device, dtype=joints.dtype)[None, :, :, None]
        self.levels = [(lo, hi, torch.tensor(self.parents[lo:hi], device=device)) for lo, hi in _levels(self.parents)]
        below = torch.eye(count, dtype=joints.dtype)
        for j in reversed(range(1, count)):
            below[self.parents[j]] += below[j]
        self.below = below.to(device)
        # Share of a point that moves with a joint (K, 24): 1 if every bone that it is skinned to is a descendant.
        self.carried = (self.from_joints + self.from_vertices @ self.weights) @ self.below.t()

    def rest(self, betas: Tensor) -> RestSkeleton:
        """betas (n, B) -> the unposed body."""
        count, n = len(self.joints), len(betas)
        joints = (self.joint_dirs @ betas.t()).view(count, 3, n) + self.joints[:, :, None]
        vertices = (self.vertex_dirs @ betas.t()).view(-1, 3, n) + self.vertices[:, :, None]
        offsets = joints - joints[self.parent_index]
        offsets[0] = joints[0]
        return RestSkeleton(joints, offsets, vertices)

    def forward(self, x: Tensor, rest: RestSkeleton) -> PosedChain:
        """x (n, 144), per joint the first and the second column of its rotation -> posed points."""
        count, n = len(self.parents), len(x)
        six = x.t().reshape(count, 2, 3, n)
        first, second = six[:, 0], six[:, 1]
        l1 = torch.linalg.vector_norm(first, dim=1, keepdim=True).clamp_min_(1e-8)
        b1 = first / l1
        dot = (b1 * second).sum(1, keepdim=True)
        rest2 = torch.addcmul(second, b1, dot, value=-1)
        l2 = torch.linalg.vector_norm(rest2, dim=1, keepdim=True).clamp_min_(1e-8)
        b2 = rest2 / l2
        local = torch.stack([b1, b2, _cross(b1, b2)], 2)

        world = x.new_empty(count, 3, 4, n)
        world[:1, :, :3], world[:1, :, 3] = local[:1], rest.offsets[:1]
        step = torch.cat([local, rest.offsets[:, :, None]], 2)
        for lo, hi, parents in self.levels:
            above = world.index_select(0, parents)
            out = world[lo:hi]
            torch.mul(above[:, :, 0:1], step[lo:hi, None, 0], out=out)
            out.addcmul_(above[:, :, 1:2], step[lo:hi, None, 1])
            out.addcmul_(above[:, :, 2:3], step[lo:hi, None, 2])
            out[:, :, 3] += above[:, :, 3]

        vertices = rest.vertices
        if self.pose_dirs is not None:
            feature = (local[1:] - self.identity).reshape(-1, n)
            vertices = vertices + (self.pose_dirs @ feature).view(-1, 3, n)
        bones = world.clone()
        bones[:, :, 3] -= _rotate(world, rest.joints)
        blended = _matmul(self.weights, bones)
        positions = _rotate(blended, vertices).add_(blended[:, :, 3])
        points = _matmul(self.from_joints, world[:, :, 3]) + _matmul(self.from_vertices, positions)
        return PosedChain(rest, points, l1, l2, dot, local, world, bones, blended, vertices)

    def backward(self, posed: PosedChain, force: Tensor, with_betas: bool = False) -> tuple[Tensor, Tensor | None]:
        """force (K, 3, n) = dL/dpoints -> dL/dx (n, 144) and, if asked for, dL/dbetas (n, B)."""
        world, local, bones = posed.world, posed.local, posed.bones
        count, n = len(self.parents), force.shape[-1]
        on_joints, on_vertices = _matmul(self.to_joints, force), _matmul(self.to_vertices, force)
        on_bones = _matmul(self.weights_t, on_vertices)
        # The moment of the skinned vertices: axial vector of bone rotation times sum of (rest position outer force).
        outer = _matmul(self.weights_t, posed.vertices[:, :, None] * on_vertices[:, None])
        carried = bones[:, :, 0:1] * outer[:, None, 0]
        carried.addcmul_(bones[:, :, 1:2], outer[:, None, 1]).addcmul_(bones[:, :, 2:3], outer[:, None, 2])
        position = world[:, :, 3]
        moment = _axial(carried) + _cross(bones[:, :, 3], on_bones) + _cross(position, on_joints)
        both = _matmul(self.below, torch.cat([on_joints + on_bones, moment], 1))
        total, moment = both[:, :3], both[:, 3:]
        torque = _rotate_back(world, moment - _cross(position, total))  # in the joint's own frame

        on_rest = None
        if self.pose_dirs_t is not None or with_betas:
            on_rest = _rotate_back(posed.blended, on_vertices)
        if self.pose_dirs_t is not None and on_rest is not None:
            pull = (self.pose_dirs_t @ on_rest.view(-1, n)).view(count - 1, 3, 3, n)
            rotated = local[1:, 0, :, None] * pull[:, 0, None]
            rotated.addcmul_(local[1:, 1, :, None], pull[:, 1, None])
            rotated.addcmul_(local[1:, 2, :, None], pull[:, 2, None])
            torque[1:] -= _axial(rotated)

        b2, b3 = local[:, :, 1], local[:, :, 2]
        tilt = torque[:, 0:1] / posed.l2
        out = x_like(force, count, n)
        torch.mul(b3, torch.addcmul(torque[:, 1:2], tilt, posed.dot), out=out[:, 0])
        torch.addcmul(out[:, 0].neg(), b2, torque[:, 2:3], out=out[:, 0])
        out[:, 0] /= posed.l1
        torch.mul(b3, tilt, out=out[:, 1])
        gradient = out.view(count * 6, n).t()
        if not with_betas or on_rest is None:
            return gradient, None

        above = world.index_select(0, self.parent_index)
        on_offsets = _rotate_back(above, total)
        on_offsets[0] = total[0]
        pulled = on_offsets - _rotate_back(world, on_bones)
        pulled.index_add_(0, self.parent_index[1:], on_offsets[1:], alpha=-1)
        return gradient, (pulled.reshape(-1, n).t() @ self.joint_dirs + on_rest.reshape(-1, n).t() @ self.vertex_dirs)


def x_like(force: Tensor, count: int, n: int) -> Tensor:
    return force.new_empty(count, 2, 3, n)


def _levels(parents: list[int]) -> list[tuple[int, int]]:
    """Runs [lo, hi) of joints whose parents all come before lo."""
    runs, lo = [], 1
    while lo < len(parents):
        hi = lo
        while hi < len(parents) and parents[hi] < lo:
            hi += 1
        runs.append((lo, hi))
        lo = hi
    return runs
