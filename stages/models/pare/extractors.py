"""The image vectors that ScoreHMR's prior can be conditioned on: PARE's part features, ProHMR's ResNet-50 vector."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.artefacts.kinds import Column
from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys
from stages.geometry import crops
from stages.models.backbones.imagenet import imagenet_normalised
from stages.models.backbones.resnet import ResNet, fold_batch_norms
from stages.models.base import PersonBatch, PersonModel
from stages.models.pare.network import PARTS, POSE_CHANNELS, SHAPE_CHANNELS, Pare
from stages.smpl.body import Body

SIDE = 224


def prepare(people: PersonBatch) -> Tensor:
    """Normalised crops (n, 3, 224, 224) of the square around each box, no margin, bilinear, black outside."""
    center, side = crops.square_boxes(people.box)
    patches = crops.warp(people.images, people.frame, crops.square_affine(center, side, SIDE), SIDE, np.float32)
    return imagenet_normalised(patches)


class _ImageVector(PersonModel):
    """The part that both extractors share. Features are written raw; `hmr refine` standardises them with its own
    statistics."""

    batch_size = 16
    width = 0
    group_attrs = {"features": {"standardised": False}}  # noqa: RUF012

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        self.network, self.device = fold_batch_norms(network.eval()).to(device), device
        self.columns = (Column(f"features/{self.name}", "f4", ("R", self.width), "", "image vector, not standardised"),)

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        return {f"features/{self.name}": self.features(prepare(people).to(self.device))}

    @abc.abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """images (n, 3, 224, 224) -> (n, width)."""


class PareExtractor(_ImageVector):
    """4608 numbers: 128 x 24 pose features, then 64 x 24 camera and shape features, channel-major.

    Reads `pare_checkpoint.ckpt` (Lightning; names under `state_dict.model.`). Its code and weights are for
    non-commercial use, and the weights stay with their user.
    """

    name = "pare"
    licence = "PARE, MPI non-commercial"
    width = (POSE_CHANNELS + SHAPE_CHANNELS) * PARTS

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return any("head.keypoint_deconv_layers.0.weight" in name for name in names)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> PareExtractor:
        """Raises AssetError when a backbone or head weight is missing (the released program overlooks that)."""
        checkpoint = _required(checkpoint, "pare_checkpoint.ckpt")
        return cls(_fill(Pare(), checkpoint.without("state_dict.", "model."), checkpoint.where), device)

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([part.flatten(1) for part in self.network(images)], 1)


class ProHmrExtractor(_ImageVector):
    """2048 numbers: ResNet-50, averaged over the 7 x 7 map. Reads ProHMR's `checkpoint.pt`, names under `backbone.`."""

    name = "prohmr"
    licence = "ProHMR, BSD 3-Clause"
    width = 2048

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return "backbone.layer4.2.conv3.weight" in {name.removeprefix("state_dict.") for name in names}

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> ProHmrExtractor:
        checkpoint = _required(checkpoint, "ProHMR's checkpoint.pt")
        return cls(_fill(ResNet(), checkpoint.without("state_dict.", "backbone."), checkpoint.where), device)

    def features(self, images: Tensor) -> Tensor:
        return self.network(images).mean((2, 3))


def _required(checkpoint: Checkpoint | None, what: str) -> Checkpoint:
    if checkpoint is None:
        raise AssetError(f"this extractor needs published weights: {what}", "give the file by --ckpt FILE")
    return checkpoint


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """Load what the network needs; the file may hold more (regressor, body model, losses)."""
    needed = network.state_dict()
    # Counters of batch norms are not weights, and some files lack them.
    needed = {name: value for name, value in needed.items() if not name.endswith("num_batches_tracked")}
    used = {name: tensors[name] for name in needed if name in tensors}
    check_keys(needed, used, where=where)
    network.load_state_dict(used, strict=False)
    return network
