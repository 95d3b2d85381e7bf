"""PostoMETRO, FastMETRO and PCT trained: the pose tokenizer, the token classifier, the mesh network.

In: a detections artefact with pictures and true bodies in group `extra` (`hmr synth --poses` writes such); for the
tokenizer, which sees no picture, a motion file will do. Out: a checkpoint under the published names, which `hmr
recover` and `hmr detect --detector pct` read, with the name of its body inside.

    hmr train postometro --part tokenizer --data mocap_smpl24.npz --rate 1e-3 --batch 32 -o tokens.safetensors
    hmr train postometro --part mesh --data train.detections.h5 --init fastmetro.bin --init pct.pth -o mesh.safetensors

Tokenizer as Geng et al. (PCT, 2023): AdamW 1e-2, commitment 15, codes renewed with decay 0.9; for the classifier the
Swin and the tokenizer are frozen. Mesh network as FastMETRO's program: AdamW 1e-4, gradients clipped at 0.3; PCT is
frozen and, unlike there, kept in evaluation mode, or its batch norms would drift with the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.engine.job import SILENT
from stages.errors import AssetError, UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stages.models.backbones.swin_v2 import DEPTHS, WIDTHS
from stages.models.pct import network as pct
from stages.models.pct.network import PCT, Tokenizer
from stages.models.postometro.network import JOINTS, FastMetro, PostoMetro
from stages.models.postometro.recoverers import check_body
from stages.models.postometro.weights import renamed
from stages.params import TrainPostoMetroParams as Params
from stages.params import check
from stages.smpl.body import Body, load_body
from stages.smpl.mesh_sampling import MeshSampling, of_body, selection
from stages.training.loop import train
from stages.training.postometro.data import Keypoints, PostoMetroExamples
from stages.training.postometro.steps import PostoMetroTrainer, frozen

WAVELENGTH = 2.0  # metres
RIDGE = 1e-3
FAINT = 0.1  # how loud the memory is among new queries, which would else be lost in what is the same for all
SCALE = 0.9  # of a camera that shows 1.85 m as 1/1.2 of the crop


def run(
    data: Path | Artefact,
    out: Path,
    params: Params = Params(),
    device: str = "cpu",
    report: Any = SILENT,
    *,
    init: Sequence[Path] = (),
    root: Path | None = None,
) -> Path:
    """Train one part on the people of `data` and write it to `out`. Stopped, the same command goes on.

    `init`: checkpoints whose tensors of the same names and shapes are taken over, later ones over earlier ones. What
    stays as it is in training (tokenizer, Swin) must be among them.
    Raises UsageError (settings), AssetError (checkpoints, body), ArtefactError (data without truth, foreign state).
    """
    params = check(params)
    if (params.part == "classifier" or (params.part == "mesh" and params.tokens != "none")) and not init:
        raise lacking(params, ["PCT's tensors"])
    body = load_body(params.body)
    people = examples_of(data, params, body, root)
    given = [read_checkpoint(path) for path in init]
    guided = any(name.endswith("tokenizer.start_img_embed.weight") for c in given for name in c.names)
    torch.manual_seed(params.seed)
    network = build(params, body, guided)
    taken: set[str] = set()
    for checkpoint in given:
        fitting = initialise(network, checkpoint)
        if not fitting:
            raise AssetError(
                f"{checkpoint.where} has no tensor that the {params.part} could begin with", "is it of another size?"
            )
        taken |= fitting
        if "vertex_token_embed.weight" in fitting and (remark := check_body(checkpoint, body, of_body(body))):
            report.warn(remark)
    if missing := [name for name in frozen(network.state_dict(), params) if name not in taken]:
        raise lacking(params, missing)
    trainer = PostoMetroTrainer(network.to(device), people, params)
    trainer.origin = " ".join(checkpoint.sha256 for checkpoint in given)
    state = out.with_name(out.name + ".state")
    learned = sum(p.numel() for p in trainer.learned) / 1e6
    report.note(f"{params.part}: {learned:.1f} million parameters learn from {len(people)} examples")
    train(trainer, state, report)
    card = {
        "body": body.name,
        "levels": selection(of_body(body)),
        "tokens": params.tokens if params.part == "mesh" else "",
        "recipe": f"{params.part} {params.recipe} {params.tokens} {params.steps} x {params.batch}",
        "loss": f"{np.mean(trainer.losses[:50]):.4g} to {np.mean(trainer.losses[-50:]):.4g}",
        "licence": f"as its data and initial weights; body {body.licence}",
    }
    write_checkpoint(out, network.state_dict(), card)
    state.unlink(missing_ok=True)
    return out


def lacking(params: Params, names: Sequence[str]) -> AssetError:
    """What to say when tensors that training does not change come from nowhere."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return AssetError(
        f"the {params.part} takes {names[0]}{more} as they are, but no --init has them",
        "give --init a PCT pose model, or what the earlier parts made; docs/postometro.md shows the order",
    )


