"""Training of PostoMETRO, FastMETRO and PCT: the pose tokenizer, the token classifier, the mesh network.

In: a detections artefact with images and true bodies in group `extra` (`hmr synth --poses` writes such); for the
tokenizer, which uses no images, a motion file is enough. Out: a checkpoint under the published names, which `hmr
recover` and `hmr detect --detector pct` read, with the name of its body inside.

    hmr train postometro --part tokenizer --data mocap_smpl24.npz --rate 1e-3 --batch 32 -o tokens.safetensors
    hmr train postometro --part mesh --data train.detections.h5 --init fastmetro.bin --init pct.pth -o mesh.safetensors

Tokenizer as Geng et al. (PCT, 2023): AdamW 1e-2, commitment 15, codes updated with decay 0.9; for the classifier the
Swin and the tokenizer are frozen. Mesh network as FastMETRO's program: AdamW 1e-4, gradients clipped at 0.3; PCT is
frozen and, unlike there, kept in evaluation mode, or its batch norms would drift with the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.artefacts.table import Artefact
from stages.engine.job import SILENT
from stages.errors import AssetError, UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stages.loaders.people import as_artefact
from stages.models.backbones.swin_v2 import DEPTHS, WIDTHS
from stages.models.pct import network as pct
from stages.models.pct import weights as pct_weights
from stages.models.pct.network import PCT, Tokenizer
from stages.models.postometro.network import JOINTS, FastMetro, PostoMetro
from stages.models.postometro.recoverers import check_body
from stages.models.postometro.weights import renamed
from stages.params import TrainPostoMetroParams as Params
from stages.params.rules import check
from stages.smpl.body import Body, load_body
from stages.smpl.mesh_sampling import MeshSampling, of_body, selection
from stages.training.loop import state_file, train
from stages.training.postometro.data import KeypointExamples, PostoMetroExamples
from stages.training.postometro.steps import PostoMetroTrainer, frozen

WAVELENGTH = 2.0  # metres
RIDGE = 1e-3
CROSS_ATTENTION = 0.1  # scale of its output in a new network, whose queries else vanish in what all tokens share
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
    """Train one part on the people of `data` and write it to `out`. The same command resumes.

    init: checkpoints whose tensors of the same names and shapes are used, later ones over earlier ones. What training
    does not change (tokenizer, Swin) must be among them.
    Raises UsageError (settings), AssetError (checkpoints, body), ArtefactError (data without truth, a state of another
    training).
    """
    params = check(params)
    if (params.part == "classifier" or (params.part == "mesh" and params.tokens != "none")) and not init:
        raise _missing_tensors(params, ["PCT's tensors"])
    body = load_body(params.body)
    people = examples_of(data, params, body, root)
    network = _initial_network(params, body, [read_checkpoint(path) for path in init], report)
    trainer = PostoMetroTrainer(network.to(device), people, params, initial_files=init)
    state = state_file(out)
    millions = sum(p.numel() for p in trainer.trained) / 1e6
    report.note(f"{params.part}: {millions:.1f} million parameters learn from {len(people)} examples")
    train(trainer, state, report)
    header = {
        "body": body.name,
        "levels": selection(of_body(body)),
        "tokens": params.tokens if params.part == "mesh" else "",
        "recipe": f"{params.part} {params.recipe} {params.tokens} {params.steps} x {params.batch}",
        "loss": trainer.loss_range(),
        "licence": f"as its data and initial weights; body {body.licence}",
    }
    write_checkpoint(out, network.state_dict(), header)
    state.unlink(missing_ok=True)
    return out


def _initial_network(params: Params, body: Body, checkpoints: Sequence[Checkpoint], report: Any) -> nn.Module:
    """A new network with the tensors of the checkpoints.

    Raises AssetError for a checkpoint without a matching tensor, and for tensors that only a checkpoint can give.
    """
    guided = any(name.endswith("tokenizer.start_img_embed.weight") for c in checkpoints for name in c.names)
    torch.manual_seed(params.seed)
    network = build(params, body, guided)
    loaded: set[str] = set()
    for checkpoint in checkpoints:
        matching = load_matching(network, checkpoint)
        if not matching:
            raise AssetError(
                f"{checkpoint.where} has no tensor that the {params.part} could start from", "is it of another size?"
            )
        loaded |= matching
        if "vertex_token_embed.weight" in matching and (remark := check_body(checkpoint, body, of_body(body))):
            report.warn(remark)
    if missing := [name for name in frozen(network.state_dict(), params) if name not in loaded]:
        raise _missing_tensors(params, missing)
    return network


def _missing_tensors(params: Params, names: Sequence[str]) -> AssetError:
    """The error for tensors that training does not change and no checkpoint gives."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return AssetError(
        f"the {params.part} does not train {names[0]}{more}, and no --init has them",
        "give --init a PCT pose model, or the output of the earlier parts; docs/postometro.md shows the order",
    )


def examples_of(
    data: Path | Artefact, params: Params, body: Body, root: Path | None
) -> PostoMetroExamples | KeypointExamples:
    """The training examples of a part. Raises UsageError for a motion file where images are needed."""
    if not isinstance(data, Artefact) and Path(data).suffix == ".npz":
        if params.part != "tokenizer":
            raise UsageError(f"the {params.part} learns from images", "give --data a file of hmr synth --poses")
        return KeypointExamples(Path(data), body)
    side = FastMetro.side if params.part == "mesh" and params.tokens == "none" else PostoMetro.side
    return PostoMetroExamples(as_artefact(data, "detections"), body, of_body(body), side, root)


