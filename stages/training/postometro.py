"""PostoMETRO, FastMETRO and PCT trained: the pose tokenizer, the token classifier, the mesh network.

In: a detections artefact with pictures and true bodies in group `extra` (`hmr synth` writes such). Out: a checkpoint
under the published names, which `hmr recover` and `hmr detect --detector pct` read, with the name of its body inside.

    hmr train postometro --part tokenizer --data train.detections.h5 -o tokens.safetensors
    hmr train postometro --part mesh --data train.detections.h5 --init fastmetro.bin --init pct.pth -o mesh.safetensors

Tokenizer as Geng et al. (PCT, 2023): AdamW 1e-2, commitment 15, codes renewed with decay 0.9; for the classifier the
Swin and the tokenizer are frozen. Mesh network as FastMETRO's program: AdamW 1e-4, gradients clipped at 0.3; PCT is
frozen and, unlike there, kept in evaluation mode, or its batch norms would drift with the data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.artefact import Artefact, open_artefact
from stages.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stages.errors import AssetError, UsageError
from stages.human import metrics
from stages.human.body import Body, load_body
from stages.human.mesh_levels import MeshLevels, of_body
from stages.models import pct
from stages.models.pct import CODES, PCT, PoseTokens, Tokenizer
from stages.models.postometro.loading import renamed
from stages.models.postometro.network import FastMetro, Mesh, PostoMetro
from stages.models.swin_v2 import DEPTHS, WIDTHS
from stages.params import param
from stages.training import postometro_losses as losses
from stages.training.postometro_data import Batch, Examples

CONFIDENCE = 10.0  # the score of a token that comes from given keypoints (PostoMETRO, table 6)
DROPPED = 0.2  # visible joints that the tokenizer is not shown
COMMITMENT, DECAY, BETA = 15.0, 0.9, 0.05
UNQUANTISED = 0.4  # share of the steps in which tokens pass as they are, so that the codes begin on sensible ones
FORGOTTEN = 0.05  # tokens a step below which a code is given up
RATES = {"tokenizer": (1e-2, 0.15), "classifier": (8e-4, 0.05), "mesh": (1e-4, 1e-4)}  # rate, weight decay
CLIP = 0.3


@dataclasses.dataclass(frozen=True)
class Params:
    """Settings of `hmr train postometro`."""

    part: str = param("mesh", "tokenizer, classifier or mesh.")
    recipe: str = param("code", "Losses of the mesh network: paper or code.")
    tokens: str = param("pct", "Pose tokens of the mesh network: pct (from the crop), keypoints (given ones) or none.")
    size: str = param("L", "S, M or L: 1, 2 or 3 layers in each half of each stage.")
    backbone: str = param("resnet50", "resnet50, hrnet_w48 or hrnet_w64.")
    swin: str = param("base", "PCT's Swin: base, large or huge.")
    steps: int = param(1000, "Steps of the optimiser.")
    batch: int = param(16, "People per step.")
    rate: float = param(0.0, "Learning rate; 0 = the published one.")
    body: str = param("embedded", "Body model, by name or file.")
    seed: int = param(0, "Of initial weights, order and augmentation.")


def run(
    data: Path | Artefact,
    out: Path,
    params: Params = Params(),
    device: str = "cpu",
    report: Any = None,
    *,
    init: Sequence[Path] = (),
    root: Path | None = None,
) -> Path:
    """Train one part on the people of `data` and write it to `out`.

    `init`: checkpoints whose tensors of the same names and shapes are taken over, later ones over earlier ones.
    Raises UsageError (settings), AssetError (checkpoints, body), ArtefactError (data without truth).
    """
    check(params)
    torch.manual_seed(params.seed)
    body = load_body(params.body)
    network = build(params, body)
    taken = {str(path): initialise(network, read_checkpoint(path)) for path in init}
    for name, count in taken.items():
        if not count:
            raise AssetError(f"{name} has no tensor that the {params.part} could begin with", "is it of another size?")
    table = data if isinstance(data, Artefact) else open_artefact(data, "detections")
    side = network.side if isinstance(network, FastMetro) else PostoMetro.side
    examples = Examples(table, body, of_body(body), side, root)
    history = fit(network.to(device), examples, params, note=getattr(report, "note", None))
    card = {
        "body": body.name,
        "recipe": f"{params.part} {params.recipe} {params.tokens} {params.steps} x {params.batch}",
        "loss": f"{history[0]:.4g} to {history[-1]:.4g}",
        "licence": f"as its data and initial weights; body {body.licence}",
    }
    return write_checkpoint(out, network.state_dict(), card)


def check(params: Params) -> None:
    """Raise UsageError for settings that do not exist."""
    choices = {
        "part": ("tokenizer", "classifier", "mesh"),
        "recipe": tuple(losses.RECIPES),
        "tokens": ("pct", "keypoints", "none"),
        "size": tuple("SML"),
        "backbone": ("resnet50", "hrnet_w48", "hrnet_w64"),
        "swin": tuple(WIDTHS),
    }
    for name, allowed in choices.items():
        if getattr(params, name) not in allowed:
            raise UsageError(f"--{name} {getattr(params, name)}: one of {', '.join(allowed)}")
    if min(params.steps, params.batch) < 1 or params.rate < 0:
        raise UsageError("--steps and --batch must be at least 1, --rate 0 or more")


def build(params: Params, body: Body) -> nn.Module:
    """The network of published sizes that `params` name."""
    if params.part == "mesh":
        depth = "SML".index(params.size) + 1
        levels = of_body(body)
        if params.tokens == "none":
            return on_body(FastMetro(params.backbone, depth, levels.counts[1:]), levels)  # type: ignore[arg-type]
        # Given keypoints need no picture: their tokenizer is the one without image guidance.
        branch = PCT(WIDTHS[params.swin], DEPTHS[params.swin], guided=params.tokens == "pct")
        return on_body(PostoMetro(params.backbone, depth, levels.counts[1:], pct=branch), levels)  # type: ignore[arg-type]
    guided = params.part == "classifier"
    return PCT(WIDTHS[params.swin], DEPTHS[params.swin], guided) if guided else Alone(Tokenizer(None))


@torch.no_grad()
def on_body(network: FastMetro, levels: MeshLevels) -> FastMetro:
    """A new network on a body. Its learned upsampling begins as the one that follows from the mesh."""
    columns, weights = (torch.from_numpy(x) for x in levels.upsampling(1))
    learned = network.coarse2intermediate_upsample
    learned.weight.zero_().scatter_add_(1, columns, weights.float())
    learned.bias.zero_()
    return network.set_body(levels)


class Alone(nn.Module):
    """A tokenizer under the names that it has in a pose model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.keypoint_head = nn.Module()
        self.keypoint_head.tokenizer = tokenizer


