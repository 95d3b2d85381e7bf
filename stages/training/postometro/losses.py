"""The losses of FastMETRO and PostoMETRO: every term, and its weights in paper and code.

All are mean absolute differences. Means run over all entries of the rows that have the truth, so that joints without
confidence dilute them, as in the released code. Points are in metres; edges and normals are the intermediate mesh's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

LEFT_HIP, RIGHT_HIP = 3, 2  # among the 14 joints


@dataclasses.dataclass(frozen=True)
class Weights:
    """Factors of the terms. vertices: of the fine, intermediate and coarse mesh."""

    token_joints: float
    mesh_joints: float
    vertices: tuple[float, float, float]
    keypoints: float
    edges: float = 0.0
    edge_lengths: float = 0.0
    normals: float = 0.0


RECIPES = {
    # PostoMETRO's equations: joints of tokens and mesh, the full mesh, projections.
    "paper": Weights(1000, 1000, (1000, 0, 0), 100),
    # FastMETRO's released program, which PostoMETRO's (unreleased) follows as far as is known.
    "code": Weights(1000, 1000, (25, 50, 25), 100, 500, 1e-2, 10),
}


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Points (n, J, 3) to the crop's [-1, 1] (n, J, 2): s (X + t), camera (n, 3) s, tx, ty."""
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def hips(joints: Tensor) -> Tensor:
    """The middle of the hips (n, 1, 3) of 14 joints."""
    return (joints[:, LEFT_HIP] + joints[:, RIGHT_HIP])[:, None] / 2


def joints_3d(pred: Tensor, truth: Tensor, confidence: Tensor) -> Tensor:
    """14 joints (n, 14, 3), each relative to its own hips; confidence (n, 14)."""
    difference = (pred - hips(pred)) - (truth - hips(truth))
    return mean(confidence[..., None] * difference.abs())


def keypoints_2d(pred: Tensor, truth: Tensor, confidence: Tensor) -> Tensor:
    """Projections (n, 14, 2) in the crop's [-1, 1]; confidence (n, 14)."""
    return mean(confidence[..., None] * (pred - truth).abs())


def points(pred: Tensor, truth: Tensor) -> Tensor:
    """Vertices or joints (n, V, 3), in the same frame."""
    return mean((pred - truth).abs())


def edge_lengths(vertices: Tensor, edges: Tensor) -> Tensor:
    """Lengths (n, E) of edges (E, 2)."""
    return (vertices[:, edges[:, 0]] - vertices[:, edges[:, 1]]).norm(dim=-1)


def edges(pred: Tensor, truth: Tensor, pairs: Tensor) -> Tensor:
    """Difference of edge lengths."""
    return mean((edge_lengths(pred, pairs) - edge_lengths(truth, pairs)).abs())


def normals(pred: Tensor, truth: Tensor, faces: Tensor) -> Tensor:
    """Deviation of the predicted edges of each face (F, 3) from the true face's plane: mean |cosine to its normal|."""
    a, b, c = (pred[:, faces[:, k]] for k in range(3))
    sides = torch.stack([b - a, c - a, c - b], 1)
    x, y, z = (truth[:, faces[:, k]] for k in range(3))
    normal = unit(torch.cross(unit(y - x), unit(z - x), dim=-1))
    return mean((unit(sides) * normal[:, None]).sum(-1).abs())


def smpl(rotations: Tensor, betas: Tensor, true_rotations: Tensor, true_betas: Tensor) -> Tensor:
    """Mean squared error of rotations (n, 24, 3, 3) and, at a tenth, of betas (n, 10)."""
    return mean((rotations - true_rotations).square()) + 0.1 * mean((betas - true_betas).square())


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def mean(x: Tensor) -> Tensor:
    """The mean; 0 for a batch in which no row has the truth."""
    return x.mean() if x.numel() else x.sum()
