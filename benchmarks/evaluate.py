"""Rows per second of scoring meshes, against a plain loop over rows in the same run: `python -m benchmarks.evaluate`.

    python -m benchmarks.evaluate [--rows 35000] [--plain 200] [--json]

As many rows as 3DPW's test set has: SMPL parameters on both sides, posed to 6890 vertices, 14 joints, Procrustes
alignment, vertex errors, a scores file. The plain loop does the same for one row at a time with smplx's body model, as
evaluation scripts do (without smplx: with hmr's). Memory is the largest resident size of the process. Demand: 30 s and
2 GB on two cores, 20 times the plain loop. CPU seconds are given because wall time means little on a busy machine.
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

from stages.artefact import Artefact, memory, open_artefact
from stages.columns import Column
from stages.datasets.protocols import PROTOCOLS, Protocol
from stages.datasets.synth import SynthData
from stages.evaluate import Params, run
from stages.human.body import load_body
from stages.human.joints import get
from stages.job import Job
from stages.progress import Run, run_whole

PROTOCOL = PROTOCOLS["dpmesh"]
NAMES = ("global_orient", "body_pose", "betas", "transl")


def people(n: int, seed: int) -> dict[str, np.ndarray]:
    """SMPL parameters of n random people."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.3, (n, 24, 3)).astype(np.float32)
    betas, transl = rng.normal(0, 1, (n, 10)).astype(np.float32), np.tile(np.array([0, 0, 4], np.float32), (n, 1))
    return dict(zip(NAMES, (pose[:, 0], pose[:, 1:], betas, transl), strict=True))


def tables(n: int, folder: Path) -> tuple[Artefact, Artefact]:
    """Files of meshes and of the rows that they belong to, with the truth."""
    K = np.array([[600, 0, 320], [0, 600, 240], [0, 0, 1]], np.float32)
    frames = {"name": [f"{i}.jpg" for i in range(n)], "size": np.full((n, 2), 640), "K": np.tile(K, (n, 1, 1))}
    rows = {"frame": np.arange(n), "box": np.tile(np.array([0, 0, 100, 200], np.float32), (n, 1))}
    columns: dict[str, Any] = {"keypoints/xy": np.zeros((n, 17, 2)), "keypoints/score": np.ones((n, 17))}
    columns |= {f"extra/{name}": values for name, values in people(n, 1).items()}
    columns |= {"extra/seen": np.ones((n, 17), np.uint8), "extra/keypoints": np.zeros((n, 17, 2), np.float32)}
    attrs = {"joints": list(get("coco17")), "joint_set": "coco17", "score_definition": "none"}
    detections = memory(
        "detections",
        frames=frames,
        rows=rows,
        columns=columns,
        group_attrs={"keypoints": attrs},
        attrs={"benchmark": {"set": "random", "version": 0}},
    )
    meshes = memory(
        "meshes",
        frames=frames,
        rows=rows,
        columns={f"smpl/{name}": values for name, values in people(n, 2).items()},
        group_attrs={"smpl": {"body_model": "embedded", "gender": "neutral"}},
    )
    return written(meshes, folder), written(detections, folder)


def written(table: Artefact, folder: Path) -> Artefact:
    """The same table from a file."""
    names = table.columns()
    columns = tuple(Column(n, table.dtype(n).str[1:], ("R", *table.shape(n)[1:])) for n in names)
    groups = {g: table.group_attrs(g) for g in ("keypoints", "smpl") if table.group_attrs(g)}
    attrs = {"benchmark": table.attrs["benchmark"]} if "benchmark" in table.attrs else {}
    job = Job("benchmark", table.kind, {}, {}, columns, group_attrs=groups, attrs=attrs)
    out = folder / f"x.{table.kind}.h5"
    run_whole(job, lambda: table, out, Run())
    return open_artefact(out)


def poser(folder: Path) -> tuple[Any, str]:
    """One row's parameters -> vertices (V, 3): smplx's SMPL, or hmr's body where smplx is not installed."""
    body = load_body("embedded")
    try:
        import smplx
    except ImportError:
        return lambda *x: body(*x).vertices[0].numpy(), "hmr's body, one row at a time"
    from stages.human import body_file

    file = body_file.write_smplx_pickle(body_file.read_arrays(body_file.EMBEDDED), folder / "body.pkl")
    model = smplx.SMPL(str(file), vertex_ids=body.vertex_ids)

    def pose(orient: Any, body_pose: Any, betas: Any, transl: Any) -> np.ndarray:
        out = model(global_orient=orient, body_pose=body_pose.reshape(1, 69), betas=betas, transl=transl)
        return out.vertices[0].detach().numpy()

    return pose, "smplx, one row at a time"


def plain(meshes: Artefact, detections: Artefact, n: int, pose: Any, protocol: Protocol) -> np.ndarray:
    """The errors of the first n rows, one after the other: (n, 3) MPJPE, PA-MPJPE, MPVE in mm."""
    body = load_body("embedded")
    regressor, pelvis = body.regressor(protocol.joint_set).numpy(), body.J_regressor[0].numpy()
    names = get(protocol.joint_set)
    scored, root = [names.index(j) for j in protocol.joints], [names.index(j) for j in protocol.root]
    found = []
    for row in range(n):
        sides = []
        for table, group in ((meshes, "smpl"), (detections, "extra")):
            values = [torch.from_numpy(table.read(f"{group}/{name}", np.array([row]))) for name in NAMES]
            vertices = pose(*values)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=35_000)
    parser.add_argument("--plain", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        meshes, detections = tables(given.rows, Path(folder))
        data = SynthData(detections)
        out, start, cpu = Path(folder) / "x.scores.h5", time.perf_counter(), time.process_time()
        run(meshes, data, out, Params(protocol=PROTOCOL.name), Run())
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pose, name = poser(Path(folder))
        n = min(given.plain, given.rows)
        plain(meshes, detections, 5, pose, PROTOCOL)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        slow = plain(meshes, detections, n, pose, PROTOCOL)
        slow_wall, slow_cpu = (time.perf_counter() - begin) / n, (time.process_time() - begin_cpu) / n
        with open_artefact(out) as scores:
            fast = np.stack([scores.read(f"errors/{e}", slice(0, n)) for e in ("mpjpe", "pa_mpjpe", "mpve")], 1)
    result = {
        "rows": given.rows,
        "seconds": wall,
        "cpu_seconds": cpu,
        "rows_per_second": given.rows / wall,
        "memory_mb": memory_mb,
        "plain_loop": name,
        "plain_rows_per_second": 1 / slow_wall,
        "times_faster": slow_wall * given.rows / wall,
        "times_less_cpu": slow_cpu * given.rows / cpu,
        "largest_difference_mm": float(np.abs(fast - slow).max()),
    }
    print(json.dumps(result) if given.json else "\n".join(f"{k:>22}  {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
