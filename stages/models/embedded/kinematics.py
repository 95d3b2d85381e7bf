"""Forward kinematics of a whole batch with the batch as the last axis: joints and keypoints without a mesh.

Layout: rotations (3, 3, 24, n), points (3, J, n), betas (10, n). Every step is then a handful of long vector
operations instead of thousands of 3 x 3 products, which makes a posed person cost about 4 microseconds on one core.

A keypoint that is a weighted mean of vertices commutes with linear blend skinning when the body has no pose blend
shapes: k = sum_v R_kv sum_j W_vj G_j v(beta) = sum_j G_j a_kj(beta), with a_kj linear in beta. Only the pairs (k, j)
with weight are kept (about fifty for the 17 COCO keypoints). Exact for the embedded body.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from stages.smpl.body import Body

POINTS = 17  # the COCO keypoints that the network reads


class _Mul3(torch.autograd.Function):
    """C = A B for (3, 3, m, n) tensors; the products of 3 x 3 matrices written as sums over whole arrays."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _product(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _product(grad, b.transpose(0, 1)), _product(a.transpose(0, 1), grad)


def _product(a: Tensor, b: Tensor) -> Tensor:
    out = a[:, 0, None] * b[None, 0]
    for k in (1, 2):
        out = torch.addcmul(out, a[:, k, None], b[None, k])
    return out


def matmul3(a: Tensor, b: Tensor) -> Tensor:
    """Products of 3 x 3 matrices, batch last: (3, 3, ...) x (3, 3, ...) of equal shape -> (3, 3, ...)."""
    return _Mul3.apply(a, b)


def rotate(r: Tensor, x: Tensor) -> Tensor:
    """Rotated vectors, batch last: (3, 3, ...) x (3, ...) -> (3, ...)."""
    return r[:, 0] * x[0] + r[:, 1] * x[1] + r[:, 2] * x[2]


def rot6d_to_matrix(x: Tensor) -> Tensor:
    """(6, ...) -> (3, 3, ...): the first two columns, orthonormalised (Zhou et al. 2019, section B)."""
    a, b = x[:3], x[3:]
    a = a * torch.rsqrt((a * a).sum(0) + 1e-8)
    b = b - (a * b).sum(0) * a
    b = b * torch.rsqrt((b * b).sum(0) + 1e-8)
    return torch.stack([a, b, torch.linalg.cross(a, b, dim=0)], 1)


def axis_angle_to_matrix(v: Tensor) -> Tensor:
    """(3, ...) -> (3, 3, ...), Rodrigues' formula."""
    angle = (v * v).sum(0).add(1e-12).sqrt()
    x, y, z = v / angle
    s, c = angle.sin(), angle.cos()
    d = 1 - c
    xy, xz, yz, xs, ys, zs = x * y * d, x * z * d, y * z * d, x * s, y * s, z * s
    rows = [c + x * x * d, xy - zs, xz + ys, xy + zs, c + y * y * d, yz - xs, xz - ys, yz + xs, c + z * z * d]
    return torch.stack(rows).unflatten(0, (3, 3))


class Skeleton(torch.nn.Module):
    """Joints (24) and COCO keypoints (17) of a body as linear functions of betas, and their pose by kinematics.

    Buffers: rest (3, 24), rest_shape (3, 24, 10) · point_joint (P,), point_index (P,), point_weight (P,),
    point (3, P), point_shape (3, P, 10): the folded table of pairs (keypoint, joint).
    """

    rest: Tensor
    rest_shape: Tensor
    point_index: Tensor
    point_joint: Tensor
    point_weight: Tensor
    point: Tensor
    point_shape: Tensor
    parent: Tensor
    unsort: Tensor

    def __init__(
        self, parents: list[int], rest: Tensor, rest_shape: Tensor, table: Tensor, table_shape: Tensor, weight: Tensor
    ) -> None:
        """rest (24, 3), rest_shape (24, 3, 10), table (17, 24, 3), table_shape (17, 24, 3, 10), weight (17, 24)."""
        super().__init__()
        self.parents = list(parents)
        k, j = (weight.abs() > 1e-7).nonzero(as_tuple=True)
        for name, value in {
            "rest": rest.T,
            "rest_shape": rest_shape.permute(1, 0, 2),
            "point_index": k,
            "point_joint": j,
            "point_weight": weight[k, j],
            "point": table[k, j].T,
            "point_shape": table_shape[k, j].permute(1, 0, 2),
        }.items():
            value = value.contiguous()
            self.register_buffer(name, value.float() if value.is_floating_point() else value, persistent=False)
        self._sort_tree()

    def _sort_tree(self) -> None:
        """The joints of each depth (`level`) and the indices of their parents among those one depth above (`slot`)."""
        depth = [0] * len(self.parents)
        for child, parent in enumerate(self.parents[1:], 1):
            depth[child] = depth[parent] + 1
        levels = [[i for i, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]
        order = [i for level in levels for i in level]
        buffers = {
            "parent": [max(p, 0) for p in self.parents],
            "unsort": [order.index(i) for i in range(len(order))],
        }
        for k, (above, level) in enumerate(itertools.pairwise(levels)):
            buffers |= {f"level{k}": level, f"slot{k}": [above.index(self.parents[i]) for i in level]}
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)
        self.levels = [name for name in buffers if name.startswith("level")]
        self.slots = [name for name in buffers if name.startswith("slot")]

    @classmethod
    def from_body(cls, body: Body) -> Skeleton:
        """Fold a body. Its pose blend shapes, if any, do not affect the keypoints here (the joints do not depend on
        them)."""
        shapedirs = body.shapedirs[..., :10].double()
        parts = torch.einsum("kv,vj->kjv", body.regressor("coco17").double(), body.weights.double())
        return cls(
            list(body.parents),
            body.joint_template,
            body.joint_dirs[..., :10],
            torch.einsum("kjv,vc->kjc", parts, body.v_template.double()),
            torch.einsum("kjv,vcs->kjcs", parts, shapedirs),
            parts.sum(-1),
        )

    def rest_joints(self, betas: Tensor) -> Tensor:
        """betas (10, n) -> joints of the rest pose (3, 24, n), metres."""
        return self.rest.unsqueeze(-1) + self.rest_shape @ betas

    def forward(self, rotation: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """rotation (3, 3, 24, n), betas (10, n) -> joints (3, 24, n), keypoints (3, 17, n), from the pelvis joint."""
        rest = self.rest_joints(betas)
        bone = rest - rest.index_select(1, self.parent)
        rotations, positions = [rotation[:, :, :1]], [torch.zeros_like(rest[:, :1])]  # global, one entry per depth
        for level_name, slot_name in zip(self.levels, self.slots, strict=True):
            level, slot = self.get_buffer(level_name), self.get_buffer(slot_name)
            above, start = rotations[-1].index_select(2, slot), positions[-1].index_select(1, slot)
            rotations.append(matmul3(above, rotation.index_select(2, level)))
            positions.append(start + rotate(above, bone.index_select(1, level)))
        global_rotation = torch.cat(rotations, 2).index_select(2, self.unsort)
        joints = torch.cat(positions, 1).index_select(1, self.unsort)

        weight = self.point_weight.unsqueeze(-1)
        local = self.point.unsqueeze(-1) + self.point_shape @ betas - weight * rest.index_select(1, self.point_joint)
        parts = rotate(global_rotation.index_select(2, self.point_joint), local)
        parts = parts + weight * joints.index_select(1, self.point_joint)
        points = parts.new_zeros((3, POINTS, parts.shape[-1])).index_add(1, self.point_index, parts)
        return joints, points
