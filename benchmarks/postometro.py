"""PostoMETRO-L (ResNet-50, PCT Swin-L) on crops: ours against the plain forward, in one run.

    python benchmarks/postometro.py [--batch 1] [--repeats 5] [--swin large] [--device cpu] [--dtype float32]

Random weights of the published sizes, one thread on a CPU; time is CPU time of this process there, wall time on a GPU.
The plain forward does what the released program does: position bias and shift masks computed at every call, attention
written out and its weights averaged though nobody reads them, queries of the first layer for every crop, batch norms on
their own, PCT's pose decoded though only tokens are wanted, the last upsampling sample by sample. Ours computes once
what no picture changes. Runs alternate; ratios are medians of neighbouring runs. Both must give the same mesh.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stages.models.backbones.swin_v2 import DEPTHS, WIDTHS
from stages.models.pct.network import PCT
from stages.models.postometro.network import Mesh, PostoMetro
from stages.models.postometro.transformer import HEADS, MultiHeadAttention
from stages.smpl.body import load_body
from stages.smpl.mesh_sampling import of_body


class Plain:
    """The same network without any of the savings."""

    def __init__(self, network: PostoMetro) -> None:
        self.network = network
        rows = torch.arange(len(network.columns)).repeat_interleave(3)
        index = torch.stack([rows.to(network.columns.device), network.columns.flatten()])
        size = (len(network.columns), network.coarse2intermediate_upsample.out_features)
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        self.upsampling = torch.sparse_coo_tensor(index, network.weights.flatten(), size).coalesce()
        for module in network.modules():
            if isinstance(module, MultiHeadAttention):
                module.attend = self.attend.__get__(module)  # type: ignore[method-assign]
        network.upsample_fixed = self.upsample  # type: ignore[method-assign]
        for stage in (network.transformer_1,):
            stage.forward = self.every_query(stage.forward)  # type: ignore[method-assign]

    @staticmethod
    def attend(self: Any, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        keys, values = self.part(key, 1), self.part(value, 2)
        logits = queries @ keys.transpose(-1, -2) / (queries.shape[-1] ** 0.5)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        weights = logits.softmax(-1)
        self.averaged = weights.sum(1) / HEADS
        return self.out_proj((weights @ values).transpose(1, 2).flatten(2))

    @staticmethod
    def every_query(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(camera: Tensor, image: Tensor, pose: Tensor, queries: Tensor, *rest: Tensor) -> Any:
            return forward(camera, image, pose, queries.expand(len(image), -1, -1).contiguous(), *rest)

        return run

    def upsample(self, vertices: Tensor) -> Tensor:
        return torch.stack([self.upsampling @ each for each in vertices])

    def __call__(self, images: Tensor) -> Mesh:
        found = self.network.pct(images)
        self.network.pct.keypoint_head.tokenizer.decode(found.soft)
        return self.network(images, found)


def parts(network: PostoMetro, images: Tensor) -> dict[str, Callable[[], Any]]:
    """The parts of a forward pass, each from the stored output of the one before."""
    swin = network.pct.backbone(images)
    found = network.pct.keypoint_head(swin)
    pose = network.modulate(found.soft, found.scores)
    image = network.image_tokens(network.backbone(images))
    camera = network.cam_token_embed.weight.expand(len(images), -1, -1)
    first = lambda: network.transformer_1(  # noqa: E731
        camera, image, pose, network.queries(), network.position_1, network.mask
    )
    cam, memory, queries = first()
    mesh = network.mesh(image, pose)
    return {
        "ResNet-50": lambda: network.backbone(images),
        "Swin": lambda: network.pct.backbone(images),
        "PCT head": lambda: network.pct.keypoint_head(swin),
        "modulator": lambda: network.modulate(found.soft, found.scores),
        "stage 1": first,
        "stage 2": lambda: network.transformer_2(
            network.dim_reduce_enc_cam(cam)[:, None],
            network.dim_reduce_enc_img(memory),
            network.reduce_pose(memory[:, image.shape[1] :]),
            network.dim_reduce_dec(queries),
            network.position_2,
            network.mask,
        ),
        "upsampling": lambda: network.upsample_fixed(network.upsample(mesh.coarse)),
    }


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--swin", default="large", choices=list(WIDTHS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--parts", action="store_true", help="also the time and GFLOP of each part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PostoMetro("resnet50", 3, pct=PCT(WIDTHS[options.swin], DEPTHS[options.swin]))
    network.set_body(of_body(load_body())).eval().requires_grad_(False)
    network = network.to(options.device, getattr(torch, options.dtype))
    ours = copy.deepcopy(network).prepare()
    plain = Plain(network)
    images = torch.randn(options.batch, 3, 256, 256).to(ours.conv_1x1.weight)
    found = ours.pct(images)
    a, b = plain(images).fine.float(), ours(images).fine.float()
    difference = float((a - b).norm() / a.norm())
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(images),
        "ours": lambda: ours(images),
        "ours, pose tokens given": lambda: ours(images, found),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            taken[name].append(timed(run, options.device))
    ratio = {n: statistics.median(np.divide(taken[n], taken["plain"])) for n in runs}
    result: dict[str, Any] = {
        "batch": options.batch,
        "images_per_second": {n: options.batch / min(t) for n, t in taken.items()},
        "ratio_to_plain": ratio,
        "relative_difference": difference,
    }
    if options.device == "cpu":
        there = (
            "not run: --device cuda --dtype bfloat16 --batch 128"
            if torch.cuda.is_available()
            else "unmeasured: none here"
        )
        result["on a GPU"] = there
    if options.parts:
        table = {}
        for (name, part), reference in zip(parts(ours, images).items(), parts(network, images).values(), strict=True):
            with FlopCounterMode(display=False) as counter:
                reference()
            mine, theirs = (
                min(timed(run, options.device) for _ in range(options.repeats)) for run in (part, reference)
            )
            table[name] = {"gflop": counter.get_total_flops() / 1e9 / options.batch, "ours": mine, "plain": theirs}
        result["parts"] = table
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