def initialise(network: nn.Module, checkpoint: Checkpoint) -> int:
    """Take over what fits by name and shape: FastMETRO's and PCT's files into a PostoMETRO. How many tensors did."""
    own = network.state_dict()
    given = renamed(checkpoint.without(*pct.PREFIXES))
    known: Mapping[str, Tensor] = {**given, **{f"pct.{name}": t for name, t in given.items() if pct_name(name)}}
    fitting = {name: t for name, t in known.items() if name in own and t.shape == own[name].shape}
    network.load_state_dict(fitting, strict=False)
    return len(fitting)


def pct_name(name: str) -> bool:
    return name.startswith(("backbone.patch_embed.", "backbone.layers.", "backbone.norm3.", "keypoint_head."))


# ---- steps


def fit(
    network: nn.Module,
    examples: Examples,
    params: Params,
    *,
    augment: bool = True,
    note: Callable[[str], None] | None = None,
) -> list[float]:
    """Train in place; the loss of every step. `network` as from `build`, or smaller."""
    device = str(next(network.parameters()).device)
    rng = np.random.default_rng(params.seed)
    rate, decay = RATES[params.part]
    learned = [p for name, p in network.named_parameters() if trained(name, params.part)]
    for name, p in network.named_parameters():
        p.requires_grad_(trained(name, params.part))
    optimiser = torch.optim.AdamW(learned, params.rate or rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, params.steps)
    step_loss = {"tokenizer": tokenizer_loss, "classifier": classifier_loss, "mesh": mesh_loss}[params.part]
    network.train()
    if isinstance(network, PCT):
        network.backbone.eval()
    history, told = [], time.monotonic()
    for step in range(params.steps):
        which = rng.integers(0, len(examples), params.batch)
        batch = examples.batch(which, rng if augment else None, pictures=params.part != "tokenizer").to(device)
        loss = step_loss(network, batch, params, examples, step)
        optimiser.zero_grad()
        loss.backward()
        if params.part == "mesh":
            nn.utils.clip_grad_norm_(learned, CLIP)
        optimiser.step()
        schedule.step()
        history.append(float(loss.detach()))
        if note and time.monotonic() - told > 60:
            note(f"step {step + 1} of {params.steps}: loss {np.mean(history[-50:]):.4g}")
            told = time.monotonic()
    network.eval()
    return history


