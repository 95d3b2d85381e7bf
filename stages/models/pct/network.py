"""PCT, "Human Pose as Compositional Tokens" (Geng et al., CVPR 2023): a pose is 34 tokens out of 2048 codes.

The tokenizer encodes 17 COCO keypoints (crop pixels) as tokens and decodes them; the classifier predicts tokens from a
Swin-V2 map. It is a pose detector, and PostoMETRO's source of pose tokens. Names are those of the published files.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.backbones.hrnet import BasicBlock
from stages.models.backbones.resnet import fold_batch_norms
from stages.models.backbones.swin_v2 import DEPTHS, SwinV2

JOINTS = 17
TOKENS = 34
CODES = 2048
WIDTH = 512
CELLS = 8  # the feature map's side
PIXELS = 32  # crop pixels a cell
CONFIDENCE = 10.0  # the score of a token that was encoded from keypoints (PostoMETRO, table 6)


@dataclasses.dataclass
class PoseTokens:
    """soft (n, 34, 512) tokens · scores (n, 34, 1) largest raw logit of each · peak (n, 34) its probability."""

    soft: Tensor
    scores: Tensor
    peak: Tensor


class PCT(nn.Module):
    """The pose model: crops (n, 3, 256, 256), ImageNet-normalised RGB, to tokens; `pose` also decodes them."""

    def __init__(self, width: int = 128, depths: tuple[int, ...] = DEPTHS["base"], guided: bool = True) -> None:
        super().__init__()
        self.backbone = SwinV2(width, depths)
        self.keypoint_head = Classifier(8 * width, guided)

    def forward(self, images: Tensor) -> PoseTokens:
        return self.keypoint_head(self.backbone(images))

    def prepare(self) -> PCT:
        """Make it ready for inference only, on its device: batch norms folded, image-independent terms computed
        once."""
        self.eval()
        fold_batch_norms(self.keypoint_head)
        self.backbone.prepare()
        return self

    def pose(self, images: Tensor, flip: bool = False) -> tuple[Tensor, Tensor]:
        """Keypoints (n, 17, 2) in crop pixels and the tokens' mean probability (n,): it is the same for all joints.

        `flip` averages with the decoded pose of the mirrored crop, as in the published accuracies.
        """
        tokens = self(images)
        xy = self.keypoint_head.tokenizer.decode(tokens.soft)
        if flip:
            mirrored = self.keypoint_head.tokenizer.decode(self(images.flip(-1)).soft)
            xy = (xy + unmirror(mirrored, images.shape[-1])) / 2
        return xy, tokens.peak.mean(dim=1)

    def encode_keypoints(self, keypoints: Tensor, images: Tensor) -> PoseTokens:
        """The tokens of keypoints (n, 17, 3) of 256-pixel crops: x, y, 1 = visible. The score is constant."""
        tokenizer = self.keypoint_head.tokenizer
        features = self.backbone(images) if tokenizer.guide else None
        soft = tokenizer.codebook[tokenizer.quantise(tokenizer.encode(keypoints, features))]
        scores = torch.full_like(soft[..., :1], CONFIDENCE)
        return PoseTokens(soft, scores, torch.ones_like(scores[..., 0]))


# COCO's 17 keypoints with left and right exchanged.
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def unmirror(xy: Tensor, side: int) -> Tensor:
    """Keypoints (n, 17, 2) of a mirrored crop of `side` pixels -> keypoints of the crop itself."""
    xy = xy[:, list(MIRROR)]
    return torch.stack([side - 1 - xy[..., 0], xy[..., 1]], dim=-1)


class Mixer(nn.Module):
    """An MLP over tokens and one over channels. Both branches start from the same y: x + y + channel(norm(x + y))."""

    def __init__(self, tokens: int, token_hidden: int, channels: int, channel_hidden: int) -> None:
        super().__init__()
        self.layernorm1 = nn.LayerNorm(channels)
        self.MLP_token = TwoLayers(tokens, token_hidden)
        self.layernorm2 = nn.LayerNorm(channels)
        self.MLP_channel = TwoLayers(channels, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + self.MLP_token(self.layernorm1(x).transpose(1, 2)).transpose(1, 2)
        return mixed + self.MLP_channel(self.layernorm2(mixed))


class TwoLayers(nn.Module):
    """Linear, exact GELU, linear; index 2 is the published dropout of rate 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class LinearNormReLU(nn.Module):
    """Linear, layer norm, ReLU."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Tokenizer(nn.Module):
    """The VQ autoencoder of a pose: encode, quantise, decode. `guide`: the channels of a guiding map, or None."""

    codebook: Tensor
    ema_cluster_size: Tensor
    ema_w: Tensor

    def __init__(self, guide: int | None) -> None:
        super().__init__()
        self.guide = guide
        self.invisible_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.start_embed = nn.Linear(2, WIDTH // 2 if guide else WIDTH)
        if guide:
            self.start_img_embed = nn.Linear(guide, WIDTH // 2)
        self.encoder = nn.ModuleList(Mixer(JOINTS, 64, WIDTH, 512) for _ in range(4))
        self.encoder_layer_norm = nn.LayerNorm(WIDTH)
        self.token_mlp = nn.Linear(JOINTS, TOKENS)
        self.feature_embed = nn.Linear(WIDTH, WIDTH)
        self.decoder_token_mlp = nn.Linear(TOKENS, JOINTS)
        self.decoder_start = nn.Linear(WIDTH, 32)
        self.decoder = nn.ModuleList([Mixer(JOINTS, 64, 32, 64)])
        self.decoder_layer_norm = nn.LayerNorm(32)
        self.recover_embed = nn.Linear(32, 2)
        self.register_buffer("codebook", torch.randn(CODES, WIDTH))
        self.register_buffer("ema_cluster_size", torch.zeros(CODES))
        self.register_buffer("ema_w", self.codebook.clone())

    def encode(self, joints: Tensor, features: Tensor | None = None) -> Tensor:
        """Joints (n, 17, 3) x, y in crop pixels and visibility, guide map (n, C, 8, 8), to (n, 34, 512)."""
        x = self.start_embed(joints[..., :2])
        if self.guide:
            assert features is not None, "this tokenizer is guided by a feature map"
            x = torch.cat([x, self.start_img_embed(joint_features(joints, features))], dim=-1)
        x = torch.where(joints[..., 2:] > 0, x, self.invisible_token)
        for layer in self.encoder:
            x = layer(x)
        x = self.token_mlp(self.encoder_layer_norm(x).transpose(1, 2)).transpose(1, 2)
        return self.feature_embed(x)

    def quantise(self, encoded: Tensor) -> Tensor:
        """The nearest code of each token (n, 34), by squared distance."""
        flat = encoded.flatten(0, 1)
        distance = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        return distance.argmin(1).view(encoded.shape[:2])

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (n, 34, 512), hard or soft, to keypoints (n, 17, 2) in crop pixels."""
        x = self.decoder_start(self.decoder_token_mlp(tokens.transpose(1, 2)).transpose(1, 2))
        for layer in self.decoder:
            x = layer(x)
        return self.recover_embed(self.decoder_layer_norm(x))


