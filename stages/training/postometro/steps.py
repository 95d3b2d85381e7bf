"""One step of each of PostoMETRO's trainings, and a training that can be stopped between any two of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.engine.stored_params import to_json
from stages.errors import UsageError
from stages.evaluation import metrics
from stages.models.pct.network import CODES, PCT, PIXELS, Tokenizer
from stages.models.postometro.network import Mesh, PostoMetro
from stages.training.loop import BySteps
from stages.training.postometro import losses
from stages.training.postometro.data import Keypoints, PostoMetroBatch, PostoMetroExamples

DROPPED = 0.2  # visible joints that the tokenizer is not shown
COMMITMENT, DECAY, BETA = 15.0, 0.9, 0.05
UNQUANTISED = 0.4  # share of the steps in which tokens pass as they are, so that the codes begin on sensible ones
FORGOTTEN = 0.05  # tokens a step below which a code is given up
RATES = {"tokenizer": (1e-2, 0.15), "classifier": (8e-4, 0.05), "mesh": (1e-4, 1e-4)}  # rate, weight decay
CLIP = 0.3
WARM = 0.02  # share of the steps in which the rate rises; it falls as a cosine after


class PostoMetroTrainer(BySteps):
    """A network in training. A step's random numbers follow from the seed and the step's number alone, so a training
    that was stopped and continued is the same training.

    `params` are stages.training.postometro.train.Params; `examples` need pictures for all parts but the tokenizer.
    """

    origin = ""  # a fingerprint of the files that it began with

    def __init__(
        self, network: nn.Module, examples: PostoMetroExamples | Keypoints, params: Any, *, augment: bool = True
    ) -> None:
        self.network, self.examples, self.params, self.augment = network, examples, params, augment
        self.device = str(next(network.parameters()).device)
        self.losses: list[float] = []
        for name, p in network.named_parameters():
            p.requires_grad_(trained(name, params))
        self.learned = [p for p in network.parameters() if p.requires_grad]
        rate, decay = RATES[params.part]
        self.rate = params.rate or rate
        self.optimiser = torch.optim.AdamW(self.learned, self.rate, weight_decay=decay, fused=True)
        self.loss = {"tokenizer": tokenizer_loss, "classifier": classifier_loss, "mesh": mesh_loss}[params.part]
        network.train()
        branch = network.pct if isinstance(network, PostoMetro) else network
        if isinstance(branch, PCT) and not (params.part == "classifier" and params.thaw):
            branch.backbone.eval()
            branch.backbone.prepare()

    def step(self) -> float:
        """One step; its loss."""
        k, steps = self.done, self.params.steps
        warm = max(1, round(WARM * steps))
        falling = 0.5 * (1 + math.cos(math.pi * k / steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, (k + 1) / warm) * falling
        rng = np.random.default_rng([self.params.seed, k])
        torch.manual_seed(int(rng.integers(2**62)))
        which = rng.integers(0, len(self.examples), self.params.batch)
        pictures = self.params.part != "tokenizer"
        batch = self.examples.batch(which, rng if self.augment else None, pictures=pictures).to(self.device)
        loss = self.loss(self.network, batch, self.params, self.examples, k)
        if not torch.isfinite(loss):
            raise UsageError(f"the loss is no number any more at step {k}", "give a lower --rate")
        self.optimiser.zero_grad()
        loss.backward()
        if self.params.part == "mesh":
            nn.utils.clip_grad_norm_(self.learned, CLIP)
        self.optimiser.step()
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def fingerprint(self) -> str:
        """Of what a state must agree on to be continued."""
        sizes = {name: tuple(t.shape) for name, t in self.network.state_dict().items()}
        text = f"{to_json(self.params)} {self.examples.fingerprint} {sorted(sizes.items())}{self.origin}"
        return hashlib.sha256(text.encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """All that changes."""
        return {
            "losses": self.losses,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses = state["losses"]


def fit(
    network: nn.Module, examples: PostoMetroExamples | Keypoints, params: Any, *, augment: bool = True
) -> list[float]:
    """Train in place, all steps; the loss of each. `network` as from `postometro.build`, or smaller."""
    trainer = PostoMetroTrainer(network, examples, params, augment=augment)
    while trainer.done < params.steps:
        trainer.step()
    network.eval()
    return trainer.losses


def trained(name: str, params: Any) -> bool:
    """Whether a parameter is learned: never PCT in the mesh network, never the tokenizer in the classifier."""
    if params.part == "mesh":
        return not name.startswith("pct.")
    tokenizer = ".tokenizer." in name
    if params.part == "tokenizer":
        return tokenizer
    return not tokenizer and (params.thaw or name.startswith("keypoint_head."))


def frozen(names: Iterable[str], params: Any) -> list[str]:
    """Those of a network's tensors that training uses as they are: they must come from a checkpoint."""
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


