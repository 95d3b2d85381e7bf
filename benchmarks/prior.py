"""The acceptance table of the embedded pose prior: refinement from the embedded recoverer against plain fitting.

    python -m benchmarks.prior --poses mocap_smpl24.npz [--people 300] [--json]

People of subjects that nothing was trained on (CMU 14; HDM05 is another laboratory), seen by random cameras; keypoints
clean, with 3 px of noise in a 256 crop, and with noise and about a third missing. For each: 2D error of the visible
keypoints (crop px), MPJPE and PA-MPJPE of 14 joints in mm, for the recoverer, the refined pose, and plain gradient
fitting (`--method fit`) stopped where its 2D error equals the refined one. Demand: 2D down by 25 %, PA at most 0.3 mm
above the start and below plain fitting, 40 ms a person.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from stages.evaluation import metrics
from stages.files.checkpoints import read_checkpoint
from stages.geometry.rotations import matrix_to_rot6d_columns, rot6d_columns_to_matrix
from stages.keypoints import joint_sets
from stages.keypoints.body25 import to_body25
from stages.models.base import EstimateBatch
from stages.models.embedded.kinematics import Skeleton
from stages.models.embedded.network import Network
from stages.models.scorehmr.gradient_fit import fit
from stages.models.scorehmr.refiner import ScoreHmrRefiner
from stages.models.scorehmr.settings import ScoreHmrSettings
from stages.models.scorehmr.weights import EMBEDDED
from stages.smpl.body import Body, load_body
from stages.synthetic.mocap import COCO, NOTHING, load_poses
from stages.training.synthetic_keypoints import CROP, EXACT, Camera, KeypointBatch, draw_batch

RECOVERER = EMBEDDED.with_name("embedded.safetensors")
NAMES = [f"{s}_{p}" for p in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder") for s in ("left", "right")]
FOURTEEN = joint_sets.index(joint_sets.SETS["smpl24"], [*NAMES, "neck", "head"])


def draw(
    body: Body, poses: Path, source: str, subjects: tuple[str, ...], missing: float, px: float, n: int
) -> KeypointBatch:
    """n people of held-out subjects with keypoints disturbed by exactly `px`, `missing` of them not visible."""
    bank = load_poses(poses, sources=source, subjects=subjects, without=())
    generator = torch.Generator().manual_seed(7)
    skeleton = Skeleton.from_body(body)
    batch = draw_batch(n, bank, skeleton, generator, augment=NOTHING, camera=Camera(even=True), corruption=EXACT)
    noise = px * 2 / CROP * torch.randn(batch.observed.shape, generator=generator)
    hidden = torch.rand(batch.visible.shape, generator=generator) < missing
    order = torch.rand(hidden.shape, generator=generator) + hidden
    hidden &= ~(order.argsort(0).argsort(0) < 5)
    batch.visible = ~hidden
    batch.observed = batch.image + noise
    return batch


def recovered(network: Network, body: Body, batch: KeypointBatch) -> EstimateBatch:
    """The recoverer's estimates of the batch; the focal length makes an image pixel a crop pixel."""
    from stages.geometry.cameras import look_at
    from stages.models.embedded.virtual_camera import features, solve_pelvis

    confidence = batch.visible.float()
    image = batch.observed * batch.half
    R, half, normal = look_at(image, confidence)
    estimate = network(features(normal, confidence, half), half)[0][-1]
    n = len(half)
    # Back from the network's own view to the batch's.
    rotation = estimate.rotation.permute(3, 2, 0, 1).clone()
    R_back = R.permute(2, 1, 0)
    rotation[:, 0] = R_back @ rotation[:, 0]
    position = solve_pelvis(estimate.points, normal * half, confidence, estimate.pelvis)  # as hmr recover does
    pelvis = (R_back @ position.t()[..., None])[..., 0]
    betas = estimate.betas.t().contiguous()
    transl = pelvis - body.rest_joints(betas)[:, 0]
    K = torch.zeros(n, 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = CROP / 2 / batch.half
    K[:, 2, 2] = 1
    xy = (image * K[:, 0, 0]).permute(2, 1, 0)
    keypoints = torch.cat([xy, confidence.t()[..., None]], -1)
    return EstimateBatch(
        rotation, betas, transl, torch.from_numpy(to_body25(keypoints.numpy(), COCO)), K, torch.full((n, 2), 256.0),
        torch.ones(n, dtype=torch.bool), torch.arange(n),
    )  # fmt: skip


def measure(body: Body, rotmat: Tensor, betas: Tensor, truth: np.ndarray) -> tuple[float, float]:
    """MPJPE about the middle of the hips and PA-MPJPE, mm."""
    joints = body.joints(rotmat, betas).numpy()[:, FOURTEEN]
    hips = [4, 5]
    a, b = (metrics.centred(x, x[:, hips].mean(1)) for x in (joints, truth))
    return float(metrics.mpjpe(a, b).mean()), float(metrics.pa_mpjpe(a, b).mean())


def compare(
    refiner: ScoreHmrRefiner, settings: ScoreHmrSettings, estimates: EstimateBatch, truth: np.ndarray
) -> dict[str, Any]:
    body = refiner.body
    for _ in range(2):  # the first warms up
        begin = time.process_time()
        result = refiner(estimates, settings)
        seconds = time.process_time() - begin
    row: dict[str, Any] = {
        "start": (float(result.error[:, 0].mean()), *measure(body, estimates.rotmat, estimates.betas, truth)),
        "score": (float(result.error[:, 1].mean()), *measure(body, result.rotmat, result.betas, truth)),
        "ms": 1000 * seconds / len(truth),
    }
    pose = matrix_to_rot6d_columns(estimates.rotmat).flatten(1)
    guidance, _ = refiner.guidance_for(estimates, settings)
    path = []
    for x, transl in fit(pose, guidance, 150):
        error = float(refiner.keypoint_error(x, estimates.betas, transl, estimates).mean())
        path.append((error, *measure(body, rot6d_columns_to_matrix(x.view(-1, 24, 6)), estimates.betas, truth)))
        if error < row["score"][0]:
            break
    row["fit"] = path[-1]
    if len(path) > 1 and path[-1][0] < row["score"][0]:  # between two steps
        a, b = np.array(path[-2]), np.array(path[-1])
        share = (a[0] - row["score"][0]) / (a[0] - b[0])
        row["fit"] = tuple((a + share * (b - a)).tolist())
    row["fit_steps"] = len(path)
    return row


def network_of(path: Path, body: Body) -> Network:
    checkpoint = read_checkpoint(path)
    shape = json.loads(checkpoint.metadata["shape"])
    network = Network(Skeleton.from_body(body), shape["width"], tuple(shape["blocks"]))
    network.load_state_dict({k: v.float() for k, v in checkpoint.without("embedded.").items()})
    return network.eval()


CASES = (
    ("CMU 14, clean", "cmu", ("cmu14",), 0.0, 0.0),
    ("CMU 14, 3 px", "cmu", ("cmu14",), 0.0, 3.0),
    ("CMU 14, 3 px, 32 % missing", "cmu", ("cmu14",), 0.32, 3.0),
    ("HDM05, 3 px", "hdm", (), 0.0, 3.0),
)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--poses", type=Path, required=True)
    parser.add_argument("--recoverer", type=Path, default=RECOVERER)
    parser.add_argument("--prior", type=Path, default=EMBEDDED)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    body = load_body("embedded")
    refiner = ScoreHmrRefiner.load(read_checkpoint(options.prior), body=body)
    settings = refiner.preset("default")
    network = network_of(options.recoverer, body)
    table = {}
    for name, source, subjects, missing, px in CASES:
        batch = draw(body, options.poses, source, subjects, missing, px, options.people)
        truth = batch.joints.permute(2, 1, 0).numpy()[:, FOURTEEN]
        table[name] = compare(refiner, settings, recovered(network, body, batch), truth)
    if options.json:
        print(json.dumps(table))
        return
    print(
        f"{'':28s} {'start: 2D px, MPJPE/PA':>24s} {'refined':>24s} {'fit at equal 2D':>24s}   2D     PA  ms/person  ok"
    )
    for name, r in table.items():
        cells = [f"{r[k][0]:6.2f}  {r[k][1]:6.1f}/{r[k][2]:5.1f}" for k in ("start", "score", "fit")]
        gain, change = 1 - r["score"][0] / r["start"][0], r["score"][2] - r["start"][2]
        good = gain >= 0.25 and change <= 0.3 and r["score"][2] < r["fit"][2] and r["ms"] <= 40
        print(
            f"{name:28s} {cells[0]:>24s} {cells[1]:>24s} {cells[2]:>24s} {-gain:5.0%} {change:+6.2f} {r['ms']:9.1f}"
            f"   {'yes' if good else 'NO'}"
        )


if __name__ == "__main__":
    main()
