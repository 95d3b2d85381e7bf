"""Does the training of PostoMETRO learn, and do pose tokens help? At a size that a CPU trains in half an hour.

    hmr synth synth-oc --pictures 3200 --poses mocap_smpl24.npz -o train.detections.h5
    hmr synth synth-oc --pictures 240 -o test.detections.h5
    python -m benchmarks.train_postometro train.detections.h5 test.detections.h5 --poses mocap_smpl24.npz -o trained

Training scenes and test scenes share no subject, no picture and no pose. First a tokenizer on keypoints of motion
capture; then, for each seed, two mesh networks on the same 64-pixel crops with the same initial weights where both
have them, order, augmentation and losses: one with the tokens of the (disturbed) given keypoints, one without
(FastMETRO). Printed: losses, and PA-MPJPE on the test scenes beside that of the mean body of the training scenes.

`--only classifier`: PCT's classifier of those tokens, with a small Swin that learns too, on 256-pixel crops; token
accuracy beside that of each position's most frequent code, distance of keypoints beside that of their mean place.
The folder `trained` keeps the state of each training: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from stages.artefacts.hdf5 import open_artefact
from stages.evaluation import metrics
from stages.models.backbones.hrnet import convolution
from stages.models.pct.network import PCT, Tokenizer
from stages.models.postometro.network import FastMetro, PostoMetro
from stages.models.postometro.transformer import MultiHeadAttention
from stages.smpl.body import load_body
from stages.smpl.mesh_sampling import of_body
from stages.training.loop import train
from stages.training.postometro.data import KeypointExamples, PostoMetroExamples
from stages.training.postometro.steps import PostoMetroTrainer, classifier_scores, mesh_errors, tokenizer_error
from stages.training.postometro.train import Params, TokenizerOnly, initialise

SIDE, WIDTHS, COUNTS = 64, (64, 64), (431, 108)
TOKENS = ("keypoints", "none")
say: Any = functools.partial(print, flush=True)


class Small(nn.Sequential):
    """64 pixels to an 8 x 8 map of 128 channels."""

    channels = 128

    def __init__(self) -> None:
        super().__init__(convolution(3, 32, 2), convolution(32, 64, 2), convolution(64, 128, 2), convolution(128, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--poses", type=Path, required=True, help="motion file that the tokenizer learns from")
    parser.add_argument("-o", "--out", type=Path, default=Path("trained"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tokenizer-steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=(*TOKENS, "classifier"), help="one network, so that processes share the work")
    parser.add_argument("--classifier-steps", type=int, default=420)
    parser.add_argument("--recipe", default="paper")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    body = load_body()
    levels = of_body(body, COUNTS)
    seen, unseen = (
        PostoMetroExamples(open_artefact(p, "detections"), body, levels, SIDE) for p in (options.train, options.test)
    )
    result: dict[str, Any] = {"people": [len(seen), len(unseen)], "mean body": mean_body(seen, unseen)}
    say(json.dumps(result))

    torch.manual_seed(0)
    tokenizer = TokenizerOnly(Tokenizer(None))
    part = Params(part="tokenizer", steps=options.tokenizer_steps, rate=1e-3)
    trainer = PostoMetroTrainer(tokenizer, KeypointExamples(options.poses, body), part)
    result["tokenizer"] = finish(trainer, options.out / "tokenizer.state")
    keypoints = unseen.batch(range(len(unseen)), images=False).keypoints
    tokenizer.eval()
    result["tokenizer"]["px of 256, test scenes"] = tokenizer_error(tokenizer.keypoint_head.tokenizer, keypoints)
    say(json.dumps(result["tokenizer"]))
    if options.only == "classifier":
        pair = [PostoMetroExamples(each.people.detections, body, levels, PostoMetro.side) for each in (seen, unseen)]
        say(json.dumps(classifier(pair[0], pair[1], tokenizer, options.classifier_steps, options.out)))
        return
    for seed in options.seeds:
        for tokens in (options.only,) if options.only else TOKENS:
            network = small(tokens, tokenizer, seed)
            initialise(network, body, levels)
            before = float(mesh_errors(network, unseen, tokens).mean())
            part = Params(
                part="mesh", tokens=tokens, recipe=options.recipe, steps=options.steps, rate=1e-3, seed=1 + seed
            )
            found = finish(PostoMetroTrainer(network, seen, part), options.out / f"mesh-{tokens}-{seed}.state")
            errors = mesh_errors(network, unseen, tokens)
            found |= {"PA-MPJPE mm, untrained": before, "PA-MPJPE mm": float(errors.mean())}
            np.save(options.out / f"errors-{tokens}-{seed}.npy", errors)
            result[f"tokens {tokens}, seed {seed}"] = found
            say(tokens, seed, json.dumps(found))
    say(json.dumps(result, indent=1))


def small(tokens: str, tokenizer: TokenizerOnly, seed: int) -> FastMetro:
    """A network with or without pose tokens; what both have begins alike."""
    torch.manual_seed(seed)
    plain = FastMetro(Small(), 1, COUNTS, widths=WIDTHS)
    plain.side = PostoMetro.side  # an 8 x 8 grid, as the other has
    network: FastMetro = plain
    if tokens != "none":
        branch = PCT(32, (1, 1, 1, 1), guided=False)
        branch.keypoint_head.tokenizer.load_state_dict(tokenizer.keypoint_head.tokenizer.state_dict())
        network = PostoMetro(Small(), 1, COUNTS, widths=WIDTHS, pct=branch)
        network.load_state_dict(plain.state_dict(), strict=False)
    for module in network.modules():  # so short a training has no use for dropout, and it is slow on a CPU
        if isinstance(module, MultiHeadAttention):
            module.dropout = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def classifier(
    seen: PostoMetroExamples, unseen: PostoMetroExamples, tokenizer: TokenizerOnly, steps: int, out: Path
) -> dict[str, Any]:
    """Train PCT's classifier; (token accuracy, pixels of 256) on unseen crops, and of what needs no picture."""
    torch.manual_seed(0)
    network = PCT(32, (1, 1, 1, 1), guided=False)
    inner = network.keypoint_head.tokenizer
    inner.load_state_dict(tokenizer.keypoint_head.tokenizer.state_dict())
    part = Params(part="classifier", thaw=True, steps=steps, batch=8, rate=3e-3)
    result = finish(PostoMetroTrainer(network, seen, part), out / "classifier.state")
    result["unseen crops"] = classifier_scores(network, unseen)
    learnt, asked = (e.batch(range(len(e)), images=False).keypoints for e in (seen, unseen))
    with torch.no_grad():
        codes, wanted = inner.quantise(inner.encode(learnt)), inner.quantise(inner.encode(asked))
    given = learnt[..., 2:]
    mean = (learnt[..., :2] * given).sum(0) / given.sum(0)
    away = (asked[..., :2] - mean).norm(dim=-1)[asked[..., 2] > 0].mean()
    result["without pictures"] = float((wanted == codes.mode(0).values).float().mean()), float(away)
    return result


def finish(trainer: PostoMetroTrainer, state: Path) -> dict[str, Any]:
    """Train to the end, or read the end: mean loss of the first and last tenth, CPU seconds a step of what was left."""
    already, start = trainer.done, time.process_time()
    train(trainer, state)
    tenth = max(1, len(trainer.losses) // 10)
    ends = [round(float(np.mean(part)), 3) for part in (trainer.losses[:tenth], trainer.losses[-tenth:])]
    ms = 1000 * (time.process_time() - start) / max(1, trainer.done - already)
    return {"loss": ends, "steps": trainer.done, "CPU ms a step": round(ms, 1)}


def mean_body(seen: PostoMetroExamples, unseen: PostoMetroExamples) -> float:
    """PA-MPJPE in mm on `unseen` of the mean of the bodies of `seen`, each first aligned with one of them."""
    joints = [e.batch(range(len(e)), images=False).joints.numpy() for e in (seen, unseen)]
    aligned = metrics.align(joints[0], np.broadcast_to(joints[0][:1], joints[0].shape))
    mean = np.broadcast_to(aligned.mean(0), joints[1].shape)
    return float(metrics.pa_mpjpe(mean, joints[1]).mean())


if __name__ == "__main__":
    main()
