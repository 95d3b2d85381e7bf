"""Renders a scene: clothed bodies, occluders, background, light; and which joints are visible.

Clothes are painted, not modelled: garment borders, stripes and blotches are functions of the rest-pose position, found
per pixel from barycentric coordinates, so they need no texture map and stick to the body. Cartoon-like on purpose.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from stages.geometry.cameras import project
from stages.geometry.rasterizer import Hits, rasterize, vertex_normals
from stages.smpl.body import Body
from stages.synthetic.occluders import occluder_mesh
from stages.synthetic.scenes import SyntheticScene
from stages.synthetic.sets import SIZE

BEHIND = 0.14  # metres a joint's centre may lie behind the visible surface at its pixel and still count as visible


@dataclasses.dataclass
class RenderedImage:
    """image (H, W, 3) uint8 RGB · visible (n, J) bool of the points · owner (H, W) person, n = occluder, -1 none."""

    image: np.ndarray
    visible: np.ndarray
    owner: np.ndarray


def render(scene: SyntheticScene, body: Body, vertices: Tensor, points: Tensor) -> RenderedImage:
    """Draw the scene; vertices (n, V, 3) and the points (n, J, 3) to test for visibility, camera frame, metres."""
    meshes = [(vertices[i], body.faces) for i in range(len(vertices))] + [
        occluder_mesh(*occluder) for occluder in scene.occluders
    ]
    xyz = torch.cat([m[0] for m in meshes])
    offsets = np.cumsum([0] + [len(m[0]) for m in meshes])
    faces = torch.cat([m[1] + int(o) for m, o in zip(meshes, offsets, strict=False)])
    of_face = np.repeat(np.arange(len(meshes)), [len(m[1]) for m in meshes])
    K = torch.tensor(scene.K)
    hits = rasterize(project(xyz, K), xyz[:, 2], faces, SIZE, cull=True)
    mesh = of_face[hits.face.numpy()]

    normals = torch.cat([vertex_normals(m[0][None], m[1])[0] for m in meshes])
    corner = faces[hits.face]
    normal = torch.nn.functional.normalize((normals[corner] * hits.bary[..., None]).sum(1), dim=-1).numpy()
    rng = np.random.Generator(np.random.Philox(scene.background))
    image = _background(rng)
    paint = np.empty((len(mesh), 3))
    rest = body.v_template
    for k in range(len(meshes)):
        indices = np.flatnonzero(mesh == k)
        if not len(indices):
            continue
        if k < len(vertices):
            at = (rest[corner[indices] - int(offsets[k])] * hits.bary[indices][..., None]).sum(1).numpy()
            paint[indices] = _clothes(at, float(rest[:, 1].max()), int(scene.look[k]))
        else:
            paint[indices] = rng.uniform(0.1, 0.9, 3)
    image.reshape(-1, 3)[hits.pixel.numpy()] = paint * _light(normal, rng)[:, None]
    owner = np.full(SIZE[0] * SIZE[1], -1)
    owner[hits.pixel.numpy()] = np.minimum(mesh, len(vertices))
    return RenderedImage(_film(image, rng), _visible(points, K, hits), owner.reshape(SIZE[1], SIZE[0]))


def _visible(points: Tensor, K: Tensor, hits: Hits) -> np.ndarray:
    """Visibility (n, J): inside the image and at most BEHIND metres behind the surface drawn at its pixel."""
    width, height = SIZE
    depth = torch.full((width * height,), torch.inf)
    depth[hits.pixel] = hits.depth
    pixel = project(points, K).round().long()
    inside = (pixel >= 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height) & (points[..., 2] > 0)
    pixel_index = (pixel[..., 1] * width + pixel[..., 0]).clamp(0, width * height - 1)
    return (inside & (points[..., 2] <= depth[pixel_index] + BEHIND)).numpy()


def _clothes(at: np.ndarray, top: float, look: int) -> np.ndarray:
    """Colour (m, 3) at rest-pose positions (m, 3), y up, `top` = height of the head."""
    rng = np.random.Generator(np.random.Philox(look))
    out, low = np.abs(at[:, 0]), at[:, 1] - (top - 1.7)  # metres sideways, metres over the sole of a 1.7 m person
    tone = np.array([0.92, 0.75, 0.62]) * rng.uniform(0.35, 1.05)
    shirt, trousers, shoes, hair = (rng.uniform(0.05, 0.95, 3) for _ in range(4))
    hair *= 0.4
    sleeve, hem, leg, neck = (
        rng.uniform(0.22, 0.62),
        rng.uniform(0.85, 0.98),
        rng.uniform(0.05, 0.6),
        rng.uniform(1.38, 1.46),
    )
    colour = np.tile(tone, (len(at), 1))
    torso = (low > hem) & (low < neck) & (out < sleeve)
    legs = (low <= hem) & (low > leg) & (out < 0.35)
    pattern = _pattern(at, rng)
    colour[torso] = shirt * pattern[torso, None]
    colour[legs] = trousers * (0.9 + 0.1 * pattern[legs, None])
    colour[low < 0.08] = shoes
    colour[(low > 1.62) | ((low > 1.5) & (at[:, 2] < np.median(at[:, 2]) - 0.03) & (out < 0.12))] = hair
    return colour


def _pattern(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plain, stripes, checks or blotches (m,), between 0.5 and 1."""
    kind, width = rng.integers(4), rng.uniform(0.02, 0.08)
    axis = rng.integers(2)
    if kind == 0:
        return np.ones(len(at))
    if kind == 1:
        return np.where(np.floor(at[:, axis] / width) % 2, 1.0, 0.55)
    if kind == 2:
        return np.where(np.floor(at[:, :2] / width).sum(1) % 2, 1.0, 0.55)
    waves = at @ rng.normal(size=(3, 4)) * 12 + rng.uniform(0, 6, 4)
    return 0.78 + 0.22 * np.tanh(2 * np.sin(waves).sum(1))


