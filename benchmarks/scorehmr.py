"""Persons per CPU second of the refinement loop, ours against a plain implementation of the same loop, in one run.

    python -m benchmarks.scorehmr [--persons 1 16 128] [--plain-loops 1]

Both run the released settings (10 loops, 500 denoiser calls, 250 guided steps; keypoints and camera) with random
weights of the published sizes and a random body of SMPL's sizes, on one thread; time is CPU time of this process. The
plain loop does what the released program does: the whole mesh of 6890 vertices, autograd, one backward pass for the
camera and one for the pose, the condition concatenated at every call. Its loops all cost the same, so
`--plain-loops` of the ten are timed and scaled. Both must reach the same pose: the largest difference is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from stages.keypoints.joint_sets import SMPL_PARENTS
from stages.models.scorehmr.body25 import OPENPOSE25_MIX, OPENPOSE25_VERTICES
from stages.models.scorehmr.denoiser import Denoiser
from stages.models.scorehmr.guidance import Guidance
from stages.models.scorehmr.keypoint_term import KeypointTerm, Observed
from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.models.scorehmr.sampler import Codec, SamplingPlan, guided_sampling
from stages.models.scorehmr.schedule import Schedule, down

VERTICES = 6890


def random_body(generator: torch.Generator) -> dict[str, Tensor]:
    """Arrays of SMPL's sizes: a stick figure's joints with vertices scattered about its bones, four influences each."""
    offset = torch.randn(24, 3, generator=generator) * 0.15
    joints = torch.zeros(24, 3)
    for j, parent in enumerate(SMPL_PARENTS[1:], 1):
        joints[j] = joints[parent] + offset[j]
    bone = torch.randint(24, (VERTICES,), generator=generator)
    weights = torch.zeros(VERTICES, 24)
    for _ in range(4):
        other = torch.where(torch.rand(VERTICES, generator=generator) < 0.5, bone, (bone + 1) % 24)
        weights[torch.arange(VERTICES), other] += 0.25
    regressor = torch.zeros(24, VERTICES)
    for j in range(24):
        mine = (bone == j).nonzero()[:, 0]
        regressor[j, mine] = 1 / len(mine)
    return {
        "vertices": joints[bone] + 0.05 * torch.randn(VERTICES, 3, generator=generator),
        "shape": 0.01 * torch.randn(VERTICES, 3, 10, generator=generator),
        "pose": 0.002 * torch.randn(VERTICES, 3, 207, generator=generator),
        "regressor": regressor,
        "weights": weights,
    }


class PlainBody:
    """The whole mesh by linear blend skinning (Loper et al. 2015), then the 25 points."""

    def __init__(self, body: dict[str, Tensor], betas: Tensor) -> None:
        self.body, self.betas = body, betas

    def __call__(self, x: Tensor) -> Tensor:
        b, n = self.body, len(x)
        first, second = x.view(n, 24, 2, 3).unbind(2)
        b1 = torch.nn.functional.normalize(first, dim=-1)
        b2 = torch.nn.functional.normalize(second - (b1 * second).sum(-1, keepdim=True) * b1, dim=-1)
        R = torch.stack([b1, b2, torch.linalg.cross(b1, b2)], -1)
        shaped = b["vertices"] + torch.einsum("vkb,nb->nvk", b["shape"], self.betas)
        J = torch.einsum("jv,nvk->njk", b["regressor"], shaped)
        feature = (R[:, 1:] - torch.eye(3)).reshape(n, 207)
        posed = shaped + (feature @ b["pose"].reshape(-1, 207).t()).view(n, VERTICES, 3)
        G, P = [R[:, 0]], [J[:, 0]]
        for j, parent in enumerate(SMPL_PARENTS[1:], 1):
            P.append(P[parent] + (G[parent] @ (J[:, j] - J[:, parent])[..., None])[..., 0])
            G.append(G[parent] @ R[:, j])
        rotation, place = torch.stack(G, 1), torch.stack(P, 1)
        carry = place - (rotation @ J[..., None])[..., 0]
        T = torch.einsum("vj,njab->nvab", b["weights"], torch.cat([rotation, carry[..., None]], -1))
        mesh = (T[..., :3] @ posed[..., None])[..., 0] + T[..., 3]
        every = torch.cat([place, mesh[:, OPENPOSE25_VERTICES]], 1)
        return every[:, OPENPOSE25_MIX]


def plain(net: Denoiser, body: PlainBody, case: dict[str, Tensor], plan: SamplingPlan, clock: Clock) -> Tensor:
    """The loop as the released program runs it. Returns the last x0 (n, 144)."""
    schedule, x, condition = Schedule.cosine(), case["x"], case["condition"]
    transl = case["transl"].clone().requires_grad_(True)
    adam = torch.optim.Adam([transl], lr=0.01)
    x0 = x
    for _ in range(plan.loops):
        for t in range(0, plan.start, plan.step):
            with torch.no_grad(), clock("denoiser"):
                eps = net(x, torch.full((len(x),), t), condition)
            x = schedule.move(schedule.x0(x, eps, t), eps, t + plan.step)
        for t in down(plan.start, plan.step):
            with torch.no_grad(), clock("denoiser"):
                eps = net(x, torch.full((len(x),), t), condition)
            with clock("body and gradient"), torch.enable_grad():
                x = x.detach().requires_grad_(True)
                estimate = schedule.x0(x, eps, t)
                points = body(estimate) + transl[:, None]
                seen = points[..., :2] / points[..., 2:] * 5000 + case["center"][:, None]
                r2 = (seen - case["xy"]).square()
                loss = (case["confidence"][..., None].square() * 1e4 * r2 / (1e4 + r2)).sum((1, 2))
                loss = loss * (1000 / case["size"].amax(1)).square()
                (on_camera,) = torch.autograd.grad(loss.sum(), transl, retain_graph=True)
                (on_pose,) = torch.autograd.grad(0.003 * loss.sum(), x)
            with torch.no_grad():
                transl.grad = on_camera
                adam.step()
                eps = eps + schedule.sigma[t] * on_pose
                x0 = schedule.x0(x.detach(), eps, t)
                x = schedule.move(x0, eps, t - plan.step)
    return x0


class Clock:
    """CPU seconds by part: `with clock("denoiser"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str) -> Clock:
        self.name = name
        return self

    def __enter__(self) -> None:
        self.begin = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] += time.process_time() - self.begin

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            with self(name):
                return function(*args, **named)

        return timed


def ours(
    net: Denoiser, chain: KinematicChain, case: dict[str, Tensor], plan: SamplingPlan, clock: Clock | None
) -> Tensor:
    n = len(case["x"])
    observed = Observed(
        case["xy"], case["confidence"], torch.full((n, 2), 5000.0), case["center"],
        torch.full((n,), 100.0), 1000 / case["size"].amax(1),
    )  # fmt: skip
    term = KeypointTerm(chain, observed, case["betas"], case["transl"])
    eps = net.condition(case["condition"], plan.times)
    if clock is not None:
        eps = clock.around("denoiser", eps)
        term.evaluate = clock.around("body and gradient", term.evaluate)  # type: ignore[method-assign]
    return guided_sampling(eps, Schedule.cosine(), case["x"], Guidance(keypoints=term), plan, Codec()).x0


def people(n: int, points: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """n people whose keypoints come from a pose near the start."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    straight = torch.eye(3)[:, :2].t().reshape(6).repeat(24)
    x = straight + 0.2 * normal(n, 144)
    betas, size = 0.5 * normal(n, 10), torch.tensor([[1280.0, 720.0]]).repeat(n, 1)
    transl = torch.tensor([0.0, 0.0, 20.0]) + 0.2 * normal(n, 3)
    seen = points(x + 0.05 * normal(n, 144), betas) + transl[:, None]
    xy = seen[..., :2] / seen[..., 2:] * 5000 + size[:, None] / 2 + 3 * normal(n, 25, 2)
    confidence = torch.rand(n, 25, generator=generator)
    return {
        "x": x, "betas": betas, "transl": transl + 0.05 * normal(n, 3), "xy": xy, "confidence": confidence,
        "size": size, "center": size / 2, "condition": normal(n, 3072),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--persons", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--plain-loops", type=int, default=1, help="of 10; the rest is scaled")
    parser.add_argument("--repeat", type=int, default=2, help="runs of ours; the fastest counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Denoiser().eval().requires_grad_(False)
    body = random_body(generator)
    ids = torch.tensor(OPENPOSE25_VERTICES)
    joints = body["regressor"] @ body["vertices"]
    chain = KinematicChain(
        torch.tensor(SMPL_PARENTS), joints, torch.einsum("jv,vkb->jkb", body["regressor"], body["shape"]),
        body["vertices"][ids], body["shape"][ids], body["weights"][ids], torch.eye(35)[OPENPOSE25_MIX],
        body["pose"][ids],
    )  # fmt: skip

    def points(x: Tensor, betas: Tensor) -> Tensor:
        return chain.forward(x, chain.rest(betas)).points.permute(2, 0, 1)

    full, short = SamplingPlan(), SamplingPlan(loops=options.plain_loops)
    rows = []
    for n in options.persons:
        case = people(n, points, generator)
        ours(net, chain, case, SamplingPlan(loops=1), None)  # warm up
        times = []
        for _ in range(options.repeat):
            begin = time.process_time()
            ours(net, chain, case, full, None)
            times.append(time.process_time() - begin)
        split = Clock()
        begin = time.process_time()
        ours(net, chain, case, full, split)
        total = time.process_time() - begin
        theirs = Clock()
        begin = time.process_time()
        reached = plain(net, PlainBody(body, case["betas"]), case, short, theirs)
        slow = (time.process_time() - begin) * full.loops / short.loops
        gap = float((ours(net, chain, case, short, None) - reached).abs().max())
        share = {name: seconds / total for name, seconds in split.seconds.items()}
        rows.append(
            {
                "persons": n, "ours": n / min(times), "plain": n / slow, "ratio": slow / min(times),
                "denoiser": share["denoiser"], "body": share["body and gradient"], "rest": 1 - sum(share.values()),
                "difference": gap,
            }
        )  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return
    print("persons  ours/CPU s  plain/CPU s   ratio   denoiser  body+gradient  Python+rest   largest pose difference")
    for r in rows:
        print(
            f"{r['persons']:7d}  {r['ours']:10.2f}  {r['plain']:11.2f}  {r['ratio']:6.1f}  {r['denoiser']:9.0%}"
            f"  {r['body']:13.0%}  {r['rest']:11.0%}  {r['difference']:.1e}"
        )


if __name__ == "__main__":
    main()