def tokenizer_loss(network: nn.Module, batch: PostoMetroBatch, params: Any, examples: Any, step: int = 0) -> Tensor:
    """Smooth L1 of the given joints after encoding, quantising and decoding, and the commitment."""
    tokenizer: Tokenizer = network.keypoint_head.tokenizer  # type: ignore[assignment, union-attr]
    joints = batch.keypoints
    if step == 0 and not tokenizer.ema_cluster_size.any():
        centre(tokenizer, joints)
    shown = joints[..., 2:] * (torch.rand_like(joints[..., 2:]) >= DROPPED)
    encoded = tokenizer.encode(torch.cat([joints[..., :2], shown], -1))
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
    """Smooth L1 of keypoints (n, 17, 2) to the given ones of (n, 17, 3), per coordinate, pixels."""
    given = joints[..., 2:]
    off = F.smooth_l1_loss(xy, joints[..., :2], beta=BETA, reduction="none") * given
    return off.sum() / given.sum().clamp(min=1) / 2


@torch.no_grad()
def centre(tokenizer: Tokenizer, joints: Tensor) -> None:
    """Scale the first and last layer of a new tokenizer, which take and give pixels, to the spread of the joints."""
    xy = joints[joints[..., 2] > 0][:, :2]
    mean, spread = xy.mean(0), xy.std(0)
    first, last = tokenizer.start_embed, tokenizer.recover_embed
    first.weight.div_(spread)
    first.bias.sub_(first.weight @ mean)
    last.weight.mul_(spread[:, None])
    last.bias.copy_(mean)


def renew_codebook(tokenizer: Tokenizer, encoded: Tensor, index: Tensor) -> None:
    """Each code moves towards the mean of its tokens: moving sums with decay 0.9, counts smoothed (van den Oord).

    A code that no token has come near for some thirty steps is put on one of the tokens at hand, and so are all at
    first: random codes lie where no token ever does, and forgotten ones stay behind.
    """
    tokens, owner = encoded.flatten(0, 1), index.flatten()
    count = torch.bincount(owner, minlength=CODES).to(tokens)
    total = torch.zeros_like(tokenizer.ema_w).index_add_(0, owner, tokens)
    tokenizer.ema_cluster_size.mul_(DECAY).add_(count, alpha=1 - DECAY)
    tokenizer.ema_w.mul_(DECAY).add_(total, alpha=1 - DECAY)
    dead = tokenizer.ema_cluster_size < FORGOTTEN
    chosen = tokens[torch.randint(len(tokens), (CODES,), device=tokens.device)]
    tokenizer.ema_w[dead] = chosen[dead]
    tokenizer.ema_cluster_size[dead] = 1.0
    tokenizer.codebook.copy_(tokenizer.ema_w / tokenizer.ema_cluster_size[:, None])


@torch.no_grad()
def tokenizer_error(tokenizer: Tokenizer, keypoints: Tensor) -> float:
    """Mean distance of given keypoints (n, 17, 3) after encoding, quantising and decoding, pixels of 256."""
    decoded = tokenizer.decode(tokenizer.codebook[tokenizer.quantise(tokenizer.encode(keypoints))])
    return float((decoded - keypoints[..., :2]).norm(dim=-1)[keypoints[..., 2] > 0].mean())