def examples_of(data: Path | Artefact, params: Params, body: Body, root: Path | None) -> PostoMetroExamples | Keypoints:
    """What a part learns from. Raises UsageError for a motion file where pictures are needed."""
    if not isinstance(data, Artefact) and Path(data).suffix == ".npz":
        if params.part != "tokenizer":
            raise UsageError(f"the {params.part} learns from pictures", "give --data what hmr synth --poses writes")
        return Keypoints(Path(data), body)
    table = data if isinstance(data, Artefact) else open_artefact(data, "detections")
    side = FastMetro.side if params.part == "mesh" and params.tokens == "none" else PostoMetro.side
    return PostoMetroExamples(table, body, of_body(body), side, root)


def build(params: Params, body: Body, guided: bool = False) -> nn.Module:
    """The network of published sizes that `params` name. `guided`: PCT's tokenizer also sees the crop, as published."""
    if params.part == "tokenizer":
        return Alone(Tokenizer(None))
    branch = lambda: PCT(WIDTHS[params.swin], DEPTHS[params.swin], guided)  # noqa: E731
    if params.part == "classifier":
        return branch()
    depth, levels = "SML".index(params.size) + 1, of_body(body)
    network: FastMetro
    if params.tokens == "none":
        network = FastMetro(params.backbone, depth, levels.counts[1:])  # type: ignore[arg-type]
    else:
        network = PostoMetro(params.backbone, depth, levels.counts[1:], pct=branch())  # type: ignore[arg-type]
    return begin(network, body, levels)


@torch.no_grad()
def begin(network: FastMetro, body: Body, levels: MeshSampling) -> FastMetro:
    """A new network on a body: its learned upsampling follows from the mesh, its first answer is the body at rest.

    The tokens of joints and vertices begin as waves of their places on the template, so that neighbours are alike; the
    last layer is fitted to those places, and the camera shows the body as large as a crop does.
    """
    made: Any = network.set_body(levels)
    columns, weights = (torch.from_numpy(x) for x in levels.upsampling(1))
    learned = network.coarse2intermediate_upsample
    learned.weight.zero_().scatter_add_(1, columns, weights.float())
    learned.bias.zero_()
    template = body.v_template.float()
    joints = body.regress(template[None], "lsp14")[0]
    places = torch.cat([joints, template[torch.from_numpy(levels.keep[0][levels.keep[1]])]])
    places = (places - body.regress(template[None], "h36m17")[0, :1]) * torch.tensor([1.0, -1.0, -1.0])
    for tokens, at in (
        (network.joint_token_embed.weight, places[:JOINTS]),
        (network.vertex_token_embed.weight, places[JOINTS:]),
    ):
        tokens.copy_(waves(at, tokens.shape[1]))
    for stage in (made.transformer_1, made.transformer_2):
        for layer in stage.decoder.layers:
            layer.multihead_attn.out_proj.weight.mul_(FAINT)
    if isinstance(network, PostoMetro):
        made.token_mixer.ff[0].weight[:, -1].div_(pct.CONFIDENCE)
    cells = len(made.position_1)
    image = torch.zeros(1, cells, network.widths[0])
    pose = torch.zeros(1, pct.TOKENS, network.widths[0]) if isinstance(network, PostoMetro) else None
    was = network.training
    features = F.pad(network.eval().mesh(image, pose).stages[1][2][0], (0, 1), value=1.0)
    network.train(was)
    square = features.T @ features + RIDGE * len(features) * torch.eye(features.shape[1])
    fitted = torch.linalg.solve(square, features.T @ places)
    network.xyz_regressor.weight.copy_(fitted[:-1].T)
    network.xyz_regressor.bias.copy_(fitted[-1])
    network.cam_predictor.bias.copy_(torch.tensor([SCALE, 0.0, 0.0]))
    return network


def waves(places: Tensor, width: int) -> Tensor:
    """Random Fourier features (n, width) of places (n, 3) in metres; wavelengths of a metre or so and more."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.randn(3, width, generator=generator) * 2 * math.pi / WAVELENGTH
    phase = torch.rand(width, generator=generator) * 2 * math.pi
    return math.sqrt(2) * (places @ frequency + phase).cos()


class Alone(nn.Module):
    """A tokenizer under the names that it has in a pose model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.keypoint_head = nn.Module()
        self.keypoint_head.tokenizer = tokenizer


def initialise(network: nn.Module, checkpoint: Checkpoint) -> set[str]:
    """Take over what fits by name and shape: FastMETRO's and PCT's files into a PostoMETRO. The names of that."""
    own = network.state_dict()
    given = renamed(checkpoint.without(*pct.PREFIXES))
    known: Mapping[str, Tensor] = {**given, **{f"pct.{name}": t for name, t in given.items() if pct_name(name)}}
    fitting = {name: t for name, t in known.items() if name in own and t.shape == own[name].shape}
    network.load_state_dict(fitting, strict=False)
    return set(fitting)


def pct_name(name: str) -> bool:
    return name.startswith(("backbone.patch_embed.", "backbone.layers.", "backbone.norm3.", "keypoint_head."))
