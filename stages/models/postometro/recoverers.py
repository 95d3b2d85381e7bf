"""PostoMETRO and FastMETRO on rows: a crop to vertices, joints and SMPL parameters in the camera of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import JOINT_COLUMNS, SMPL_COLUMNS, VERTEX_COLUMN, Column
from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint
from stages.geometry import cameras, crops
from stages.keypoints.joint_sets import SETS, convert
from stages.models.backbones.imagenet import imagenet_normalised
from stages.models.base import PersonBatch, PersonModel
from stages.models.pct import weights as pct_weights
from stages.models.pct.network import PCT, TOKENS, WIDTH, PoseTokens
from stages.models.postometro import weights
from stages.models.postometro.network import FastMetro, Mesh, PostoMetro
from stages.smpl import mesh_sampling
from stages.smpl.body import Body, load_body
from stages.smpl.fitting import fit_smpl

GROW = 1.2  # the annotations' square over the tight box, as in SPIN, whose data these networks are trained on
MIN_SCALE = 0.05  # a person of 1/20 of the smallest plausible size: keeps bad output finite and before the camera
SOFT, SCORES = "features/pct_tokens", "features/pct_scores"
RESIDUAL = Column("extra/fit_residual", "f4", ("R",), "m", "mean distance of the fitted SMPL mesh to the vertices")


class _MeshRecoverer(PersonModel):
    """The part that both share. The vertices are the network's output; /smpl is fitted to them, and extra/fit_residual
    holds the distance of that fit.

    Joints are the network's 14. Neither network predicts the confidence of a joint: FastMETRO's is 1, PostoMETRO's is
    the mean softmax peak of its pose tokens.
    """

    pose_tokens = False
    from_keypoints = False
    batch_size = 8
    columns = (*SMPL_COLUMNS, *JOINT_COLUMNS, VERTEX_COLUMN, RESIDUAL)

    def __init__(self, network: FastMetro, body: Body, name: str, licence: str, device: str = "cpu") -> None:
        self.network, self.body, self.device, self.licence = network, body.to(device), device, licence
        self.name = name
        attrs = {"body_model": body.name, "gender": body.gender}
        self.group_attrs = {
            "smpl": attrs,
            "joints": {"joints": list(SETS["lsp14"])},
            "vertices": attrs,
        }

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return weights.is_mesh_network(names, cls.pose_tokens)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> _MeshRecoverer:
        """`body`: whose vertices the network predicts (published weights: SMPL's); else the embedded one."""
        if checkpoint is None:
            raise AssetError(
                f"{cls.__name__.removesuffix('Recoverer')} has no weights of its own in hmr",
                "give a checkpoint by --ckpt; docs/postometro.md says what is published and how to train one",
            )
        network, layout = weights.load_mesh_network(checkpoint.without(*pct_weights.PREFIXES), checkpoint.where)
        body = body or load_body("embedded")
        levels = mesh_sampling.of_body(body)
        trained_on = checkpoint.metadata.get("levels", "")
        if trained_on and mesh_sampling.selection(levels) != trained_on:
            levels = mesh_sampling.of_body(body, derive=True)
        if trained_on and mesh_sampling.selection(levels) != trained_on:
            raise AssetError(
                f"{checkpoint.where} was trained on another selection of the vertices of {body.name}",
                f"a {mesh_sampling.PUBLISHED} was used then, or is used now; see docs/postometro.md",
            )
        if levels.counts[1:] != layout.counts:
            raise AssetError(
                f"{checkpoint.where} is for meshes of {layout.counts}, the body {body.name} has {levels.counts[1:]}",
                "name the body that it was trained on by --body",
            )
        remark = check_body(checkpoint, body, levels)
        network.set_body(levels).to(device).prepare()
        recoverer = cls(network, body, layout.name, checkpoint.licence, device)
        recoverer.remark = remark
        return recoverer

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        box, errors = metro_boxes(people.box, self.network.side)
        images = normalised_crops(people, box, self.network.side).to(self.device)
        mesh, confidence = self.predict(images, people, box)
        K = torch.from_numpy(np.asarray(people.K, np.float32)).to(self.device)
        transl = mesh_translation(mesh, torch.from_numpy(box).float().to(self.device), K)
        vertices = mesh.fine + transl[:, None]
        fit = fit_smpl(self.body, vertices)
        return {
            "smpl/global_orient": fit.global_orient,
            "smpl/body_pose": fit.body_pose,
            "smpl/betas": fit.betas,
            "smpl/transl": fit.transl,
            "joints/xyz": mesh.joints + transl[:, None],
            "joints/confidence": confidence[:, None].expand(-1, mesh.joints.shape[1]),
            "vertices/xyz": vertices,
            "extra/fit_residual": fit.residual,
            "error": errors,
        }

    def predict(self, images: Tensor, people: PersonBatch, box: np.ndarray) -> tuple[Mesh, Tensor]:
        """The mesh of crops (n, 3, side, side) of integer boxes (n, 4), and its confidence (n,)."""
        return self.network(images), images.new_ones(len(images))


class FastMetroRecoverer(_MeshRecoverer):
    """FastMETRO (ECCV 2022), S, M or L, with ResNet-50 or HRNet-W64. The SMPL regressor that some files
    have predicts parameters that need not agree with the mesh; for all files, those fitted to the mesh are written."""

    name = "fastmetro"


class PostoMetroRecoverer(_MeshRecoverer):
    """PostoMETRO, S, M or L, with ResNet-50 or HRNet-W48 and PCT of any size.

    Pose tokens are four fifths of the work and depend on the crop alone: where an artefact holds them (`hmr features
    --model pct`), they are used instead of being computed. A network that was trained with the tokens of keypoints
    (`hmr train postometro --tokens keypoints`) encodes the keypoints of the detections.
    """

    name = "postometro"
    pose_tokens = True
    uses = (SOFT, SCORES)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> _MeshRecoverer:
        recoverer = super().load(checkpoint, device=device, body=body)
        if checkpoint is not None and checkpoint.metadata.get("tokens") == "keypoints":
            recoverer.from_keypoints = True
            recoverer.name = f"{recoverer.name}, tokens of given keypoints"
        return recoverer

    def predict(self, images: Tensor, people: PersonBatch, box: np.ndarray) -> tuple[Mesh, Tensor]:
        assert isinstance(self.network, PostoMetro)
        pose = stored_tokens(people, self.device)
        if pose is None and self.from_keypoints:
            pose = self.network.pct.encode_keypoints(crop_keypoints(people, box).to(self.device), images)
        pose = pose or self.network.pct(images)
        return self.network(images, pose), pose.peak.mean(1)


class PctExtractor(PersonModel):
    """PCT's pose tokens of METRO's 256-pixel crop, for PostoMETRO: 34 x 512, and score and softmax peak of each.

    From a PostoMETRO file or PCT's. The batch norms of the PCT in a PostoMETRO file have drifted from the published
    ones, so use the same file as for recovery.
    """

    name = "pct"
    licence = "PCT weights: see their authors"
    batch_size = 8
    columns = (
        Column(SOFT, "f4", ("R", TOKENS, WIDTH), "", "soft pose tokens"),
        Column(SCORES, "f4", ("R", TOKENS, 2), "", "largest raw logit of each token, and its probability"),
    )
    group_attrs = {"features": {"standardised": False}}  # noqa: RUF012

    def __init__(self, network: PCT, device: str = "cpu") -> None:
        self.network, self.device = network.to(device).prepare(), device

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return pct_weights.is_pct(names) or weights.is_mesh_network(names, pose_tokens=True)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> PctExtractor:
        if checkpoint is None:
            raise AssetError("PCT has no weights of its own in hmr", "give a PostoMETRO or PCT file by --ckpt")
        if checkpoint.metadata.get("tokens") == "keypoints":
            raise AssetError(
                f"{checkpoint.where} was trained with the tokens of keypoints; its PCT may never have seen an image",
                "hmr recover needs no --features for it",
            )
        tensors = checkpoint.without(*pct_weights.PREFIXES)
        inner = {name.removeprefix("pct."): t for name, t in tensors.items() if name.startswith("pct.")}
        return cls(pct_weights.load_pct(inner or tensors, checkpoint.where), device)

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        box, errors = metro_boxes(people.box, PostoMetro.side)
        pose = self.network(normalised_crops(people, box, PostoMetro.side).to(self.device))
        return {SOFT: pose.soft, SCORES: torch.stack([pose.scores[..., 0], pose.peak], -1), "error": errors}


def stored_tokens(people: PersonBatch, device: str) -> PoseTokens | None:
    """The pose tokens that an earlier stage stored, or None."""
    if SOFT not in people.columns or SCORES not in people.columns:
        return None
    soft = torch.from_numpy(np.asarray(people.columns[SOFT], np.float32)).to(device)
    scores = torch.from_numpy(np.asarray(people.columns[SCORES], np.float32)).to(device)
    return PoseTokens(soft.view(-1, TOKENS, WIDTH), scores[..., :1], scores[..., 1])


def check_body(checkpoint: Checkpoint, body: Body, levels: mesh_sampling.MeshSampling) -> str:
    """The warning for a network whose mesh may not be this body's, which would scatter its vertices; '' if it is.

    Raises AssetError where the mesh is certainly another.
    """
    trained_on = checkpoint.metadata.get("body", "")
    if trained_on and trained_on != body.name:
        raise AssetError(
            f"{checkpoint.where} was trained on the body {trained_on}, not on {body.name}",
            f"name it: --body {trained_on}",
        )
    if not trained_on and not mesh_sampling.is_published(levels):
        return (
            f"{checkpoint.where} does not say what body it is for, and published weights know SMPL's vertices as "
            f"{mesh_sampling.PUBLISHED} selects them; those of the body {body.name} differ (docs/postometro.md)"
        )
    return ""


# ---- from the image to a crop and back


def metro_boxes(box: np.ndarray, side: int) -> tuple[np.ndarray, list[str]]:
    """METRO's integer boxes (n, 4) of detected boxes (n, 4) for crops of `side`, and an error text for each ('' =
    none)."""
    valid = np.isfinite(box).all(1) & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    box = np.where(valid[:, None], box, [0, 0, 1, 1])
    center, extent = crops.square_boxes(box, GROW)
    integer = crops.metro_boxes(center, np.maximum(extent, 2) / 200, side)
    return integer, ["" if v else "the box is empty or not finite" for v in valid]


def normalised_crops(people: PersonBatch, box: np.ndarray, side: int) -> Tensor:
    """Crops (n, 3, side, side) of integer boxes (n, 4), ImageNet-normalised."""
    return imagenet_normalised(crops.cut_and_resize(people.images, people.frame, box, side))


def crop_keypoints(people: PersonBatch, box: np.ndarray) -> Tensor:
    """COCO keypoints (n, 17, 3) in pixels of the 256-pixel crops of integer boxes (n, 4): x, y, 1 = visible."""
    keypoints = convert(people.keypoints, people.joints, "coco17")
    visible = (keypoints[..., 2:] > 0) & np.isfinite(keypoints).all(-1, keepdims=True)
    xy = crops.apply(crops.resize_affine(box, PostoMetro.side), np.where(visible, keypoints[..., :2], 0))
    return torch.from_numpy(np.concatenate([np.where(visible, xy, 0), visible], -1)).float()


def mesh_translation(mesh: Mesh, box: Tensor, K: Tensor) -> Tensor:
    """Translation (n, 3) m of each mesh into the image's camera; box (n, 4) of the crop, far edge excluded, K (n, 3,
    3).

    The network's camera has no depth: the mesh's middle is moved to where the image's camera projects it at the same
    scale.
    """
    camera = torch.cat([mesh.camera[:, :1].clamp(min=MIN_SCALE), mesh.camera[:, 1:]], 1)
    center, side = (box[:, :2] + box[:, 2:]) / 2, box[:, 2] - box[:, 0]
    transl = cameras.weak_to_transl(camera, center, side, K)
    depth = mesh.fine[..., 2].mean(1)
    return transl - torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), depth], 1)
