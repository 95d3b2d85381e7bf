"""Drawings of people: meshes shaded over an image, views from elsewhere, and skeletons. No display, no OpenGL."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from stages.geometry.rasterizer import rasterize, vertex_normals

# Okabe and Ito's colours (distinct under the common kinds of colour blindness), less saturated, without the black; none
# is near skin, so that no body is mistaken for a person.
PALETTE = (
    np.array(
        [
            (108, 166, 214),
            (232, 202, 84),
            (92, 178, 142),
            (204, 128, 176),
            (66, 110, 176),
            (214, 104, 62),
            (148, 152, 158),
        ]
    )
    / 255.0
)
# Directions to the lights (camera frame: x right, y down, z forward) and their strengths: key, fill, rim.
LIGHTS = (((-0.45, -0.75, -0.65), 0.62), ((0.8, -0.1, -0.6), 0.20), ((0.1, -0.5, 0.9), 0.12))
AMBIENT = 0.30
PAPER = np.array([244, 244, 241], np.uint8)  # background of views without an image


def colours(keys: np.ndarray) -> np.ndarray:
    """Colours (n, 3) in [0, 1] for keys (n,) (track or row numbers): the same key has the same colour in every image.

    After the last colour of the palette they repeat darker, then lighter.
    """
    keys = np.asarray(keys, np.int64)
    base = PALETTE[keys % len(PALETTE)]
    cycle = (keys // len(PALETTE) % 3)[:, None]
    return np.where(cycle == 1, base * 0.68, np.where(cycle == 2, base * 0.55 + 0.45, base))


def render(
    vertices: Tensor, faces: Tensor, K: Tensor, size: tuple[int, int], colour: np.ndarray, *, supersample: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Shaded meshes: colour (H, W, 3) in [0, 1] multiplied by alpha, and alpha (H, W), both float32.

    vertices (n, V, 3) camera frame, metres; rows with NaN are not drawn · faces (F, 3) shared, counter-clockwise from
    outside · K (3, 3) · size (width, height) · colour (n, 3) in [0, 1]. People occlude one another by depth.
    supersample: 2 draws at twice the size and averages, which smooths the edges.
    """
    width, height = size
    rgb, alpha = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    finite = torch.isfinite(vertices).flatten(1).all(1)
    vertices, paint = vertices[finite], torch.as_tensor(colour, dtype=vertices.dtype, device=vertices.device)[finite]
    K = K.to(vertices)
    uvw = vertices @ K.T
    uv = (uvw[..., :2] / uvw[..., 2:].clamp_min(1e-6)).reshape(-1, 2)
    z = vertices[..., 2].reshape(-1)
    front = uv[z > 0]
    if not len(front):
        return rgb, alpha
    # Only the part of the image that shows somebody is drawn.
    limit = uv.new_tensor([width - 1, height - 1])
    x0, y0 = torch.minimum(front.amin(0).floor().clamp_min(0), limit).long().tolist()
    x1, y1 = torch.minimum(front.amax(0).ceil().clamp_min(0), limit).long().tolist()
    w, h = x1 - x0 + 1, y1 - y0 + 1
    uv = (uv - uv.new_tensor([x0, y0]) + 0.5) * supersample - 0.5
    count = vertices.shape[1]
    everyone = (faces[None] + count * torch.arange(len(vertices), device=faces.device)[:, None, None]).reshape(-1, 3)
    hits = rasterize(uv, z, everyone, (w * supersample, h * supersample), cull=True)
    normal = vertex_normals(vertices, faces).reshape(-1, 3)
    normal = (normal[everyone[hits.face]] * hits.bary[..., None]).sum(1)
    shaded = paint[torch.div(hits.face, len(faces), rounding_mode="floor")] * _light(normal)[:, None]
    canvas = shaded.new_zeros(w * h * supersample**2, 4)
    canvas[hits.pixel] = torch.cat([shaded.clamp(0, 1), torch.ones_like(shaded[:, :1])], 1)
    drawn = canvas.view(h, supersample, w, supersample, 4).mean((1, 3)).cpu().numpy()
    rgb[y0 : y1 + 1, x0 : x1 + 1], alpha[y0 : y1 + 1, x0 : x1 + 1] = drawn[..., :3], drawn[..., 3]
    return rgb, alpha


def _light(normal: Tensor) -> Tensor:
    """Brightness (P,) of matt paint with normals (P, 3); half-wrapped, so that the dark side keeps its shape."""
    normal = torch.nn.functional.normalize(normal, dim=-1)
    total = normal.new_full((len(normal),), AMBIENT)
    for direction, strength in LIGHTS:
        towards = torch.nn.functional.normalize(normal.new_tensor(direction), dim=0)
        total = total + strength * ((normal @ towards + 0.35) / 1.35).clamp_min(0)
    return total


