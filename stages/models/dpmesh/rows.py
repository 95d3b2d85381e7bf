"""DPMesh on rows of a picture: `hmr features` (DPMeshExtractor, DPMeshLatents) and `hmr recover` (DPMeshRecoverer).

Keypoints decide the crop; the detector's box is not looked at. Columns of earlier artefacts are used where they are
given: heatmaps (value, crop), the crop's latent, or the merged features, in which case no picture is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.checkpoints import Checkpoint
from stages.columns import JOINT_COLUMNS, SMPL_COLUMNS, Column
from stages.errors import ArtefactError, AssetError
from stages.human import crops, heatmap
from stages.human.joints import SETS
from stages.human.rotations import axis_angle_to_matrix
from stages.models import People

CROP, HEAT = 256, 32
LATENT, FEATURES, PLACE = "features/latent", "features/dpmesh", "features/crop"
CROP_COLUMN = Column(PLACE, "f4", ("R", 2, 3), "px", "affine from picture to 256-pixel crop")


@dataclasses.dataclass
class Condition:
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


def condition_of(people: People) -> Condition:
    """The crop from given latents or features, else from given heatmaps, else from the keypoints by DPMesh's rule.

    The crop is rounded to float32, as artefacts store it, so that each way gives the same bits.
    """
    keypoints = heatmap.dpmesh_keypoints(people.keypoints, people.joints)
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
        crop = crops.scaled(heatmap.condition(keypoints, people.size, HEAT).affine, CROP / HEAT)
    crop = np.asarray(crop, np.float32).astype(np.float64)
    seen = np.isfinite(crop).all((1, 2))
    xy = crops.apply(crops.scaled(crop, HEAT / CROP), keypoints[..., :2].astype(np.float64)).astype(np.float32)
    mask = (keypoints[..., 2] > 0.05) & (xy >= 0).all(-1) & (xy < HEAT).all(-1)
    return Condition(crop, np.nan_to_num(xy), mask & seen[:, None], keypoints, seen)


def crop_images(images: list[np.ndarray], frame: np.ndarray, affine: np.ndarray) -> Tensor:
    """Crops (n, 3, 256, 256) in [0, 1] of RGB uint8 pictures.

    Bilinear, zeros outside, fractions of grey levels kept. OpenCV 5 samples exactly; OpenCV 4, like the published
    environment, on a grid of 1/32 pixel (up to 4 grey levels apart on smooth pictures). Whichever is installed is used.
    """
    patches = crops.warp(images, frame, affine.astype(np.float32), CROP, np.float32)
    return torch.from_numpy(np.clip(patches, 0, 255) / np.float32(255)).permute(0, 3, 1, 2).contiguous()


class _Rows:
    """What the three share: the network, the device, the licence of the weights."""

    name = "dpmesh"
    batch_size = 4
    group_attrs: Mapping[str, Mapping[str, Any]] = {"features": {"standardised": False}}
    uses: tuple[str, ...] = ("heatmaps/value", "heatmaps/crop", LATENT, PLACE)

    def __init__(self, model: Any, *, device: str = "cpu", licence: str = "unknown") -> None:
        from stages.models.dpmesh.fast import prepare

        self.model, self.device, self.licence = prepare(model.eval().to(device)), device, licence
        self.batch_size = 4 if device == "cpu" else 64

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        from stages.models.dpmesh.names import recognises

        return recognises(names)

    @staticmethod
    def compact(checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
        """For `hmr convert`: see `weights.compact`."""
        from stages.models.dpmesh.weights import compact

        return compact(checkpoint, fold=fold, dtype=dtype)

    @staticmethod
    def describe(checkpoint: Checkpoint) -> dict[str, Any]:
        """For `hmr checkpoint`: see `weights.describe`."""
        from stages.models.dpmesh.weights import describe

        return describe(checkpoint)

    def needs_images(self, given: frozenset[str]) -> bool:
        return LATENT not in given

    def latent(self, people: People, condition: Condition) -> Tensor:
        """(n, 4, 32, 32), given or computed."""
        if LATENT in people.columns:
            return torch.from_numpy(np.asarray(people.columns[LATENT], np.float32)).to(self.device)
        image = crop_images(people.images, people.frame, condition.affine).to(self.device)
        return self.model.latent(image.to(self.model.dtype))

    def diffusion(self, people: People, condition: Condition) -> dict[str, Tensor]:
        """Maps, attention and merged features (n, 2048, 8, 8)."""
        given = people.columns.get("heatmaps/value")
        if given is not None and given.shape[1:] != (30, HEAT, HEAT):
            size = " x ".join(map(str, given.shape[1:]))
            raise ArtefactError(
                f"DPMesh takes heatmaps of 30 x 32 x 32, these are {size}", "hmr heatmaps without flags"
            )
        maps = None if given is None else torch.from_numpy(np.asarray(given, np.float32)).to(self.device)
        joints, mask = (torch.from_numpy(x).to(self.device) for x in (condition.xy, condition.mask))
        return self.model.features(self.latent(people, condition), joints, mask, maps)

    @torch.no_grad()
    def attention(self, people: People) -> dict[str, np.ndarray]:
        """The paper's Figure 6: how the crop's places look at each joint of the prompt, for `hmr view --attention`.

        {"attn16": (n, 30, 16, 16), "attn8": (n, 30, 8, 8): shares that sum to 1 over the joints of SETS["dpmesh30"],
        "seen": (n, 30) bool, "images": (n, 256, 256, 3) uint8 crops}.
        """
        condition = condition_of(people)
        found = self.diffusion(people, condition)
        patches = crop_images(people.images, people.frame, condition.affine)
        return {
            "attn16": found["attn16"].float().cpu().numpy(),
            "attn8": found["attn8"].float().cpu().numpy(),
            "seen": condition.mask,
            "images": (patches.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8),
        }


class DPMeshLatents(_Rows):
    """The crop's Stable Diffusion latent: half the work of DPMesh, the same for every checkpoint and keypoint noise."""

    name = "dpmesh-latents"
    uses = ("heatmaps/crop",)
    columns = (
        Column(LATENT, "f4", ("R", 4, 32, 32), "", "posterior mean of the SD 1.5 encoder, unscaled"),
        CROP_COLUMN,
    )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Any | None = None) -> DPMeshLatents:
        return cls(_network(checkpoint)[0], device=device, licence=_licence(checkpoint))

    @torch.no_grad()
    def __call__(self, people: People) -> dict[str, Any]:
        condition = condition_of(people)
        latent = self.latent(people, condition).float()
        return {LATENT: latent, PLACE: condition.affine.astype(np.float32), "error": condition.errors}


