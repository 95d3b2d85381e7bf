"""The embedded recoverer: keypoints of any joint set, with scores -> SMPL parameters, joints and their confidence.

The keypoints are projected into a virtual camera that looks at them (virtual_camera.py), the network poses a body in
front of it (network.py), the translation is solved again in closed form, and everything is rotated back into the
image's camera. Images are never opened. Depth, height and width of a person are guesses: keypoints do not show them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import JOINT_COLUMNS, SMPL_COLUMNS
from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys, read_checkpoint
from stages.files.folders import packaged
from stages.geometry.cameras import look_at
from stages.geometry.rotations import matrix_to_axis_angle
from stages.keypoints import joint_sets
from stages.models.base import PersonBatch, PersonModel
from stages.models.embedded.kinematics import Skeleton, matmul3, rotate
from stages.models.embedded.network import Network
from stages.models.embedded.virtual_camera import features, solve_pelvis
from stages.smpl.body import Body, load_body

WEIGHTS = packaged("data/embedded.safetensors")
PREFIX = "embedded."
MIN_KEYPOINTS = 5  # visible keypoints; a row with fewer fails
MIN_SCORE = 0.05  # keypoints with a higher score count as visible
CHUNK = 32  # people per forward pass, always: so that a row's values do not depend on its neighbours


class EmbeddedRecoverer(PersonModel):
    """The embedded default. `about`: the text entries of the weights file."""

    name = "embedded"
    batch_size = 256
    columns = (*SMPL_COLUMNS, *JOINT_COLUMNS)
    group_attrs = {  # noqa: RUF012
        "smpl": {"body_model": "embedded", "gender": "neutral"},
        "joints": {"joints": list(joint_sets.get("smpl24"))},
    }

    def __init__(
        self, network: Network, *, device: str = "cpu", licence: str = "", sha256: str = "", about: Any = None
    ) -> None:
        self.network, self.device = network.eval().to(device), device
        self.licence, self.sha256, self.about = licence, sha256, dict(about or {})

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return f"{PREFIX}enter.0.weight" in names

    @classmethod
    def load(
        cls, checkpoint: Checkpoint | None = None, *, device: str = "cpu", body: Body | None = None
    ) -> EmbeddedRecoverer:
        """The packaged weights, or others made by `hmr train embedded`.

        Raises AssetError when the file is not one of these or was trained for a body of another topology.
        """
        checkpoint = checkpoint or read_checkpoint(WEIGHTS)
        body = body or load_body("embedded")
        trained_for = checkpoint.metadata.get("topology", "")
        if trained_for != body.topology:
            raise AssetError(
                f"{checkpoint.where} was trained for the body {trained_for!r}, {body.name} is a {body.topology!r}",
                "leave out --body: the embedded recoverer poses the embedded body",
            )
        try:
            shape = json.loads(checkpoint.metadata["shape"])
            width, blocks = int(shape["width"]), tuple(int(b) for b in shape["blocks"])
        except (KeyError, TypeError, ValueError) as error:
            raise AssetError(f"{checkpoint.where} does not say its network's shape", "train it again") from error
        network = Network(Skeleton.from_body(body), width, blocks)
        weights = {name: value.float() for name, value in checkpoint.without(PREFIX).items()}
        check_keys(network.state_dict(), weights, where=checkpoint.where)
        network.load_state_dict(weights)
        return cls(
            network,
            device=device,
            licence=checkpoint.licence,
            sha256=checkpoint.sha256,
            about=checkpoint.metadata,
        )

    def needs_images(self, available: frozenset[str]) -> bool:
        return False

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        """Columns of `people`. A row with fewer than five visible keypoints, or with all at one point, is an error."""
        image, confidence = normalised(people)
        visible = (confidence > 0).sum(0)
        spread = np.where(confidence > 0, image, np.nan)
        wide = np.nan_to_num(np.nanmax(spread, 1, initial=-np.inf) - np.nanmin(spread, 1, initial=np.inf)).max(0)
        errors = [
            f"{k} keypoints with a score above {MIN_SCORE}; at least {MIN_KEYPOINTS} are needed"
            if k < MIN_KEYPOINTS
            else ""
            if w > 1e-5
            else "the keypoints are all in one place"
            for k, w in zip(visible, wide, strict=True)
        ]
        n = len(errors)
        padding = -n % CHUNK
        image = np.pad(image, ((0, 0), (0, 0), (0, padding)))
        confidence = np.pad(confidence, ((0, 0), (0, padding)))
        parts = [
            self.recover(
                torch.from_numpy(image[..., i : i + CHUNK].copy()).to(self.device),
                torch.from_numpy(confidence[:, i : i + CHUNK].copy()).to(self.device),
            )
            for i in range(0, n + padding, CHUNK)
        ]
        empty = {c.name: torch.zeros(0, *_sizes(c.shape)) for c in self.columns}
        result = {name: torch.cat([p[name] for p in parts])[:n].cpu() if parts else empty[name] for name in empty}
        return {**result, "error": errors}

    def recover(self, image: Tensor, confidence: Tensor) -> dict[str, Tensor]:
        """image (2, 17, n) COCO keypoints as tangents in the image's camera, confidence (17, n), 0 = not visible.

        -> the columns, rows first, in the image's camera.
        """
        R_camera_to_virtual, half, normal = look_at(image, confidence)
        estimates, confidence_logits = self.network(features(normal, confidence, half), half)
        last = estimates[-1]
        pelvis = solve_pelvis(last.points, normal * half, confidence, last.pelvis)
        back = R_camera_to_virtual.transpose(0, 1)
        rotation = torch.cat([matmul3(back, last.rotation[:, :, 0])[:, :, None], last.rotation[:, :, 1:]], 2)
        pelvis = rotate(back, pelvis)
        vectors = matrix_to_axis_angle(rotation.permute(3, 2, 0, 1))
        rest = self.network.skeleton.rest_joints(last.betas)[:, 0]
        return {
            "smpl/global_orient": vectors[:, 0],
            "smpl/body_pose": vectors[:, 1:],
            "smpl/betas": last.betas.T,
            "smpl/transl": (pelvis - rest).T,
            "joints/xyz": (rotate(back[:, :, None], last.joints) + pelvis[:, None]).permute(2, 1, 0),
            "joints/confidence": confidence_logits.sigmoid(),
        }


def normalised(people: PersonBatch) -> tuple[np.ndarray, np.ndarray]:
    """COCO keypoints (2, 17, n) as tangents of the angles to the optical axis, confidence (17, n), 0 = not visible."""
    coco = joint_sets.convert(np.asarray(people.keypoints, np.float64), people.joints, "coco17")
    inverse = np.linalg.inv(np.asarray(people.K, np.float64).reshape(-1, 3, 3))
    visible = np.isfinite(coco).all(-1) & (coco[..., 2] > MIN_SCORE)
    xy1 = np.concatenate([coco[..., :2], np.ones_like(coco[..., :1])], -1)
    ray = np.einsum("nij,nkj->ikn", inverse, np.where(visible[..., None], xy1, 0))
    score = np.where(visible, np.clip(coco[..., 2], 0, 1), 0)
    return ray[:2].astype(np.float32), score.T.astype(np.float32)


def _sizes(shape: tuple[Any, ...]) -> list[int]:
    return [24 if size == "J" else int(size) for size in shape[1:]]
