"""FastMETRO and PostoMETRO: a crop to a mesh, without body parameters.

Cho et al., "Cross-Attention of Disentangled Modalities for 3D Human Mesh Recovery with Transformers" (ECCV 2022);
Yang et al., "PostoMETRO: Pose Token Enhanced Mesh Transformer for Robust 3D Human Mesh Recovery". Where paper and
released code differ, this is the code (soft tokens, where confidence enters, pose tokens twice in stage 2). Names are
the published ones.

Meshes are in metres, x right and y down as in the image, not root-centred; the camera (s, tx, ty) projects to the
crop's [-1, 1] by s (X + t).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from stages.models.backbones.resnet import fold_batch_norms
from stages.models.pct.network import PCT, TOKENS, LinearNormReLU, Mixer, PoseTokens
from stages.models.pct.network import WIDTH as TOKEN_WIDTH
from stages.models.postometro import backbones
from stages.models.postometro.transformer import Transformer, attention_mask, sine_positions
from stages.smpl.mesh_sampling import MeshSampling

JOINTS = 14
WIDTHS = (512, 128)  # of the two stages, as published; the hidden layers are four times as wide


@dataclasses.dataclass
class Mesh:
    """The output for n crops; S is the stage's width.

    camera (n, 3) s, tx, ty · joints (n, 14, 3) · coarse (n, V2, 3), intermediate (n, V1, 3), fine (n, V, 3) vertices, m
    · stages: after each stage (camera (n, S), memory (n, tokens, S), queries (n, 14 + V2, S)).
    """

    camera: Tensor
    joints: Tensor
    coarse: Tensor
    intermediate: Tensor
    fine: Tensor
    stages: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()


class FastMetro(nn.Module):
    """Crops (n, 3, 224, 224), ImageNet-normalised RGB, to a mesh. `depth` 1, 2, 3 is size S, M, L."""

    side = 224
    mask: Tensor
    columns: Tensor
    weights: Tensor

    def __init__(
        self,
        backbone: str | nn.Module,
        depth: int,
        counts: tuple[int, int] = (1723, 431),
        regressor: bool = False,
        widths: tuple[int, int] = WIDTHS,
    ) -> None:
        """`backbone`: a name, or a module with `channels`; `counts`: intermediate and coarse vertices.

        `set_body` must follow.
        """
        super().__init__()
        intermediate, coarse = counts
        self.widths = widths
        self.backbone = backbones.build(backbone) if isinstance(backbone, str) else backbone
        channels = backbones.CHANNELS[backbone] if isinstance(backbone, str) else int(backbone.channels)  # type: ignore
        self.transformer_1, self.transformer_2 = (Transformer(width, depth, 4 * width) for width in widths)
        self.dim_reduce_enc_cam, self.dim_reduce_enc_img, self.dim_reduce_dec = (nn.Linear(*widths) for _ in range(3))
        self.cam_token_embed = nn.Embedding(1, widths[0])
        self.joint_token_embed = nn.Embedding(JOINTS, widths[0])
        self.vertex_token_embed = nn.Embedding(coarse, widths[0])
        self.xyz_regressor = nn.Linear(widths[1], 3)
        self.cam_predictor = nn.Linear(widths[1], 3)
        self.conv_1x1 = nn.Conv2d(channels, widths[0], 1)
        self.coarse2intermediate_upsample = nn.Linear(coarse, intermediate)
        if regressor:
            self.smpl_parameter_regressor = SmplRegressor(3 * intermediate)
        self.has_regressor = regressor

    def set_body(self, levels: MeshSampling) -> FastMetro:
        """Attention mask and fixed upsampling: they follow from the body and the sizes, so no state dict holds them."""
        columns, weights = levels.upsampling(0)
        self.set_mask(levels.adjacency(2))
        self.register_buffer("columns", torch.from_numpy(columns), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)
        return self

    def set_mask(self, adjacency: np.ndarray) -> None:
        """The coarse mesh's (V2, V2) bool adjacency, and the sine positions."""
        self.register_buffer("mask", attention_mask(torch.from_numpy(adjacency), JOINTS), persistent=False)
        for stage, width in enumerate(self.widths, 1):
            self.register_buffer(f"position_{stage}", sine_positions(width, self.side // 32), persistent=False)

    def forward(self, images: Tensor) -> Mesh:
        return self.mesh(self.image_tokens(self.backbone(images)))

    def image_tokens(self, features: Tensor) -> Tensor:
        """A map (n, C, h, w) to tokens (n, h w, 512), rows first."""
        return self.conv_1x1(features).flatten(2).transpose(1, 2)

    def mesh(self, image: Tensor, pose: Tensor | None = None) -> Mesh:
        """Image tokens (n, cells, 512) and, in PostoMETRO, modulated pose tokens (n, 34, 512) to a mesh."""
        camera = self.cam_token_embed.weight.expand(len(image), -1, -1)
        queries = self.queries()
        first = self.transformer_1(camera, image, pose, queries, self.position_1, self.mask)
        cam, memory, queries = first
        # In stage 2 the memory, pose tokens included, is the "image", and the pose tokens come once more.
        second = self.transformer_2(
            self.dim_reduce_enc_cam(cam)[:, None],
            self.dim_reduce_enc_img(memory),
            self.reduce_pose(memory[:, image.shape[1] :]),
            self.dim_reduce_dec(queries),
            self.position_2,
            self.mask,
        )
        xyz = self.xyz_regressor(second[2])
        joints, coarse = xyz[:, :JOINTS], xyz[:, JOINTS:]
        intermediate = self.upsample(coarse)
        fine = self.upsample_fixed(intermediate)
        return Mesh(self.cam_predictor(second[0]), joints, coarse, intermediate, fine, (first, second))

    def queries(self) -> Tensor:
        """The learned tokens of joints and vertices (1, 14 + V2, 512)."""
        return torch.cat([self.joint_token_embed.weight, self.vertex_token_embed.weight])[None]

    def reduce_pose(self, pose: Tensor) -> Tensor | None:
        """The memory's pose tokens (n, 34, 512) for stage 2; FastMETRO has none."""
        return None

    def upsample(self, coarse: Tensor) -> Tensor:
        """Coarse to intermediate vertices, learned, with one bias a vertex for all three coordinates."""
        return self.coarse2intermediate_upsample(coarse.transpose(1, 2)).transpose(1, 2)

    def upsample_fixed(self, intermediate: Tensor) -> Tensor:
        """Intermediate to fine vertices: each is a fixed combination of three."""
        return (intermediate[:, self.columns] * self.weights[..., None]).sum(2)

    @torch.no_grad()
    def prepare(self) -> FastMetro:
        """Make it ready for inference only, on its device: batch norms folded, first-layer queries computed once."""
        self.eval()
        fold_batch_norms(self.backbone)
        self.transformer_1.prepare(self.queries(), self.mask)
        return self


class PostoMetro(FastMetro):
    """FastMETRO at 256 x 256 with PCT's pose tokens in both stages."""

    side = 256

    def __init__(
        self,
        backbone: str | nn.Module,
        depth: int,
        counts: tuple[int, int] = (1723, 431),
        regressor: bool = False,
        widths: tuple[int, int] = WIDTHS,
        pct: PCT | None = None,
    ) -> None:
        super().__init__(backbone, depth, counts, regressor, widths)
        self.pct = pct or PCT()
        width = widths[0]
        self.start_embed = nn.Linear(TOKEN_WIDTH, width)
        self.encoder = nn.ModuleList(Mixer(TOKENS, 64, width, width) for _ in range(4))
        self.encoder_layer_norm = nn.LayerNorm(width)
        self.token_mlp = nn.Linear(TOKENS, TOKENS)
        self.token_mixer = LinearNormReLU(width + 1, width)
        self.dim_reduce_enc_pct = nn.Linear(*widths)

    def forward(self, images: Tensor, pose: PoseTokens | None = None) -> Mesh:
        """`pose`: the crop's tokens where they are known (they are 78 % of the work)."""
        tokens = self.pct(images) if pose is None else pose
        return self.mesh(self.image_tokens(self.backbone(images)), self.modulate(tokens.soft, tokens.scores))

    def mix(self, tokens: Tensor) -> Tensor:
        """Pose tokens (n, 34, 512) through mixers and the linear across tokens; the confidence has not entered yet."""
        x = self.start_embed(tokens)
        for layer in self.encoder:
            x = layer(x)
        return self.token_mlp(self.encoder_layer_norm(x).transpose(1, 2)).transpose(1, 2)

    def modulate(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Pose tokens (n, 34, 512) and their scores (n, 34, 1) to the mesh network's pose tokens (n, 34, 512)."""
        return self.token_mixer(torch.cat([self.mix(tokens), scores], dim=-1))

    def reduce_pose(self, pose: Tensor) -> Tensor:
        return self.dim_reduce_enc_pct(pose)

    def train(self, mode: bool = True) -> PostoMetro:
        # The tokenizer is frozen; in training mode its batch norms would still drift with the data.
        super().train(mode)
        self.pct.eval()
        return self

    @torch.no_grad()
    def prepare(self) -> PostoMetro:
        super().prepare()
        self.pct.prepare()
        return self


class SmplRegressor(nn.Module):
    """FastMETRO's optional SMPL parameters from the intermediate mesh, (n, V1, 3), uncentred."""

    def __init__(self, inputs: int, hidden: int = 1024) -> None:
        super().__init__()
        blocks = [Residual(inputs, hidden), Residual(hidden, hidden, 2), Residual(hidden, hidden, 2)]
        self.regressor = nn.Sequential(*blocks, nn.Linear(hidden, 24 * 9 + 10))

    def forward(self, vertices: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations (n, 24, 3, 3) and betas (n, 10).

        The nearest orthogonal matrix, negated if it is a reflection: a rotation, though not the nearest.
        """
        raw = self.regressor(vertices.flatten(1))
        u, _, vh = torch.linalg.svd(raw[:, :216].reshape(-1, 24, 3, 3))
        orthogonal = u @ vh
        return orthogonal * torch.linalg.det(orthogonal)[..., None, None], raw[:, 216:]


class Residual(nn.Module):
    """Linear and batch norm, `count` times with ReLU between; with two of them the input is added. ReLU."""

    def __init__(self, inputs: int, out: int, count: int = 1) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Linear(inputs, out), nn.BatchNorm1d(out)]
        self.add = count == 2
        if self.add:
            parts += [nn.ReLU(), nn.Linear(out, out), nn.BatchNorm1d(out)]
        self.fc_block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc_block(x)
        return (y + x if self.add else y).relu()