class DPMeshExtractor(_Rows):
    """The merged diffusion features."""

    columns = (Column(FEATURES, "f2", ("R", 2048, 8, 8), "", "DPMesh's merged features, not negative"), CROP_COLUMN)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Any | None = None) -> DPMeshExtractor:
        return cls(_network(checkpoint)[0], device=device, licence=_licence(checkpoint))

    @torch.no_grad()
    def __call__(self, people: People) -> dict[str, Any]:
        condition = condition_of(people)
        # Features reach 65504 only when weights are broken; a clamp would hide that, an infinity fails the row.
        merged = self.diffusion(people, condition)["merged"].half()
        return {FEATURES: merged, PLACE: condition.affine.astype(np.float32), "error": condition.errors}


class DPMeshRecoverer(_Rows):
    """SMPL parameters in the picture's camera, and the body's 24 joints.

    The confidence of a joint is the score of the keypoint that stands for it in the network's input, 0 where none does:
    DPMesh itself does not say how sure it is.
    """

    columns = (*SMPL_COLUMNS, *JOINT_COLUMNS)
    uses = (FEATURES, *_Rows.uses)

    def __init__(self, model: Any, body: Any, *, device: str = "cpu", licence: str = "unknown") -> None:
        super().__init__(model, device=device, licence=licence)
        self.body = body.to(device)
        self.group_attrs = {
            "smpl": {"body_model": body.name, "gender": body.gender},
            "joints": {"joints": list(SETS["smpl24"])},
        }

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Any | None = None) -> DPMeshRecoverer:
        """`body`: the body to report joints of; else the checkpoint's own SMPL, else the embedded one."""
        from stages.human.body import Body, load_body
        from stages.models.dpmesh.names import body_arrays

        model, arrays = _network(checkpoint)
        own = body_arrays(arrays)
        if body is None:
            body = Body.from_arrays(**own, name="smpl", licence="SMPL licence") if own else load_body("embedded")
        return cls(model, body, device=device, licence=_licence(checkpoint))

    def needs_images(self, given: frozenset[str]) -> bool:
        return FEATURES not in given and LATENT not in given

    @torch.no_grad()
    def __call__(self, people: People) -> dict[str, Any]:
        from stages.models.dpmesh.network import focal_of
        from stages.models.dpmesh.outputs import full_translation

        condition = condition_of(people)
        if FEATURES in people.columns:
            merged = torch.from_numpy(np.asarray(people.columns[FEATURES], np.float32)).to(self.device)
        else:
            merged = self.diffusion(people, condition)["merged"]
        out = self.model.regress(merged)
        back = crops.invert(np.where(condition.seen[:, None, None], condition.affine, np.eye(2, 3)))
        center = torch.from_numpy(crops.apply(back, np.full((len(people), 1, 2), CROP / 2))[:, 0]).float()
        side = torch.from_numpy(back[:, 0, 0] * CROP).float()
        focal, K = focal_of(torch.from_numpy(people.size)).float(), torch.from_numpy(people.K).float()
        place = (x.to(self.device) for x in (focal, center, side, K))
        transl = full_translation(out["camera"], *place)
        pose = torch.cat([out["global_orient"][:, None], out["body_pose"]], 1)
        return {
            "smpl/global_orient": out["global_orient"],
            "smpl/body_pose": out["body_pose"],
            "smpl/betas": out["betas"],
            "smpl/transl": transl,
            "joints/xyz": self.body.joints(axis_angle_to_matrix(pose), out["betas"], transl),
            "joints/confidence": (condition.keypoints[:, :24, 2] * condition.mask[:, :24]).clip(0, 1),
            "error": condition.errors,
        }


def _network(checkpoint: Checkpoint | None) -> tuple[Any, dict[str, Tensor]]:
    if checkpoint is None:
        raise AssetError(
            "DPMesh has no weights of its own in hmr",
            "give the authors' checkpoint by --ckpt (EternalEvan/DPMesh, for example 3dpw-pc_best_ckpt.pth.tar)",
        )
    from stages.models.dpmesh.weights import load

    return load(checkpoint)


def _licence(checkpoint: Checkpoint | None) -> str:
    from stages.models.dpmesh.names import LICENCE

    known = checkpoint.licence if checkpoint else "unknown"
    return LICENCE if known == "unknown" else known
