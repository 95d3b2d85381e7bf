"""Occluders of synthetic scenes: boxes, panels and balls as meshes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Occluder = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""kind, half sizes (3,), centre (3,), rotation (3, 3); metres, camera frame."""


def occluder_mesh(kind: str, size: np.ndarray, centre: np.ndarray, rotation: np.ndarray) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) and outward faces of a box, panel or ball: a grid on a cube, bent to a sphere for the ball."""
    steps = np.linspace(-1, 1, 9)
    u, v = (g.ravel() for g in np.meshgrid(steps, steps, indexing="ij"))
    quad = np.array([[i * 9 + j, i * 9 + j + 9, i * 9 + j + 10, i * 9 + j + 1] for i in range(8) for j in range(8)])
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    for axis in range(3):
        for side in (-1.0, 1.0):
            points = np.empty((len(u), 3))
            points[:, axis], points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = side, u, v
            order = quad if side > 0 else quad[:, ::-1]
            faces.append(np.concatenate([order[:, [0, 1, 2]], order[:, [0, 2, 3]]]) + 81 * len(vertices))
            vertices.append(points)
    points = np.concatenate(vertices)
    if kind == "ball":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = (points * size) @ rotation.T + centre
    return torch.tensor(points.astype(np.float32)), torch.from_numpy(np.concatenate(faces))
