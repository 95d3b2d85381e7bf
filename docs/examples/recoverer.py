"""A recoverer from outside: everybody stands upright and faces the camera, as tall in the image as the box says.

PYTHONPATH=docs/examples hmr recover people.detections.h5 --model recoverer:StandingRecoverer -o people.meshes.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stages.artefacts.kinds import JOINT_COLUMNS, SMPL_COLUMNS
from stages.keypoints.joint_sets import SETS
from stages.models.base import PersonBatch, PersonModel
from stages.smpl.body import Body, load_body


class StandingRecoverer(PersonModel):
    name, licence, batch_size = "standing", "CC0", 256
    columns = (*SMPL_COLUMNS, *JOINT_COLUMNS)

    def __init__(self, body: Body, device: str) -> None:
        self.body, self.device = body.to(device), device
        self.group_attrs = {
            "smpl": {"body_model": body.name, "gender": body.gender},
            "joints": {"joints": list(SETS["smpl24"])},
        }

    @classmethod
    def load(cls, checkpoint: Any, *, device: str, body: Body | None) -> StandingRecoverer:
        return cls(body or load_body("embedded"), device)

    def needs_images(self, available: frozenset[str]) -> bool:
        return False

    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        box, K = (torch.from_numpy(np.asarray(x, np.float32)).to(self.device) for x in (people.box, people.K))
        template, n = self.body.v_template, len(people)
        low, high = template.amin(0), template.amax(0)
        depth = K[:, 1, 1] * (high - low)[1] / (box[:, 3] - box[:, 1])  # from similar triangles, metres
        centre = ((box[:, :2] + box[:, 2:]) / 2 - K[:, :2, 2]) / K[:, [0, 1], [0, 1]] * depth[:, None]
        root = torch.tensor([torch.pi, 0.0, 0.0], device=self.device).expand(n, 3)  # SMPL's y is up, the camera's down
        pose, betas = root.new_zeros(n, 23, 3), root.new_zeros(n, 10)
        pelvis, middle = self.body.joint_template[0], (low + high) / 2
        transl = torch.cat([centre, depth[:, None]], 1) - pelvis - (middle - pelvis) * pelvis.new_tensor([1, -1, -1])
        joints = self.body(root, pose, betas, transl).joints
        return {
            **dict(zip((c.name for c in SMPL_COLUMNS), (root, pose, betas, transl), strict=True)),
            "joints/xyz": joints,
            "joints/confidence": joints.new_ones(n, 24),
            "error": ["" if d > 0 else "the box is empty" for d in depth.nan_to_num(0, 0, 0)],
        }
