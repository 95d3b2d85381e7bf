"""A refiner from outside: moves each body sideways so that its joints lie on the keypoints in the mean.

PYTHONPATH=docs/examples hmr refine a.meshes.h5 --detections a.detections.h5 --model refiner:Recentred -o b.meshes.h5
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.geometry import cameras
from stages.models.base import EstimateBatch, RefinedBatch, Refiner


class Recentred(Refiner):
    name, licence = "recentred", "CC0"

    @classmethod
    def load(cls, checkpoint: Any, *, device: str, body: Any, stats: str | None = None) -> Recentred:
        refiner = cls()
        refiner.body = body
        return refiner

    def __call__(self, estimates: EstimateBatch, settings: Any) -> RefinedBatch:
        e = estimates.map(lambda v: v.to(self.body.device))
        before = self.mean_offset(e, e.transl)
        focal = e.K[:, [0, 1], [0, 1]]
        transl = torch.cat([e.transl[:, :2] + before / focal * e.transl[:, 2:], e.transl[:, 2:]], 1)
        error = torch.stack([before.norm(dim=1), self.mean_offset(e, transl).norm(dim=1)], 1)
        return RefinedBatch(e.rotmat, e.betas, transl, error, energy=error[:, 1])

    def mean_offset(self, e: EstimateBatch, transl: Tensor) -> Tensor:
        """Mean (n, 2) px from the body's visible joints to their keypoints."""
        xy = cameras.project(self.body.joints(e.rotmat, e.betas, transl, "body25"), e.K)
        visible = (e.keypoints[..., 2:] > 0).float()
        return ((e.keypoints[..., :2] - xy) * visible).sum(1) / visible.sum(1).clamp_min(1)
