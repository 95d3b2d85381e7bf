"""The inputs of DPMesh for a row: the crop that its keypoints determine, joints in heatmap pixels, the image patch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stages.errors import ArtefactError
from stages.geometry import crops, heatmaps
from stages.models.base import PersonBatch

CROP, HEAT = 256, 32  # sides of the crop and of the heatmaps, pixels
SIGMA = 2.5  # of the Gaussians, heatmap pixels
LATENT, FEATURES, CROP_AFFINE = "features/latent", "features/dpmesh", "features/crop"


@dataclasses.dataclass
class DPMeshCrops:
    """n crops: affine (n, 2, 3) image to 256 crop px · xy (n, 30, 2) joints in heatmap px (32 x 32), mask (n, 30) bool,
    those visible · keypoints (n, 30, 3) image px and score · valid (n,) bool: any joint is visible, so that there is a
    crop."""

    affine: np.ndarray
    xy: np.ndarray
    mask: np.ndarray
    keypoints: np.ndarray
    valid: np.ndarray

    @property
    def errors(self) -> list[str]:
        return [
            "" if v else "too few keypoints in the image with a score above 0.05 to place a crop" for v in self.valid
        ]


def crops_of(people: PersonBatch) -> DPMeshCrops:
    """The crop of stored latents or features, else of stored heatmaps, else of the keypoints by DPMesh's rule.

    The crop is rounded to float32, as artefacts store it, so that each of them gives the same bits.
    """
    keypoints = heatmaps.dpmesh_keypoints(people.keypoints, people.joints)
    columns = people.columns
    if CROP_AFFINE in columns:
        crop = columns[CROP_AFFINE]
        if not np.allclose(
            crops.scaled(columns.get("heatmaps/crop", crop * 0.125), 8), crop, 1e-5, 8e-3, equal_nan=True
        ):
            raise ArtefactError("the heatmaps belong to other crops than the latents or features", "make both again")
    elif "heatmaps/crop" in columns:
        crop = crops.scaled(columns["heatmaps/crop"], CROP / HEAT)
    else:
        crop = crops.scaled(heatmaps.joints_in_crop(keypoints, people.size, HEAT).affine, CROP / HEAT)
    crop = np.asarray(crop, np.float32).astype(np.float64)
    valid = np.isfinite(crop).all((1, 2))
    xy = crops.apply(crops.scaled(crop, HEAT / CROP), keypoints[..., :2].astype(np.float64)).astype(np.float32)
    mask = (keypoints[..., 2] > 0.05) & (xy >= 0).all(-1) & (xy < HEAT).all(-1)
    return DPMeshCrops(crop, np.nan_to_num(xy), mask & valid[:, None], keypoints, valid)


def crop_images(images: list[np.ndarray], frame: np.ndarray, affine: np.ndarray) -> Tensor:
    """Crops (n, 3, 256, 256) in [0, 1] of RGB uint8 images.

    Bilinear, zeros outside, fractions of grey levels kept. OpenCV 5 samples exactly; OpenCV 4, like the published
    environment, on a grid of 1/32 pixel (up to 4 grey levels apart on smooth images). Whichever is installed is used.
    """
    patches = crops.warp(images, frame, affine.astype(np.float32), CROP, np.float32)
    return torch.from_numpy(np.clip(patches, 0, 255) / np.float32(255)).permute(0, 3, 1, 2).contiguous()
