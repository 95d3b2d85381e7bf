"""What several cameras are worth: `python -m benchmarks.views [--rows 540] [--json]`.

The set synth-views (one person, four cameras a scene, a detector's worst errors), recovered, then refined four ways in
one run: each row alone, the views of a moment without a rig, with the cameras' orientations, and with their places too.
Errors in mm: MPJPE and PA-MPJPE of 14 joints as `hmr eval` counts them, and the distance of 14 and of 24 joints in the
world. Time: CPU ms a row on one thread, 256 rows at once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stages.engine.job import RunOptions
from stages.evaluation import metrics
from stages.files.checkpoints import read_checkpoint
from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.scorehmr.body25 import evidence
from stages.models.scorehmr.refiner import EMBEDDED, EstimateBatch, ScoreHmrRefiner
from stages.pipeline import open_dataset, recover_dataset
from stages.smpl.body import load_body

WAYS = ("recover", "each row alone", "views", "views, orientations known", "views, orientations and places known")
SCENE = 4  # rows of one person


def read(rows: int) -> tuple[EstimateBatch, dict[str, torch.Tensor]]:
    """Estimates with the cameras' poses, and the true joints of two sets in each row's camera."""
    dataset = open_dataset("synth-views", None, RunOptions())
    table, meshes = dataset.detections, recover_dataset(dataset)
    frame = table.rows["frame"][:rows]
    frame = frame[: rows // SCENE * SCENE]
    at = slice(0, len(frame))

    def tensor(source: Any, name: str) -> torch.Tensor:
        return torch.from_numpy(source.read(name, at)).float()

    def posed(source: Any, group: str) -> torch.Tensor:
        return axis_angle_to_matrix(
            torch.cat([tensor(source, f"{group}/global_orient")[:, None], tensor(source, f"{group}/body_pose")], 1)
        )

    names = tuple(table.group_attrs("keypoints")["joints"])
    keypoints = torch.cat([tensor(table, "keypoints/xy"), tensor(table, "keypoints/score")[..., None]], -1)
    camera = tensor(table, "extra/world_to_camera")
    n = len(frame)
    batch = EstimateBatch(
        rotmat=posed(meshes, "smpl"), betas=tensor(meshes, "smpl/betas"), transl=tensor(meshes, "smpl/transl"),
        keypoints=evidence(keypoints, names), K=torch.from_numpy(table.frames["K"][frame]).float(),
        size=torch.from_numpy(table.frames["size"][frame]).float(), known=torch.ones(n, dtype=torch.bool),
        seed=torch.zeros(n, dtype=torch.long), group=torch.from_numpy(frame // SCENE).long(),
        turn=camera[:, :3, :3].transpose(1, 2), t=camera[:, :3, 3], known_shape=torch.zeros(n),
    )  # fmt: skip
    body = load_body("embedded")
    truth = posed(table, "extra"), tensor(table, "extra/betas"), tensor(table, "extra/transl")
    return batch, {s: body.joints(*truth, s) for s in ("lsp14", "smpl24")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=540)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch, truth = read(options.rows)
    body = load_body("embedded")
    refiner = ScoreHmrRefiner.load(read_checkpoint(EMBEDDED), body=body)
    found = []
    for way, name in enumerate(WAYS):
        settings = refiner.preset("default", alone=way in (1, 4))
        unknown = ("group", "turn", "t", "known_shape")[: 0 if way == 4 else 4]
        kept = {2: ("group",), 3: ("group", "turn")}.get(way, ())
        begun, parts = time.process_time(), []
        for low in range(0, len(batch.betas), 256):
            part = batch.each(lambda v, low=low: v[low : low + 256])  # type: ignore[misc]
            part.group = torch.unique(part.group, return_inverse=True)[1]
            if way > 1:  # one shape a person, as in hmr refine
                part.betas = part.betas.unflatten(0, (-1, SCENE)).mean(1).repeat_interleave(SCENE, 0)
            for field in unknown:
                if field not in kept:
                    setattr(part, field, None)
            made = part if way == 0 else refiner(part, settings)
            parts.append((made.rotmat, made.betas, made.transl))
        spent = (time.process_time() - begun) / len(batch.betas)
        out = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        joints = {s: body.joints(*out, s) for s in truth}
        away = {s: 1000 * (joints[s] - truth[s]).norm(dim=-1).mean().item() for s in truth}
        mine, right = joints["lsp14"].numpy(), truth["lsp14"].numpy()
        hips = [v[:, 2:4].mean(1, keepdims=True) for v in (mine, right)]  # lsp14: right hip, left hip
        mpjpe = 1000 * float(np.linalg.norm((mine - hips[0]) - (right - hips[1]), axis=-1).mean())
        pa = float(np.mean(metrics.pa_mpjpe(mine, right)))
        found.append(
            {"way": name, "mpjpe": mpjpe, "pa_mpjpe": pa, "world14": away["lsp14"], "world24": away["smpl24"],
             "ms_a_row": 1000 * spent if way else 0.0}
        )  # fmt: skip
    if options.json:
        print(json.dumps(found))
        return
    print(f"{len(batch.betas)} rows of synth-views\n| | MPJPE | PA-MPJPE | world, 14 | world, 24 | ms a row |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in found:
        numbers = " | ".join(f"{row[k]:.1f}" for k in ("mpjpe", "pa_mpjpe", "world14", "world24", "ms_a_row"))
        print(f"| {row['way']} | {numbers} |")


if __name__ == "__main__":
    main()