def trained(name: str, part: str) -> bool:
    """Whether a parameter is learned in that part: never PCT in the mesh network, never the Swin or the tokenizer in
    the classifier."""
    if part == "mesh":
        return not name.startswith("pct.")
    tokenizer = ".tokenizer." in name
    return tokenizer if part == "tokenizer" else name.startswith("keypoint_head.") and not tokenizer


def tokenizer_loss(network: nn.Module, batch: Batch, params: Params, examples: Examples, step: int = 0) -> Tensor:
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
    given = joints[..., 2:]
    off = (F.smooth_l1_loss(decoded, joints[..., :2], beta=BETA, reduction="none") * given).sum() / given.sum() / 2
    return off + COMMITMENT * F.mse_loss(encoded, quantised)


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


def classifier_loss(network: nn.Module, batch: Batch, params: Params, examples: Examples, step: int = 0) -> Tensor:
    """Cross-entropy with the encoder's codes, and smooth L1 of the pose that the soft tokens decode to."""
    assert isinstance(network, PCT)
    tokenizer = network.keypoint_head.tokenizer
    with torch.no_grad():
        features = network.backbone(batch.images)
        code = tokenizer.quantise(tokenizer.encode(batch.keypoints, features))
    head = network.keypoint_head
    logits = head.logits(head.mixer_input(head.conv_head(head.conv_trans(features))))
    decoded = tokenizer.decode(head.tokens(logits).soft)
    given = batch.keypoints[..., 2:]
    off = (F.smooth_l1_loss(decoded, batch.keypoints[..., :2], beta=BETA, reduction="none") * given).sum()
    return F.cross_entropy(logits.flatten(0, 1), code.flatten()) + off / given.sum().clamp(min=1) / 2


def pose_tokens(tokenizer: Tokenizer, keypoints: Tensor) -> PoseTokens:
    """Tokens of given keypoints (n, 17, 3) in 256-pixel crop pixels; constant confidence."""
    with torch.no_grad():
        soft = tokenizer.codebook[tokenizer.quantise(tokenizer.encode(keypoints))]
    scores = torch.full_like(soft[..., :1], CONFIDENCE)
    return PoseTokens(soft, scores, torch.ones_like(scores[..., 0]))


def predict(network: nn.Module, batch: Batch, tokens: str) -> Mesh:
    """The mesh of a batch with the pose tokens that `tokens` names."""
    if not isinstance(network, PostoMetro):
        return network(batch.images)
    if tokens == "keypoints":
        return network(batch.images, pose_tokens(network.pct.keypoint_head.tokenizer, batch.keypoints))
    with torch.no_grad():
        pose = network.pct(batch.images)
    return network(batch.images, pose)


def mesh_loss(network: nn.Module, batch: Batch, params: Params, examples: Examples, step: int = 0) -> Tensor:
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
def validate(network: nn.Module, examples: Examples, tokens: str, batch: int = 32) -> float:
    """PA-MPJPE in mm over all examples, 14 joints regressed from the mesh."""
    network.eval()
    errors = []
    for start in range(0, len(examples), batch):
        some = examples.batch(np.arange(start, min(start + batch, len(examples))))
        found = examples.body.regress(predict(network, some, tokens).fine, "lsp14")
        errors.append(metrics.pa_mpjpe(found.double().numpy(), some.joints.double().numpy()))
    return float(np.concatenate(errors).mean())