def joint_features(joints: Tensor, features: Tensor) -> Tensor:
    """The map's (n, C, 8, 8) vector at each joint (n, 17, C): cell trunc(coordinate / 32 + 0.5), clamped."""
    cell = (joints[..., :2] / PIXELS + 0.5).long().clamp(0, CELLS - 1)
    index = cell[..., 1] * CELLS + cell[..., 0]
    return features.flatten(2).transpose(1, 2).gather(1, index[..., None].expand(-1, -1, features.shape[1]))


class Classifier(nn.Module):
    """The token classifier over a map (n, C, 8, 8); it holds the tokenizer whose codebook and decoder it uses."""

    def __init__(self, channels: int, guided: bool = True) -> None:
        super().__init__()
        self.conv_trans = nn.Sequential(nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
        self.conv_head = nn.Sequential(nn.Sequential(BasicBlock(256), BasicBlock(256)))
        self.mixer_trans = LinearNormReLU(CELLS * CELLS * 256, TOKENS * 64)
        self.mixer_head = nn.ModuleList(Mixer(TOKENS, 64, 64, 256) for _ in range(4))
        self.mixer_norm_layer = LinearNormReLU(64, 64)
        self.cls_pred_layer = nn.Linear(64, CODES)
        self.tokenizer = Tokenizer(channels if guided else None)

    def forward(self, features: Tensor) -> PoseTokens:
        return self.tokens(self.logits(self.mixer_input(self.conv_head(self.conv_trans(features)))))

    def mixer_input(self, maps: Tensor) -> Tensor:
        """(n, 256, 8, 8) to (n, 34, 64); flattened with the channel varying fastest."""
        return self.mixer_trans(maps.flatten(2).transpose(1, 2).flatten(1)).unflatten(1, (TOKENS, 64))

    def logits(self, x: Tensor) -> Tensor:
        """Mixer input (n, 34, 64) to logits over the codes (n, 34, 2048)."""
        for layer in self.mixer_head:
            x = layer(x)
        return self.cls_pred_layer(self.mixer_norm_layer(x))

    def tokens(self, logits: Tensor) -> PoseTokens:
        """Soft tokens: the softmax-weighted mean of the codes."""
        probability = F.softmax(logits, dim=-1)
        soft = probability @ self.tokenizer.codebook
        return PoseTokens(soft, logits.amax(dim=-1, keepdim=True), probability.amax(dim=-1))
