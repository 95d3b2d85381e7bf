"""Lines of sight of calibrated cameras, and how near two of them come. numpy; x_camera = R x_world + t, metres."""

from __future__ import annotations

import numpy as np

NEAREST = 0.3  # m before a camera


def rays(xy: np.ndarray, K: np.ndarray, R: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 3) of the cameras and unit directions (n, J, 3) of pixels xy (n, J, 2), both in the world."""
    tangent = (xy - K[:, None, :2, 2]) / K[:, None, [0, 1], [0, 1]]
    direction = np.concatenate([tangent, np.ones_like(tangent[..., :1])], -1) @ R
    return -(t[:, None] @ R)[:, 0], direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def nearest_points(
    center_a: np.ndarray, along_a: np.ndarray, center_b: np.ndarray, along_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays of two cameras come nearest: distances (n, J) m along each, at least NEAREST.

    Centres (n, 3), unit directions (n, J, 3). Parallel rays meet far away."""
    way = (center_a - center_b)[:, None]
    b = (along_a * along_b).sum(-1)
    d, e = (along_a * way).sum(-1), (along_b * way).sum(-1)
    squeeze = np.maximum(1 - b * b, 1e-6)
    far_a = np.maximum((b * e - d) / squeeze, NEAREST)
    far_b = np.maximum(e + b * far_a, NEAREST)
    return np.maximum(b * far_b - d, NEAREST), far_b
