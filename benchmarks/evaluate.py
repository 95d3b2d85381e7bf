"""Rows per second of scoring meshes, against a plain loop over rows in the same run: `python -m benchmarks.evaluate`.

    python -m benchmarks.evaluate [--rows 35000] [--plain 200] [--json]

As many rows as 3DPW's test set has, by its protocol: SMPL parameters on both sides, men and women in the truth, bodies
with SMPL's 207 pose blend shapes (random here) posed to 6890 vertices, 14 joints of a regressor, Procrustes alignment,
vertex errors; meshes are read from a file, scores written to one. The plain loop does the same for one row at a time
as evaluation programs do: smplx's SMPL for the estimate and for the truth of its gender, NumPy for the rest, arrays in
memory, nothing written; torch may use one thread or all, whichever is faster. Memory is the largest resident size of
the process. Demand: 30 s and 2 GB on two cores, 20 times the plain loop. On a busy machine compare CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

import numpy as np
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import Column
from stages.artefacts.table import Artefact
from stages.datasets.annotations import AnnotatedData, Annotations
from stages.datasets.protocols import PROTOCOLS
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.evaluate import run
from stages.keypoints.joint_sets import get
from stages.params import EvaluateParams
from stages.smpl import body_files
from stages.smpl.body import load_body

PROTOCOL = PROTOCOLS["dpmesh"]
GENDERS = {"male": 1.05, "female": 0.95, "neutral": 1.0}
SHAPES = {"global_orient": (3,), "body_pose": (23, 3), "betas": (10,), "transl": (3,)}


def add_bodies(folder: Path) -> None:
    """The free body as "smpl" of three genders, with pose blend shapes as large as SMPL's, and H36M's regressor."""
    arrays = body_files.read_arrays(body_files.EMBEDDED)
    keep = {name: arrays[name] for name in ("v_template", "shapedirs", "J_regressor", "weights", "f")}
    keep["posedirs"] = np.random.default_rng(0).normal(0, 1e-3, (6890, 3, 207)).astype(np.float32)
    keep["kintree_table"] = np.array([[2**32 - 1, *body_files.SMPL_PARENTS[1:]], range(24)], np.uint32)
    for gender, size in GENDERS.items():
        path = folder / f"smpl_{gender}.npz"
        np.savez(path, **(keep | {"v_template": keep["v_template"] * size}))
        body_files.add(path, "smpl", gender)
        body_files.write_smplx_pickle(body_files.read_arrays(path), folder / f"{gender}.pkl")
    np.save(folder / "J_regressor_h36m_correct.npy", load_body("embedded").regressor("h36m17").numpy())


def people(n: int, seed: int) -> dict[str, np.ndarray]:
    """SMPL parameters of n random people, four metres away."""
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(0, 0.3, (n, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return found | {"transl": found["transl"] + np.array([0, 0, 4], np.float32)}


def tables(n: int, folder: Path) -> tuple[AnnotatedData, Artefact]:
    """A data set of n rows, a man and a woman in turns of a thousand frames, and a file of meshes for it."""
    truth = people(n, 1)
    K = np.array([[600, 0, 320], [0, 600, 240], [0, 0, 1]], np.float32)
    table = Annotations(
        name="3dpw (random)",
        protocol=PROTOCOL.name,
        root=folder,
        frames={"name": [f"{i}.jpg" for i in range(n)], "size": np.full((n, 2), 640), "K": [K] * n},
        frame=np.arange(n),
        track=np.arange(n) // 1000,
        box=np.tile(np.array([0, 0, 100, 200], np.float32), (n, 1)),
        keypoints=np.ones((n, 18, 3), np.float32),
        joint_set="openpose18",
        input_2d="none",
        smpl={
            "pose": np.concatenate([truth["global_orient"][:, None], truth["body_pose"]], 1).reshape(n, 72),
            "betas": truth["betas"],
            "gender": np.where(np.arange(n) // 1000 % 2, "female", "male"),
        },
    )
    data, estimate = AnnotatedData(table, folder), people(n, 2)
    job = Job(
        stage="benchmark",
        kind="meshes",
        params={},
        inputs={"detections": data.detections},
        columns=tuple(Column(f"smpl/{name}", "f4", ("R", *shape)) for name, shape in SHAPES.items()),
        group_attrs={"smpl": {"body_model": "smpl", "gender": "neutral"}},
    )
    out = folder / "x.meshes.h5"
    run_rows(job, lambda: lambda rows: {f"smpl/{name}": v[rows] for name, v in estimate.items()}, out, RunOptions())
    return data, open_artefact(out)


def posers(folder: Path) -> tuple[dict[str, Any], str]:
    """gender -> one row's pose (1, 24, 3), betas -> vertices (V, 3): smplx's SMPL, or hmr's where it is missing."""
    try:
        import smplx
    except ImportError:
        bodies = {gender: load_body("smpl", gender) for gender in GENDERS}
        found = {
            g: lambda p, b, body=body: body(p[:, 0], p[:, 1:], b).vertices[0].numpy() for g, body in bodies.items()
        }
        return found, "hmr's body, one row at a time"

    def poser(gender: str) -> Any:
        model = smplx.SMPL(str(folder / f"{gender}.pkl"), vertex_ids=load_body("embedded").vertex_ids)

        def pose(pose: torch.Tensor, betas: torch.Tensor) -> np.ndarray:
            out = model(global_orient=pose[:, 0], body_pose=pose[:, 1:].reshape(1, 69), betas=betas)
            return out.vertices[0].detach().numpy()

        return pose

    return {gender: poser(gender) for gender in GENDERS}, "smplx, one row at a time"


