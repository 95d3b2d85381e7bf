"""The z-buffer against closed forms and a brute-force renderer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from stages.geometry.rasterizer import rasterize, vertex_normals

K = torch.tensor([[200.0, 0, 79.5], [0, 200, 59.5], [0, 0, 1]])
SIZE = (160, 120)


def pixels(vertices: torch.Tensor) -> torch.Tensor:
    uvw = vertices @ K.T
    return uvw[:, :2] / uvw[:, 2:]


def sphere(
    centre: tuple[float, float, float], radius: float, subdivisions: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(mesh.vertices).float() + torch.tensor(centre), torch.tensor(mesh.faces).long()


def test_a_sphere_covers_and_lies_where_rays_meet_it() -> None:
    v, f = sphere((0.2, -0.1, 3.0), 0.6, 5)
    hits = rasterize(pixels(v), v[:, 2], f, SIZE)
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    ray = torch.stack([(x - 79.5) / 200, (y - 59.5) / 200, torch.ones_like(x)], -1).view(-1, 3)
    c = torch.tensor([0.2, -0.1, 3.0])
    a, b, q = (ray * ray).sum(1), (ray * c).sum(1), (c * c).sum() - 0.36
    inside = b * b > a * q
    drawn = torch.zeros(len(ray), dtype=torch.bool)
    drawn[hits.pixel] = True
    assert (inside != drawn).sum() <= 0.01 * inside.sum()
    both = inside[hits.pixel]
    depth = (b - (b * b - a * q).clamp_min(0).sqrt()) / a
    away = (depth[hits.pixel] - hits.depth).abs()[both]
    assert away.median() < 5e-4 and away.max() < 0.1
    # The barycentric point projects onto its own pixel.
    point = (v[f[hits.face]] * hits.bary[..., None]).sum(1)
    torch.testing.assert_close(point[:, 2], hits.depth, atol=1e-5, rtol=0)
    at = torch.stack([hits.pixel % 160, hits.pixel // 160], 1).float()
    assert (pixels(point) - at).abs().max() < 0.01


def test_culling_and_order_of_faces_change_nothing() -> None:
    v, f = sphere((0.0, 0.0, 2.0), 0.5)
    whole, culled = rasterize(pixels(v), v[:, 2], f, SIZE), rasterize(pixels(v), v[:, 2], f, SIZE, cull=True)
    shared = np.intersect1d(whole.pixel, culled.pixel)
    assert len(shared) >= 0.995 * len(whole.pixel) and len(shared) == len(culled.pixel)
    back = rasterize(pixels(v), v[:, 2], f.flip(0), SIZE)
    assert torch.equal(back.pixel, whole.pixel)
    torch.testing.assert_close(back.depth, whole.depth)


def test_every_triangle_pixel_against_brute_force() -> None:
    rng = np.random.default_rng(3)
    v = torch.tensor(rng.uniform([-1.5, -1.2, 1.0], [1.5, 1.2, 4.0], (60, 3))).float()
    f = torch.tensor(rng.integers(0, 60, (40, 3)))
    hits = rasterize(pixels(v), v[:, 2], f, SIZE)
    depth = np.full((120, 160), np.inf)
    face = np.full((120, 160), -1)
    uv, z = pixels(v).double().numpy(), v[:, 2].double().numpy()
    y, x = np.mgrid[:120, :160]
    for k, (a, b, c) in enumerate(f.numpy()):
        m = np.stack([uv[b] - uv[a], uv[c] - uv[a]], 1)
        if abs(np.linalg.det(m)) < 1e-9:
            continue
        b1, b2 = np.einsum("ij,jhw->ihw", np.linalg.inv(m), np.stack([x - uv[a][0], y - uv[a][1]]))
        at = 1 / ((1 - b1 - b2) / z[a] + b1 / z[b] + b2 / z[c])
        nearer = (b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1) & (at < depth)
        depth[nearer], face[nearer] = at[nearer], k
    got = np.full(120 * 160, -1)
    got[hits.pixel] = hits.face
    assert (got.reshape(120, 160) != face).mean() < 1e-3
    ours = np.full(120 * 160, np.inf)
    ours[hits.pixel] = hits.depth
    same = (got.reshape(120, 160) == face) & (face >= 0)
    np.testing.assert_allclose(ours.reshape(120, 160)[same], depth[same], rtol=1e-4)


def test_mutual_occlusion_of_two_meshes() -> None:
    near, f = sphere((0.0, 0.0, 2.0), 0.3)
    far, _ = sphere((0.1, 0.0, 3.0), 0.6)
    v, faces = torch.cat([near, far]), torch.cat([f, f + len(near)])
    hits = rasterize(pixels(v), v[:, 2], faces, SIZE)
    owner = torch.full((120 * 160,), -1)
    owner[hits.pixel] = (hits.face >= len(f)).long()
    owner = owner.view(120, 160)
    assert owner[60, 80] == 0 and owner[60, 80 + 45] == 1 and owner[0, 0] == -1


@pytest.mark.parametrize("z", [0.0, -2.0, float("nan")])
def test_nothing_in_front_of_the_camera_draws_nothing(z: float) -> None:
    v, f = sphere((0.0, 0.0, z), 0.4)
    hits = rasterize(pixels(v), v[:, 2], f, SIZE, cull=True)
    assert z == 0.0 or len(hits.pixel) == 0
    assert len(rasterize(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 3, dtype=torch.long), SIZE).pixel) == 0


def test_inside_a_body_fills_the_picture_within_memory() -> None:
    v, f = sphere((0.0, 0.0, 0.05), 0.4, 5)
    hits = rasterize(pixels(v), v[:, 2], f, SIZE)
    assert len(hits.pixel) == 160 * 120


def test_normals_of_a_sphere_point_out() -> None:
    v, f = sphere((0.0, 0.0, 0.0), 1.0)
    normal = vertex_normals(torch.stack([v, 2 * v]), f)
    assert ((normal * v).sum(-1) > 0.999).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_draws_the_same() -> None:
    v, f = sphere((0.0, 0.0, 2.0), 0.5)
    here, there = rasterize(pixels(v), v[:, 2], f, SIZE), rasterize(pixels(v).cuda(), v[:, 2].cuda(), f.cuda(), SIZE)
    assert (here.face == there.face.cpu()).float().mean() > 0.99