def build(params: Params, body: Body, guided: bool = False) -> nn.Module:
    """The network of the published sizes that `params` name. guided: PCT's tokenizer uses crops too, as published."""
    if params.part == "tokenizer":
        return TokenizerOnly(Tokenizer(None))
    if params.part == "classifier":
        return PCT(WIDTHS[params.swin], DEPTHS[params.swin], guided)
    depth, levels = "SML".index(params.size) + 1, of_body(body)
    network: FastMetro
    if params.tokens == "none":
        network = FastMetro(params.backbone, depth, levels.counts[1:])  # type: ignore[arg-type]
    else:
        branch = PCT(WIDTHS[params.swin], DEPTHS[params.swin], guided)
        network = PostoMetro(params.backbone, depth, levels.counts[1:], pct=branch)  # type: ignore[arg-type]
    return initialise(network, body, levels)


@torch.no_grad()
def initialise(network: FastMetro, body: Body, levels: MeshSampling) -> FastMetro:
    """A new network on a body: its learned upsampling follows from the mesh, its first output is the body at rest.

    The tokens of joints and vertices start as Fourier features of their positions on the template, so that neighbours
    are alike; the last layer is fitted to those positions, and the camera shows the body as large as a crop does.
    """
    modules: Any = network.set_body(levels)
    columns, weights = (torch.from_numpy(x) for x in levels.upsampling(1))
    upsample = network.coarse2intermediate_upsample
    upsample.weight.zero_().scatter_add_(1, columns, weights.float())
    upsample.bias.zero_()
    positions = _token_positions(body, levels)
    for tokens, of in (
        (network.joint_token_embed.weight, positions[:JOINTS]),
        (network.vertex_token_embed.weight, positions[JOINTS:]),
    ):
        tokens.copy_(fourier_features(of, tokens.shape[1]))
    for stage in (modules.transformer_1, modules.transformer_2):
        for layer in stage.decoder.layers:
            layer.multihead_attn.out_proj.weight.mul_(CROSS_ATTENTION)
    if isinstance(network, PostoMetro):
        modules.token_mixer.ff[0].weight[:, -1].div_(pct.CONFIDENCE)
    _fit_output(network, positions)
    network.cam_predictor.bias.copy_(torch.tensor([SCALE, 0.0, 0.0]))
    return network


def _token_positions(body: Body, levels: MeshSampling) -> Tensor:
    """Positions (14 + coarse vertices, 3) on the template, metres, pelvis at the origin, y down and z forward."""
    template = body.v_template.float()
    joints = body.regress(template[None], "lsp14")[0]
    points = torch.cat([joints, template[torch.from_numpy(levels.keep[0][levels.keep[1]])]])
    return (points - body.regress(template[None], "h36m17")[0, :1]) * torch.tensor([1.0, -1.0, -1.0])


def _fit_output(network: FastMetro, positions: Tensor) -> None:
    """Fit the last layer (ridge regression), so that the output for an empty image is `positions`."""
    modules: Any = network
    cells = len(modules.position_1)
    image = torch.zeros(1, cells, network.widths[0])
    pose = torch.zeros(1, pct.TOKENS, network.widths[0]) if isinstance(network, PostoMetro) else None
    training = network.training
    features = F.pad(network.eval().mesh(image, pose).stages[1][2][0], (0, 1), value=1.0)
    network.train(training)
    square = features.T @ features + RIDGE * len(features) * torch.eye(features.shape[1])
    solution = torch.linalg.solve(square, features.T @ positions)
    network.xyz_regressor.weight.copy_(solution[:-1].T)
    network.xyz_regressor.bias.copy_(solution[-1])


def fourier_features(positions: Tensor, width: int) -> Tensor:
    """Random Fourier features (n, width) of positions (n, 3) in metres; wavelengths of about a metre and more."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.randn(3, width, generator=generator) * 2 * math.pi / WAVELENGTH
    phase = torch.rand(width, generator=generator) * 2 * math.pi
    return math.sqrt(2) * (positions @ frequency + phase).cos()


class TokenizerOnly(nn.Module):
    """A tokenizer under the names that it has in a pose model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.keypoint_head = nn.Module()
        self.keypoint_head.tokenizer = tokenizer


def load_matching(network: nn.Module, checkpoint: Checkpoint) -> set[str]:
    """Load the tensors that match by name and shape: FastMETRO's and PCT's files into a PostoMETRO. Their names."""
    expected = network.state_dict()
    tensors = renamed(checkpoint.without(*pct_weights.PREFIXES))
    known: Mapping[str, Tensor] = {**tensors, **{f"pct.{n}": t for n, t in tensors.items() if _is_pct(n)}}
    matching = {name: t for name, t in known.items() if name in expected and t.shape == expected[name].shape}
    network.load_state_dict(matching, strict=False)
    return set(matching)


def _is_pct(name: str) -> bool:
    return name.startswith(("backbone.patch_embed.", "backbone.layers.", "backbone.norm3.", "keypoint_head."))