def overlay(
    image: np.ndarray,
    vertices: Tensor,
    faces: Tensor,
    K: Tensor,
    colour: np.ndarray,
    *,
    opacity: float = 1.0,
    supersample: int = 2,
) -> np.ndarray:
    """The image (H, W, 3) uint8 with meshes over it; arguments as `render`."""
    height, width = image.shape[:2]
    rgb, alpha = render(vertices, faces, K, (width, height), colour, supersample=supersample)
    return (image * (1 - opacity * alpha[..., None]) + 255 * opacity * rgb + 0.5).astype(np.uint8)


def orbit_view(
    vertices: Tensor,
    faces: Tensor,
    colour: np.ndarray,
    size: tuple[int, int],
    *,
    yaw: float,
    pitch: float = 0.0,
    supersample: int = 2,
) -> np.ndarray:
    """The people (n, V, 3) from another side, on a blank page: (H, W, 3) uint8.

    The camera looks at the group's middle. yaw moves it around, pi / 2 to the image's right side; pitch lifts it, both
    in radians. Its distance is constant, and everybody is in the view at every angle.
    """
    width, height = size
    paper = np.broadcast_to(PAPER, (height, width, 3))
    vertices = vertices[torch.isfinite(vertices).flatten(1).all(1)]
    if not len(vertices):
        return paper.copy()
    points = vertices.reshape(-1, 3)
    centred = vertices - (points.amin(0) + points.amax(0)) / 2
    across = centred[..., [0, 2]].norm(dim=-1).amax()
    radius = torch.maximum(centred[..., 1].abs().amax(), across * min(1.0, height / width)) + 1e-3
    c, s = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    rotation = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    rotated = centred @ torch.as_tensor(rotation, dtype=points.dtype, device=points.device).T
    distance = float(radius) * 4.0 + float(across)
    focal = 0.46 * height * (distance - float(across)) / float(radius)
    K = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    return overlay(paper, rotated + rotated.new_tensor([0, 0, distance]), faces, K, colour, supersample=supersample)


def skeletons(
    image: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    bones: Sequence[tuple[int, int]],
    colour: np.ndarray,
    *,
    left: np.ndarray | None = None,
    width: int | None = None,
) -> np.ndarray:
    """A copy of the image with keypoints as stick figures.

    xy (n, J, 2) px · visible (n, J) bool · bones pairs of joint indices · colour (n, 3) · left (J,) bool: joints of the
    person's left side get a white core, so that swapped sides are noticed · width of the lines in px, by default from
    the size of the image.
    """
    image = image.copy()
    width = width or max(1, round(max(image.shape[:2]) / 320))
    visible = visible & np.isfinite(xy).all(-1) & (np.abs(xy) < 2**14).all(-1)
    shift = 4  # cv2 takes fixed-point coordinates: sixteenths of a pixel
    points = np.round(np.where(visible[..., None], xy, 0) * 2**shift).astype(np.int64)
    for person in range(len(xy)):
        paint = tuple(int(v) for v in np.round(255 * colour[person]))
        for ink, extra in (((25, 25, 25), 2), (paint, 0)):
            for a, b in bones:
                if visible[person, a] and visible[person, b]:
                    ends = [tuple(int(v) for v in points[person, j]) for j in (a, b)]
                    cv2.line(image, ends[0], ends[1], ink, width + extra, cv2.LINE_AA, shift)
        for joint in np.flatnonzero(visible[person]):
            centre = tuple(int(v) for v in points[person, joint])
            cv2.circle(image, centre, (width + 1) << shift, (25, 25, 25), -1, cv2.LINE_AA, shift)
            inner = (255, 255, 255) if left is not None and left[joint] else paint
            cv2.circle(image, centre, max(width, 1) << shift, inner, -1, cv2.LINE_AA, shift)
    return image


def side_by_side(images: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Images of equal height next to one another, with a blank strip between them."""
    strip = np.broadcast_to(PAPER, (images[0].shape[0], gap, 3))
    pieces = [piece for image in images for piece in (image, strip)][:-1]
    return np.concatenate(pieces, 1)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at (width, height), averaged where it becomes smaller."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    smaller = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def label(image: np.ndarray, xy: tuple[float, float], text: str, colour: np.ndarray) -> None:
    """Write a short ASCII text into the image, on a background of the person's colour, inside the image's borders."""
    height, width = image.shape[:2]
    scale = max(0.4, max(height, width) / 1400)
    (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = int(np.clip(xy[0], 0, max(0, width - w - 6)))
    y = int(np.clip(xy[1], h + base + 4, height - 1))
    paint = tuple(int(v) for v in np.round(255 * colour))
    dark = (20, 20, 20) if np.dot(colour, [0.3, 0.6, 0.1]) > 0.45 else (255, 255, 255)
    cv2.rectangle(image, (x, y - h - base - 4), (x + w + 6, y), paint, -1)
    cv2.putText(image, text, (x + 3, y - base - 1), cv2.FONT_HERSHEY_SIMPLEX, scale, dark, 1, cv2.LINE_AA)


def jpeg(image: np.ndarray, quality: int = 88) -> bytes:
    """The image (H, W, 3) uint8 as JPEG bytes."""
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()