# ---- the classifier


def classifier_loss(network: nn.Module, batch: PostoMetroBatch, params: Any, examples: Any, step: int = 0) -> Tensor:
    """Cross-entropy with the encoder's codes, and smooth L1 of the pose that the soft tokens decode to.

    The pose counts in cells of the map: in pixels it drowns the codes, and the classifier only learns the mean pose.
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
    """Over all examples: the share of tokens whose code is found, and the mean distance of keypoints, pixels of 256."""
    network.eval()
    head, right, away = network.keypoint_head, [], []
    for some in batches(examples, batch):
        features = network.backbone(some.images)
        code = head.tokenizer.quantise(head.tokenizer.encode(some.keypoints, features))
        logits = head.logits(head.mixer_input(head.conv_head(head.conv_trans(features))))
        right.append((logits.argmax(-1) == code).float().flatten())
        decoded = head.tokenizer.decode(head.tokens(logits).soft)
        away.append((decoded - some.keypoints[..., :2]).norm(dim=-1)[some.keypoints[..., 2] > 0])
    return float(torch.cat(right).mean()), float(torch.cat(away).mean())


# ---- the mesh network


def predict(network: nn.Module, batch: PostoMetroBatch, tokens: str) -> Mesh:
    """The mesh of a batch with the pose tokens that `tokens` names."""
    if not isinstance(network, PostoMetro):
        return network(batch.images)
    with torch.no_grad():
        given = tokens == "keypoints"
        pose = network.pct.given(batch.keypoints, batch.images) if given else network.pct(batch.images)
    return network(batch.images, pose)


def mesh_loss(network: nn.Module, batch: PostoMetroBatch, params: Any, examples: Any, step: int = 0) -> Tensor:
    """The recipe's weighted sum. Meshes are compared with their pelvis (of the fine mesh) at the origin."""
    mesh = predict(network, batch, params.tokens)
    w, body = losses.RECIPES[params.recipe], examples.body
    pelvis = body.regress(mesh.fine, "h36m17")[:, :1]
    from_mesh = body.regress(mesh.fine, "lsp14")
    sure = torch.ones_like(batch.joints[..., 0])
    total = w.token_joints * losses.joints_3d(mesh.joints, batch.joints, sure)
    total = total + w.mesh_joints * losses.joints_3d(from_mesh, batch.joints, sure)
    predicted = (mesh.fine, mesh.intermediate, mesh.coarse)
    for weight, one, true in zip(w.vertices, predicted, batch.meshes, strict=True):
        if weight:
            total = total + weight * losses.points(one - pelvis, true)
    for joints in (mesh.joints, from_mesh):
        seen = losses.project(joints, mesh.camera)
        total = total + w.keypoints * losses.keypoints_2d(seen, batch.places, sure)
    if w.edges:
        pairs, faces = examples.edges.to(pelvis.device), examples.faces.to(pelvis.device)
        one, true = mesh.intermediate - pelvis, batch.meshes[1]
        total = total + w.edges * losses.edges(one, true, pairs)
        total = total + w.edge_lengths * losses.edge_lengths(one, pairs).mean()
        total = total + w.normals * losses.normals(one, true, faces)
    return total


@torch.no_grad()
def mesh_errors(network: nn.Module, examples: PostoMetroExamples, tokens: str, batch: int = 32) -> np.ndarray:
    """PA-MPJPE in mm of each example, 14 joints regressed from the mesh."""
    network.eval()
    errors = []
    for some in batches(examples, batch):
        found = examples.body.regress(predict(network, some, tokens).fine, "lsp14")
        errors.append(metrics.pa_mpjpe(found.double().numpy(), some.joints.double().numpy()))
    return np.concatenate(errors)


def batches(examples: PostoMetroExamples, batch: int) -> Iterable[PostoMetroBatch]:
    """All examples in order, as they are."""
    for start in range(0, len(examples), batch):
        yield examples.batch(np.arange(start, min(start + batch, len(examples))))
