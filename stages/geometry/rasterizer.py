"""A z-buffer in plain torch: the visible face of each pixel, on CPU or CUDA, without a display or OpenGL.

Every pixel inside the bounding box of a face is a candidate; barycentric coordinates decide whether it is covered, and
one scatter with the minimum over (depth, face) keeps the nearest. Positive floats keep their order as integers, so
depth and face share one 64-bit key and ties always fall to the lower face: the result does not depend on the order of
execution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

NEAR = 0.01  # metres: a face with a corner nearer than this is not drawn
CHUNK = 4_000_000  # candidate pixels at a time (about 60 bytes each): a camera inside a body must not fill the memory
EMPTY = 2**63 - 1


class Hits(NamedTuple):
    """The P covered pixels, each once. pixel (P,) = y * width + x · face (P,) · bary (P, 3), perspective-correct
    weights of the face's corners · depth (P,) z in metres."""

    pixel: Tensor
    face: Tensor
    bary: Tensor
    depth: Tensor


def rasterize(uv: Tensor, depth: Tensor, faces: Tensor, size: tuple[int, int], *, cull: bool = False) -> Hits:
    """The nearest face at each pixel.

    uv (V, 2) pixels, (0, 0) = centre of the first · depth (V,) z in metres · faces (F, 3) · size (width, height).
    cull: leave out back faces (for closed meshes whose faces are counter-clockwise from outside; halves the work and
    changes no pixel). Faces that reach behind the camera are left out, not clipped: divide large floors.
    Several meshes are one mesh with their vertices and faces concatenated.
    """
    width, height = size
    corner, z = uv[faces], depth[faces]
    first, edge1, edge2 = corner[:, 0], corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    keep = (z > NEAR).all(1) & torch.isfinite(corner).flatten(1).all(1)
    # y runs down, so what is counter-clockwise from outside is clockwise in the image: negative area.
    keep &= (area < -1e-9) if cull else (area.abs() > 1e-9)
    low = corner.amin(1).ceil().clamp_min(0)
    high = torch.minimum(corner.amax(1).floor(), corner.new_tensor([width - 1, height - 1]))
    keep &= (high >= low).all(1)
    kept = keep.nonzero()[:, 0]
    low, span = low[kept].long(), (high - low)[kept].long() + 1
    table = torch.cat([first[kept] - low, edge1[kept], edge2[kept], 1 / area[kept, None], 1 / z[kept]], 1)
    table = table.T.contiguous()

    buffer = torch.full((height * width,), EMPTY, dtype=torch.long, device=uv.device)
    ends = span.prod(1).cumsum(0)
    start = 0
    while start < len(kept):
        before = ends[start - 1] if start else ends.new_zeros(())
        stop = max(start + 1, int(torch.searchsorted(ends, before + CHUNK, right=True)))
        part = slice(start, stop)
        _draw(buffer, width, table[:, part], low[part], span[part], kept[part])
        start = stop

    pixel = (buffer != EMPTY).nonzero()[:, 0]
    face = buffer[pixel] & 0xFFFFFFFF
    at = torch.stack([pixel % width, torch.div(pixel, width, rounding_mode="floor")], 1) - first[face]
    b1, b2 = _barycentric(at.T, edge1[face].T, edge2[face].T, 1 / area[face])
    weight = torch.stack([1 - b1 - b2, b1, b2], 1).clamp(0, 1) / z[face]
    inverse = weight.sum(1, keepdim=True)
    return Hits(pixel, face, weight / inverse, 1 / inverse[:, 0])


def _draw(buffer: Tensor, width: int, table: Tensor, low: Tensor, span: Tensor, face_id: Tensor) -> None:
    """Put faces into the buffer: rows of table are corner - low (2), edges (4), 1 / area, 1 / z of the corners (3)."""
    count = span.prod(1)
    face = torch.repeat_interleave(count)
    k = (torch.arange(len(face), device=face.device) - (count.cumsum(0) - count)[face]).to(torch.int32)
    columns = span[:, 0].to(torch.int32)[face]
    y = torch.div(k, columns, rounding_mode="floor")
    x = k - y * columns
    # b1 and b2 are linear in the pixel: three coefficients each, computed once per face.
    cx, cy, e1x, e1y, e2x, e2y, inverse = table[:7]
    step = torch.stack([e2y * inverse, -e2x * inverse, -e1y * inverse, e1x * inverse])
    at0 = -(cx * step[0] + cy * step[1]), -(cx * step[2] + cy * step[3])
    b1 = torch.addcmul(torch.addcmul(at0[0][face], step[0][face], x), step[1][face], y)
    b2 = torch.addcmul(torch.addcmul(at0[1][face], step[2][face], x), step[3][face], y)
    # A small tolerance: rounding must not open cracks between neighbouring faces.
    inside = ((b1 >= -1e-5) & (b2 >= -1e-5) & (b1 + b2 <= 1 + 1e-5)).nonzero()[:, 0]
    face, b1, b2 = face[inside], b1[inside], b2[inside]
    z0, z1, z2 = table[7:].unbind()
    z = 1 / (z0[face] + b1 * (z1 - z0)[face] + b2 * (z2 - z0)[face])
    key = (z.float().view(torch.int32).long() << 32) | face_id[face]
    pixel = (low[:, 1] * width + low[:, 0])[face] + y[inside].long() * width + x[inside]
    buffer.scatter_reduce_(0, pixel, key, "amin")


def _barycentric(at: Any, edge1: Tensor, edge2: Tensor, inverse_area: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the second and third corner at offset `at` (x, y) from the first; edges (2, n)."""
    x, y = at
    return (x * edge2[1] - y * edge2[0]) * inverse_area, (edge1[0] * y - edge1[1] * x) * inverse_area


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (n, V, 3) of meshes (n, V, 3) that share faces (F, 3): area-weighted, out of the mesh."""
    a, b, c = (vertices[:, faces[:, k]] for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(1, faces[:, k], normal)
    return torch.nn.functional.normalize(total, dim=-1)
