"""Does the training of PostoMETRO learn, and do pose tokens help? At a size that a CPU trains in minutes.

    hmr synth synth-oc --pictures 400 -o oc.detections.h5
    python benchmarks/train_postometro.py oc.detections.h5 [--steps 400] [--held-out 80]

A tokenizer on keypoints, then two mesh networks on the same 64-pixel crops with the same seed, order and losses: one
with the tokens of the (disturbed) keypoints, one without (FastMETRO). Printed: the losses, and PA-MPJPE of both on
scenes that neither has seen, beside that of the mean body of the training scenes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from stages.artefact import open_artefact
from stages.human import metrics
from stages.human.body import load_body
from stages.human.mesh_levels import of_body
from stages.models.hrnet import convolution
from stages.models.pct import PCT, Tokenizer
from stages.models.postometro.network import FastMetro, PostoMetro
from stages.models.postometro.transformer import Attention
from stages.training.postometro import Alone, Params, fit, on_body, validate
from stages.training.postometro_data import Examples

SIDE, WIDTHS = 64, (128, 64)


class Small(nn.Sequential):
    """64 pixels to an 8 x 8 map of 128 channels."""

    channels = 128

    def __init__(self) -> None:
        super().__init__(convolution(3, 32, 2), convolution(32, 64, 2), convolution(64, 128, 2), convolution(128, 128))


def halves(data: Path, held_out: int) -> tuple[Examples, Examples]:
    """Examples of the first scenes, and of the last `held_out`."""
    body = load_body()
    table = open_artefact(data, "detections")
    one, other = (Examples(table, body, of_body(body), SIDE) for _ in range(2))
    for each in (one, other):  # all pictures fit into memory
        each.people.source = functools.lru_cache(None)(each.people.source)  # type: ignore[assignment]
    border = table.n_frames - held_out
    frame = table.rows["frame"][one.rows]
    one.rows, other.rows = one.rows[frame < border], other.rows[frame >= border]
    return one, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokenizer-steps", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--recipe", default="paper")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen, unseen = halves(options.data, options.held_out)
    say: Any = functools.partial(print, flush=True)
    torch.manual_seed(0)
    tokenizer = Alone(Tokenizer(None))
    part = Params(part="tokenizer", steps=options.tokenizer_steps, batch=32, rate=1e-3)
    history = fit(tokenizer, seen, part, note=say)
    result: dict[str, Any] = {"people": [len(seen), len(unseen)], "tokenizer loss": ends(history)}
    result["tokenizer, px of 256 on unseen people"] = reconstruct(tokenizer, unseen)
    levels = of_body(load_body())
    for tokens in ("keypoints", "none"):
        torch.manual_seed(1)
        network: FastMetro
        if tokens == "none":
            network = FastMetro(Small(), 1, widths=WIDTHS)
            network.side = PostoMetro.side  # an 8 x 8 grid, as the other has
        else:
            branch = PCT(32, (1, 1, 1, 1), guided=False)
            branch.keypoint_head.tokenizer.load_state_dict(tokenizer.keypoint_head.tokenizer.state_dict())
            network = PostoMetro(Small(), 1, widths=WIDTHS, pct=branch)
        on_body(network, levels)
        for module in network.modules():  # so short a training has no use for dropout, and it is slow on a CPU
            if isinstance(module, Attention):
                module.dropout = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        before = validate(network, unseen, tokens)
        part = Params(part="mesh", tokens=tokens, recipe=options.recipe, steps=options.steps, batch=16, rate=1e-3)
        history = fit(network, seen, part, note=say)
        result[f"mesh, tokens {tokens}"] = {
            "loss": ends(history),
            "PA-MPJPE mm, untrained": before,
            "PA-MPJPE mm, unseen scenes": validate(network, unseen, tokens),
        }
        say(json.dumps(result, indent=1))
    joints = np.concatenate([seen.batch(range(len(seen))[k::8]).joints.numpy() for k in range(8)])
    truth = unseen.batch(range(len(unseen))).joints.numpy()
    mean = np.broadcast_to(metrics.align(joints, np.broadcast_to(joints[:1], joints.shape)).mean(0), truth.shape)
    result["PA-MPJPE mm, mean body"] = float(metrics.pa_mpjpe(mean, truth).mean())
    say(json.dumps(result, indent=1))


def ends(history: list[float]) -> list[float]:
    """The mean loss of the first and of the last tenth."""
    tenth = max(1, len(history) // 10)
    return [round(float(np.mean(history[:tenth])), 4), round(float(np.mean(history[-tenth:])), 4)]


@torch.no_grad()
def reconstruct(network: Any, examples: Examples) -> float:
    """Mean distance of given keypoints after encoding, quantising and decoding."""
    tokenizer, keypoints = network.keypoint_head.tokenizer, examples.batch(range(len(examples))).keypoints
    decoded = tokenizer.decode(tokenizer.codebook[tokenizer.quantise(tokenizer.encode(keypoints))])
    return float((decoded - keypoints[..., :2]).norm(dim=-1)[keypoints[..., 2] > 0].mean())


if __name__ == "__main__":
    main()
