"""One step of each of PostoMETRO's trainings, their losses, and the errors of what was trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.evaluation import metrics
from stages.models.pct.network import CODES, PCT, PIXELS, Tokenizer
from stages.models.postometro.network import Mesh, PostoMetro
from stages.params import TrainPostoMetroParams as Params
from stages.training.loop import StepTrainer
from stages.training.postometro import losses
from stages.training.postometro.data import KeypointExamples, PostoMetroBatch, PostoMetroExamples

DROPPED = 0.2  # share of visible joints that the tokenizer is not given
COMMITMENT, DECAY, BETA = 15.0, 0.9, 0.05
UNQUANTISED = 0.4  # share of the steps in which tokens are not quantised, so that the codes start from sensible ones
MIN_USE = 0.05  # tokens per step below which a code is replaced
RATES = {"tokenizer": (1e-2, 0.15), "classifier": (8e-4, 0.05), "mesh": (1e-4, 1e-4)}  # rate, weight decay
CLIP = 0.3
WARM_UP = 0.02  # share of the steps in which the learning rate rises; then it falls along a cosine


class PostoMetroTrainer(StepTrainer):
    """A tokenizer, classifier or mesh network in training; all but the tokenizer need images in `examples`."""

    params: Params

    def __init__(
        self,
        network: nn.Module,
        examples: PostoMetroExamples | KeypointExamples,
        params: Params,
        *,
        augment: bool = True,
        initial_files: Iterable[Path] = (),
    ) -> None:
        super().__init__(network, examples, params, initial_files)
        self.augment = augment
        for name, p in network.named_parameters():
            p.requires_grad_(is_trained(name, params))
        self.trained = [p for p in network.parameters() if p.requires_grad]
        rate, decay = RATES[params.part]
        self.rate = params.rate or rate
        self.optimiser = torch.optim.AdamW(self.trained, self.rate, weight_decay=decay, fused=True)
        self.loss = {"tokenizer": tokenizer_loss, "classifier": classifier_loss, "mesh": mesh_loss}[params.part]
        network.train()
        branch = network.pct if isinstance(network, PostoMetro) else network
        if isinstance(branch, PCT) and not (params.part == "classifier" and params.thaw):
            branch.backbone.eval()
            branch.backbone.prepare()

    def step(self) -> float:
        k, steps = self.done, self.params.steps
        warm_up = max(1, round(WARM_UP * steps))
        falling = 0.5 * (1 + math.cos(math.pi * k / steps))
        self.set_learning_rate(self.rate * min(1.0, (k + 1) / warm_up) * falling)
        rng, indices = self.draw()
        images = self.params.part != "tokenizer"
        batch = self.examples.batch(indices, rng if self.augment else None, images=images).to(self.device)
        loss = self.loss(self.network, batch, self.params, self.examples, k)
        self.optimiser.zero_grad()
        loss.backward()
        if self.params.part == "mesh":
            nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimiser.step()
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def state(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses = state["losses"]


def is_trained(name: str, params: Params) -> bool:
    """Whether a parameter is trained: never PCT in the mesh network, never the tokenizer in the classifier."""
    if params.part == "mesh":
        return not name.startswith("pct.")
    tokenizer = ".tokenizer." in name
    if params.part == "tokenizer":
        return tokenizer
    return not tokenizer and (params.thaw or name.startswith("keypoint_head."))


def frozen(names: Iterable[str], params: Params) -> list[str]:
    """The tensors of a network that its training does not change: they must come from a checkpoint."""
    names = list(names)
    if params.part == "tokenizer" or (params.part == "mesh" and params.tokens == "none"):
        return []
    guided = any(name.endswith("tokenizer.start_img_embed.weight") for name in names)
    tokenizer = [name for name in names if ".tokenizer." in name]
    backbone = [name for name in names if name.removeprefix("pct.").startswith("backbone.patch_embed.")]
    if params.part == "classifier":
        return tokenizer + ([] if params.thaw else backbone)
    if params.tokens == "keypoints":
        return tokenizer + (backbone if guided else [])
    return [name for name in names if name.startswith("pct.")]


# ---- the tokenizer


def tokenizer_loss(network: nn.Module, batch: PostoMetroBatch, params: Params, examples: Any, step: int = 0) -> Tensor:
    """Smooth L1 of the known joints after encoding, quantising and decoding, and the commitment."""
    tokenizer: Tokenizer = network.keypoint_head.tokenizer  # type: ignore[assignment, union-attr]
    joints = batch.keypoints
    if step == 0 and not tokenizer.ema_cluster_size.any():
        standardise(tokenizer, joints)
    visible = joints[..., 2:] * (torch.rand_like(joints[..., 2:]) >= DROPPED)
    encoded = tokenizer.encode(torch.cat([joints[..., :2], visible], -1))
    if step < params.steps * UNQUANTISED:
        quantised = encoded
    else:
        with torch.no_grad():
            index = tokenizer.quantise(encoded)
            renew_codebook(tokenizer, encoded, index)
            quantised = tokenizer.codebook[index]
    decoded = tokenizer.decode(encoded + (quantised - encoded).detach())
    return distance(decoded, joints) + COMMITMENT * F.mse_loss(encoded, quantised)


def distance(xy: Tensor, joints: Tensor) -> Tensor:
    """Smooth L1 of keypoints (n, 17, 2) to the known ones of (n, 17, 3), per coordinate, pixels."""
    known = joints[..., 2:]
    error = F.smooth_l1_loss(xy, joints[..., :2], beta=BETA, reduction="none") * known
    return error.sum() / known.sum().clamp(min=1) / 2


@torch.no_grad()
def standardise(tokenizer: Tokenizer, joints: Tensor) -> None:
    """Scale the first and last layer of a new tokenizer, whose input and output are pixels, to the spread of joints."""
    xy = joints[joints[..., 2] > 0][:, :2]
    mean, spread = xy.mean(0), xy.std(0)
    first, last = tokenizer.start_embed, tokenizer.recover_embed
    first.weight.div_(spread)
    first.bias.sub_(first.weight @ mean)
    last.weight.mul_(spread[:, None])
    last.bias.copy_(mean)


def renew_codebook(tokenizer: Tokenizer, encoded: Tensor, index: Tensor) -> None:
    """Each code moves towards the mean of its tokens: moving sums with decay 0.9, counts smoothed (van den Oord).

    A code that no token has used for some thirty steps is replaced by one of the batch's tokens, and so are all codes
    at first: random codes are far from all tokens, and unused ones are not updated.
    """
    tokens, owner = encoded.flatten(0, 1), index.flatten()
    count = torch.bincount(owner, minlength=CODES).to(tokens)
    total = torch.zeros_like(tokenizer.ema_w).index_add_(0, owner, tokens)
    tokenizer.ema_cluster_size.mul_(DECAY).add_(count, alpha=1 - DECAY)
    tokenizer.ema_w.mul_(DECAY).add_(total, alpha=1 - DECAY)
    dead = tokenizer.ema_cluster_size < MIN_USE
    chosen = tokens[torch.randint(len(tokens), (CODES,), device=tokens.device)]
    tokenizer.ema_w[dead] = chosen[dead]
    tokenizer.ema_cluster_size[dead] = 1.0
    tokenizer.codebook.copy_(tokenizer.ema_w / tokenizer.ema_cluster_size[:, None])


@torch.no_grad()
def tokenizer_error(tokenizer: Tokenizer, keypoints: Tensor) -> float:
    """Mean distance of known keypoints (n, 17, 3) after encoding, quantising and decoding, pixels of 256."""
    decoded = tokenizer.decode(tokenizer.codebook[tokenizer.quantise(tokenizer.encode(keypoints))])
    return float((decoded - keypoints[..., :2]).norm(dim=-1)[keypoints[..., 2] > 0].mean())


# ---- the classifier


def classifier_loss(network: nn.Module, batch: PostoMetroBatch, params: Params, examples: Any, step: int = 0) -> Tensor:
    """Cross-entropy with the encoder's codes, and smooth L1 of the pose that the soft tokens decode to.

    The pose is in cells of the map: in pixels it outweighs the codes, and the classifier only learns the mean pose.
    """
    assert isinstance(network, PCT)
    head, tokenizer = network.keypoint_head, network.keypoint_head.tokenizer
    with torch.set_grad_enabled(bool(params.thaw)):
        features = network.backbone(batch.images)
    with torch.no_grad():
        code = tokenizer.quantise(tokenizer.encode(batch.keypoints, features.detach()))
    logits = head.logits(head.mixer_input(head.conv_head(head.conv_trans(features))))
    decoded = tokenizer.decode(head.tokens(logits).soft)
    return F.cross_entropy(logits.flatten(0, 1), code.flatten()) + distance(decoded, batch.keypoints) / PIXELS


@torch.no_grad()
def classifier_scores(network: PCT, examples: PostoMetroExamples, batch: int = 16) -> tuple[float, float]:
    """Over all examples: the share of tokens whose code is right, and the mean distance of keypoints, pixels of 256."""
    network.eval()
    head, correct, distances = network.keypoint_head, [], []
    for part in batches(examples, batch):
        features = network.backbone(part.images)
        code = head.tokenizer.quantise(head.tokenizer.encode(part.keypoints, features))
        logits = head.logits(head.mixer_input(head.conv_head(head.conv_trans(features))))
        correct.append((logits.argmax(-1) == code).float().flatten())
        decoded = head.tokenizer.decode(head.tokens(logits).soft)
        distances.append((decoded - part.keypoints[..., :2]).norm(dim=-1)[part.keypoints[..., 2] > 0])
    return float(torch.cat(correct).mean()), float(torch.cat(distances).mean())


# ---- the mesh network


def predict(network: nn.Module, batch: PostoMetroBatch, tokens: str) -> Mesh:
    """The mesh of a batch, with pose tokens from its images (pct), its keypoints, or none."""
    if not isinstance(network, PostoMetro):
        return network(batch.images)
    with torch.no_grad():
        known = tokens == "keypoints"
        pose = network.pct.encode_keypoints(batch.keypoints, batch.images) if known else network.pct(batch.images)
    return network(batch.images, pose)


def mesh_loss(network: nn.Module, batch: PostoMetroBatch, params: Params, examples: Any, step: int = 0) -> Tensor:
    """The recipe's weighted sum. Meshes are compared with their pelvis (of the fine mesh) at the origin."""
    mesh = predict(network, batch, params.tokens)
    w, body = losses.RECIPES[params.recipe], examples.body
    pelvis = body.regress(mesh.fine, "h36m17")[:, :1]
    from_mesh = body.regress(mesh.fine, "lsp14")
    confidence = torch.ones_like(batch.joints[..., 0])
    total = w.token_joints * losses.joints_3d(mesh.joints, batch.joints, confidence)
    total = total + w.mesh_joints * losses.joints_3d(from_mesh, batch.joints, confidence)
    predicted = (mesh.fine, mesh.intermediate, mesh.coarse)
    for weight, vertices, true in zip(w.vertices, predicted, batch.meshes, strict=True):
        if weight:
            total = total + weight * losses.points(vertices - pelvis, true)
    for joints in (mesh.joints, from_mesh):
        projected = losses.project(joints, mesh.camera)
        total = total + w.keypoints * losses.keypoints_2d(projected, batch.joints_2d, confidence)
    if w.edges:
        pairs, faces = examples.edges.to(pelvis.device), examples.faces.to(pelvis.device)
        vertices, true = mesh.intermediate - pelvis, batch.meshes[1]
        total = total + w.edges * losses.edges(vertices, true, pairs)
        total = total + w.edge_lengths * losses.edge_lengths(vertices, pairs).mean()
        total = total + w.normals * losses.normals(vertices, true, faces)
    return total


@torch.no_grad()
def mesh_errors(network: nn.Module, examples: PostoMetroExamples, tokens: str, batch: int = 32) -> np.ndarray:
    """PA-MPJPE in mm of each example, 14 joints regressed from the mesh."""
    network.eval()
    errors = []
    for part in batches(examples, batch):
        joints = examples.body.regress(predict(network, part, tokens).fine, "lsp14")
        errors.append(metrics.pa_mpjpe(joints.double().numpy(), part.joints.double().numpy()))
    return np.concatenate(errors)


def batches(examples: PostoMetroExamples, batch: int) -> Iterable[PostoMetroBatch]:
    """All examples in order, not augmented."""
    for start in range(0, len(examples), batch):
        yield examples.batch(np.arange(start, min(start + batch, len(examples))))