def _light(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness (m,) of surfaces with normals (m, 3) under a sky and two lamps."""
    lamps = rng.normal(size=(2, 3)) + np.array([0.0, -0.8, -0.8])
    lamps /= np.linalg.norm(lamps, axis=1, keepdims=True)
    power = rng.uniform([0.35, 0.1], [0.7, 0.35])
    sky = 0.5 - 0.12 * normal[:, 1]
    return sky + (np.clip(normal @ lamps.T, 0, None) * power).sum(1)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A wall and a floor of coloured 1/f noise, (H, W, 3) in 0..1."""
    width, height = SIZE
    image = np.empty((height, width, 3))
    horizon = int(height * rng.uniform(0.25, 0.7))
    base = rng.uniform(0.25, 0.8, (2, 1)) + rng.normal(0, 0.07, (2, 3))
    image[:horizon], image[horizon:] = base
    for octave in (4, 8, 16, 48):
        coarse = rng.normal(size=(height // octave + 2, width // octave + 2, 1)) * 0.012 * octave**0.5
        coarse = coarse * rng.uniform(0.7, 1.3, 3)
        rows, columns = np.linspace(0, len(coarse) - 2, height), np.linspace(0, coarse.shape[1] - 2, width)
        y, x = rows.astype(int), columns.astype(int)
        fy, fx = (rows - y)[:, None, None], (columns - x)[None, :, None]
        wide = coarse[:, x] * (1 - fx) + coarse[:, x + 1] * fx
        image += wide[y] * (1 - fy) + wide[y + 1] * fy
    for _ in range(rng.integers(0, 8)):  # furniture, windows
        x0, y0 = rng.integers(0, width - 40), rng.integers(0, height - 40)
        x1, y1 = x0 + rng.integers(20, 200), y0 + rng.integers(20, 200)
        image[y0:y1, x0:x1] = 0.4 * image[y0:y1, x0:x1] + 0.6 * (rng.uniform(0.1, 0.9) + rng.normal(0, 0.12, 3))
    return image


def _film(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lens blur, grain and exposure; uint8."""
    image = gaussian_filter(image, (rng.uniform(0.3, 0.9),) * 2 + (0,))
    image = image.clip(0, 1) ** rng.uniform(0.85, 1.2) + rng.normal(size=image.shape) * rng.uniform(0.003, 0.02)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)