def plain(data: AnnotatedData, meshes: Artefact, rows: range, poses: dict[str, Any], folder: Path) -> np.ndarray:
    """The errors of rows, one after the other: (n, 3) MPJPE, PA-MPJPE, MPVE in mm."""
    regressor = np.load(folder / "J_regressor_h36m_correct.npy").astype(np.float32)
    pelvis, names = load_body("smpl").J_regressor[0].numpy(), get(PROTOCOL.joint_set)
    scored, root = [names.index(j) for j in PROTOCOL.joints], [names.index(j) for j in PROTOCOL.root]
    estimate = {name: meshes.read(f"smpl/{name}", slice(rows.start, rows.stop)) for name in SHAPES}
    smpl, found = data.table.smpl, []
    assert smpl is not None
    for k, row in enumerate(rows):
        pose = np.concatenate([estimate["global_orient"][k][None], estimate["body_pose"][k]])
        given = (("neutral", pose, estimate["betas"][k]), (smpl["gender"][row], smpl["pose"][row], smpl["betas"][row]))
        sides = []
        for gender, turns, betas in given:
            vertices = poses[gender](torch.from_numpy(turns.reshape(1, 24, 3)), torch.from_numpy(betas[None]))
            joints = regressor @ vertices
            sides.append((joints[scored] - joints[root].mean(0), vertices - pelvis @ vertices))
        (a, va), (b, vb) = sides
        mpjpe = np.sqrt(((a - b) ** 2).sum(-1)).mean()
        found.append([mpjpe, _aligned(a, b), np.sqrt(((va - vb) ** 2).sum(-1)).mean()])
    return 1000 * np.array(found)


def _aligned(a: np.ndarray, b: np.ndarray) -> float:
    """MPJPE after similarity alignment, one pair of point sets."""
    ma, mb = a.mean(0), b.mean(0)
    x, y = a - ma, b - mb
    u, s, vt = np.linalg.svd(x.T @ y)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (s * np.diag(sign)).sum() / (x**2).sum()
    return float(np.sqrt(((scale * x @ (u @ sign @ vt) - y) ** 2).sum(-1)).mean())


def timed(work: Any) -> tuple[Any, float, float]:
    """What work() returns, its wall seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=35_000)
    parser.add_argument("--plain", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        os.environ["HMR_CACHE"] = name
        add_bodies(folder)
        data, meshes = tables(given.rows, folder)
        out = folder / "x.scores.h5"
        _, wall, cpu = timed(lambda: run(meshes, data, out, EvaluateParams(), RunOptions()))
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        poses, loop = posers(folder)
        rows = range(min(given.plain, given.rows))
        slow_wall, slow_cpu, slow = np.inf, np.inf, np.empty((0, 3))
        for threads in {1, torch.get_num_threads()}:
            torch.set_num_threads(threads)
            plain(data, meshes, range(5), poses, folder)
            slow, *spent = timed(lambda: plain(data, meshes, rows, poses, folder))
            slow_wall, slow_cpu = min(slow_wall, spent[0] / len(rows)), min(slow_cpu, spent[1] / len(rows))
        with open_artefact(out) as scores:
            fast = np.stack([scores.read(f"errors/{e}", slice(0, len(rows))) for e in ("mpjpe", "pa_mpjpe", "mpve")], 1)
    result = {
        "rows": given.rows,
        "seconds": wall,
        "cpu_seconds": cpu,
        "rows_per_second": given.rows / wall,
        "memory_mb": memory_mb,
        "plain_loop": loop,
        "plain_rows_per_second": 1 / slow_wall,
        "times_faster": slow_wall * given.rows / wall,
        "times_less_cpu": slow_cpu * given.rows / cpu,
        "largest_difference_mm": float(np.abs(fast - slow).max()),
    }
    print(json.dumps(result) if given.json else "\n".join(f"{k:>22}  {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
