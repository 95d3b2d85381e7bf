"""What DPMesh reads of a row: the crop that the keypoints decide, joints in heatmap pixels, the image patch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import Column
from stages.errors import ArtefactError
from stages.geometry import crops, heatmaps
from stages.models.base import PersonBatch

CROP, HEAT, SIGMA = 256, 32, 2.5
LATENT, FEATURES, PLACE = "features/latent", "features/dpmesh", "features/crop"
CROP_COLUMN = Column(PLACE, "f4", ("R", 2, 3), "px", "affine from picture to 256-pixel crop")


@dataclasses.dataclass
class DPMeshCrops:
    """Crops (n, 2, 3), picture to 256 px; joints xy (n, 30, 2) of 32 px and mask (n, 30); rows with any seen joint."""

    affine: np.ndarray
    xy: np.ndarray
    mask: np.ndarray
    keypoints: np.ndarray
    seen: np.ndarray

    @property
    def errors(self) -> list[str]:
        return [
            "" if s else "too few keypoints in the picture with a score above 0.05 to place a crop" for s in self.seen
        ]


def crops_of(people: PersonBatch) -> DPMeshCrops:
    """The crop from given latents or features, else from given heatmaps, else from the keypoints by DPMesh's rule.

    The crop is rounded to float32, as artefacts store it, so that each way gives the same bits.
    """
    keypoints = heatmaps.dpmesh_keypoints(people.keypoints, people.joints)
    columns = people.columns
    if PLACE in columns:
        crop = columns[PLACE]
        if not np.allclose(
            crops.scaled(columns.get("heatmaps/crop", crop * 0.125), 8), crop, 1e-5, 8e-3, equal_nan=True
        ):
            raise ArtefactError("the heatmaps belong to other crops than the latents or features", "make both again")
    elif "heatmaps/crop" in columns:
        crop = crops.scaled(columns["heatmaps/crop"], CROP / HEAT)
    else:
        crop = crops.scaled(heatmaps.joints_in_crop(keypoints, people.size, HEAT).affine, CROP / HEAT)
    crop = np.asarray(crop, np.float32).astype(np.float64)
    seen = np.isfinite(crop).all((1, 2))
    xy = crops.apply(crops.scaled(crop, HEAT / CROP), keypoints[..., :2].astype(np.float64)).astype(np.float32)
    mask = (keypoints[..., 2] > 0.05) & (xy >= 0).all(-1) & (xy < HEAT).all(-1)
    return DPMeshCrops(crop, np.nan_to_num(xy), mask & seen[:, None], keypoints, seen)


def crop_images(images: list[np.ndarray], frame: np.ndarray, affine: np.ndarray) -> Tensor:
    """Crops (n, 3, 256, 256) in [0, 1] of RGB uint8 pictures.

    Bilinear, zeros outside, fractions of grey levels kept. OpenCV 5 samples exactly; OpenCV 4, like the published
    environment, on a grid of 1/32 pixel (up to 4 grey levels apart on smooth pictures). Whichever is installed is used.
    """
    patches = crops.warp(images, frame, affine.astype(np.float32), CROP, np.float32)
    return torch.from_numpy(np.clip(patches, 0, 255) / np.float32(255)).permute(0, 3, 1, 2).contiguous()
