"""The part of the image that a network reads: one small function for each published rule, and the warp.

A crop is an affine (2, 3): image pixels to crop pixels, in float64 here and float32 in artefacts. Pixel (0, 0) is the
centre of the first pixel. Boxes are xyxy. Only the warp loops over people, because OpenCV warps one crop at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# OpenCV's threads compete with ours, and crops are small.
cv2.setNumThreads(1)


# ---- rules: the box of a crop


def dpmesh_boxes(keypoints: np.ndarray, size: np.ndarray, threshold: float = 0.05, grow: float = 1.2) -> np.ndarray:
    """DPMesh's square box from keypoints alone; NaN where no joint's score is above `threshold`.

    keypoints (n, J, 3) x, y px, score · size (n, 2) image width, height -> (n, 4) xyxy. The tight box of the visible
    joints is grown by 1.2, clipped to the image (the far edge starts from the clipped corner), made square along its
    longer side and grown by 1.1 (DPMesh `get_bbox` and `process_bbox`, after 3DCrowdNet).
    """
    xy = keypoints[..., :2].astype(np.float64)
    visible = (keypoints[..., 2] > threshold) & np.isfinite(xy).all(-1)
    none = ~visible.any(1)
    low = np.where(visible[..., None], xy, np.inf).min(1, initial=np.inf)
    high = np.where(visible[..., None], xy, -np.inf).max(1, initial=-np.inf)
    low[none], high[none] = 0, 0
    middle, extent = (low + high) / 2, (high - low) * grow
    corner = np.maximum(0, middle - extent / 2)
    far = np.minimum(size - 1, corner + np.maximum(0, extent - 1))
    extent = far - corner
    none |= (extent <= 0).any(1)
    half = extent.max(1, keepdims=True) / 2 * 1.1
    middle = corner + extent / 2
    box = np.concatenate([middle - half, middle + half], 1)
    box[none] = np.nan
    return box


def metro_boxes(center: np.ndarray, scale: np.ndarray, size: int) -> np.ndarray:
    """METRO's integer boxes (n, 4) xyxy, far edge excluded, for crops of `size` (256; FastMETRO 224) pixels.

    center (n, 2), scale (n,): the side is 200 px times the scale. The crop's corners are mapped back to the image and
    cut to integers, toward zero (MeshTransformer `image_ops.crop`); the patch is cut there and then resized.
    """
    side = 200 * scale
    # The reference inverts a 3 x 3 matrix; its rounding decides where a corner falls on a whole number.
    to_crop = np.zeros((len(scale), 3, 3))
    to_crop[:, 0, 0] = to_crop[:, 1, 1] = size / side
    to_crop[:, :2, 2] = size * (-center / side[:, None] + 0.5)
    to_crop[:, 2, 2] = 1
    corners = np.array([[0.0, 0.0, 1.0], [size, size, 1.0]]) @ np.linalg.inv(to_crop).swapaxes(1, 2)
    return np.trunc(corners[..., :2]).reshape(-1, 4).astype(np.int64)


def square_boxes(box: np.ndarray, grow: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Centre (n, 2) and side (n,) of the square around each box (n, 4): its longer side times `grow`.

    ScoreHMR and PARE: factor 1. Other networks have other factors.
    """
    box = box.astype(np.float64)
    return (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(1, initial=0) * grow


# ---- affines: from the image to the crop


def square_affine(center: np.ndarray, side: np.ndarray, size: int) -> np.ndarray:
    """Affine (n, 2, 3) of a square to a crop of size x size whose pixel (size/2, size/2) is the square's centre.

    The rule of 3DCrowdNet's `generate_patch_image`, shared by DPMesh (256) and ScoreHMR, PARE, HMR 2.0 (224).
    """
    return _affine(np.stack([size / side] * 2, 1), center, np.array([size / 2, size / 2]))


def mmpose_affine(box: np.ndarray, size: tuple[int, int], padding: float = 1.25, udp: bool = False) -> np.ndarray:
    """mmpose's top-down affine (n, 2, 3) of boxes (n, 4) to crops of size (width, height); keeps the aspect.

    The box is widened to the crop's aspect and multiplied by `padding` (1.25; PCT 1.12). `udp`: the unbiased variant
    (Huang et al., CVPR 2020), which maps outermost pixel centres on each other.
    """
    center = (box[:, :2] + box[:, 2:]) / 2.0
    extent = (box[:, 2:] - box[:, :2]) * 1.0
    aspect = size[0] / size[1]
    width = np.maximum(extent[:, 0], extent[:, 1] * aspect) * padding
    out = np.array(size, np.float64) - (1 if udp else 0)
    scale = np.stack([out[0] / width] * 2 if not udp else [out[0] / width, out[1] / (width / aspect)], 1)
    return _affine(scale, center, out / 2)


def resize_affine(box: np.ndarray, size: int) -> np.ndarray:
    """Affine (n, 2, 3) of integer boxes (n, 4), far edge excluded, resized to size x size: edges on edges."""
    scale = size / (box[:, 2:] - box[:, :2]).astype(np.float64)
    return _affine(scale, box[:, :2] - 0.5, np.array([-0.5, -0.5]))


def _affine(scale: np.ndarray, point: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Affine without rotation (n, 2, 3) that scales by (n, 2) and takes point (n, 2) to target."""
    affine = np.zeros((len(scale), 2, 3))
    affine[:, 0, 0], affine[:, 1, 1] = scale[:, 0], scale[:, 1]
    affine[:, :, 2] = target - scale * point
    return affine


# ---- using affines


def apply(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (n, J, 2) through affines (n, 2, 3)."""
    return xy @ affine[:, :, :2].swapaxes(1, 2) + affine[:, None, :, 2]


def invert(affine: np.ndarray) -> np.ndarray:
    """The affines (n, 2, 3) from the crop back to the image."""
    linear = np.linalg.inv(affine[:, :, :2])
    return np.concatenate([linear, -linear @ affine[:, :, 2:]], 2)


def scaled(affine: np.ndarray, factor: float) -> np.ndarray:
    """The same crops at `factor` times their resolution (DPMesh's heatmaps: 32 / 256), origin on origin."""
    return affine * factor


def warp(
    images: Sequence[np.ndarray],
    frame: np.ndarray,
    affine: np.ndarray,
    size: int | tuple[int, int],
    dtype: type = np.uint8,
) -> np.ndarray:
    """Crops (n, height, width, 3) of images, bilinear, black outside.

    images RGB uint8 · frame (n,) index into them · affine (n, 2, 3) image to crop · size: side or (width, height).
    dtype np.float32 keeps fractions of grey levels, as DPMesh and ScoreHMR do; uint8 rounds.
    """
    width, height = (size, size) if isinstance(size, int) else size
    crops: np.ndarray = np.zeros((len(affine), height, width, 3), dtype)
    converted: dict[int, np.ndarray] = {}
    for k, (index, matrix) in enumerate(zip(frame, affine, strict=True)):
        if not np.isfinite(matrix).all():
            continue
        if index not in converted:  # the rows of an image follow each other
            converted = {index: np.ascontiguousarray(images[index], dtype)}
        cv2.warpAffine(
            converted[index], np.asarray(matrix, np.float64), (width, height), dst=crops[k], flags=cv2.INTER_LINEAR
        )
    return crops


def halvings(image: np.ndarray, smallest: int = 256) -> list[np.ndarray]:
    """The picture and its halvings (each pixel the mean of four) while the shorter side has `smallest` pixels."""
    levels = [image]
    while min(levels[-1].shape[:2]) >= smallest:
        a = levels[-1]
        a = a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2].astype(np.uint16)
        levels.append(((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] + 2) // 4).astype(np.uint8))
    return levels


def warp_from(levels: Sequence[np.ndarray], affine: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """One crop (height, width, 3) float32 of grey levels, without aliasing in crops of large photos.

    levels of `halvings` · affine (2, 3) picture to crop: taken from the level whose pixels are nearest in size.
    """
    shrink = 1 / max(float(np.hypot(*affine[:, 0])), 1e-6)
    level = int(np.clip(np.floor(np.log2(shrink) + 0.25), 0, len(levels) - 1))
    from_level = affine * [2.0**level, 2.0**level, 1]
    from_level[:, 2] += affine[:, :2] @ np.full(2, 2.0**level / 2 - 0.5)  # pixel centres
    return warp([levels[level]], np.zeros(1, np.int64), from_level[None], size)[0].astype(np.float32)


def cut_and_resize(images: Sequence[np.ndarray], frame: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Crops (n, size, size, 3) float32 by METRO's rule: integer boxes (n, 4) cut out, black outside, resized.

    The resize is bilinear without antialiasing, in floating point (grey levels are not rounded).
    """
    crops = np.zeros((len(box), size, size, 3), np.float32)
    for k, (index, (x0, y0, x1, y1)) in enumerate(zip(frame, box, strict=True)):
        image = images[index]
        height, width = image.shape[:2]
        patch = np.zeros((max(y1 - y0, 1), max(x1 - x0, 1), 3), np.float32)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if left < right and top < bottom:
            patch[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
        crops[k] = cv2.resize(patch, (size, size), interpolation=cv2.INTER_LINEAR)
    return crops
