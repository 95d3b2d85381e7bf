"""Rows per second, share of input/output and memory of `hmr heatmaps` and `hmr recover` on many rows.

    python -m benchmarks.verbs [--rows 10000]

Each stage runs in a process of its own on a detections file of random people, once with a fifth of the rows and once
with all; time is wall time of one thread, and the share of input/output is what the stage spends outside the function
batch -> columns: reading keypoints, writing parts, joining them. Memory is the process's largest resident size; it must
not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stages import heatmaps, recover
from stages.artefacts.kinds import KINDS
from stages.artefacts.table import in_memory
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_whole
from stages.geometry import cameras
from stages.keypoints import joint_sets
from stages.params import RecoverParams

PER_FRAME = 4


def write_detections(out: Path, n: int) -> None:
    """n random people, four in a picture."""
    rng = np.random.default_rng(0)
    count = -(-n // PER_FRAME)
    size = np.tile([[640, 480]], (count, 1))
    centre, scale = rng.uniform(150, 400, (n, 1, 2)), rng.uniform(40, 120, (n, 1, 1))
    xy = centre + scale * rng.uniform(-1, 1, (n, 17, 2)) * [0.4, 1.0]
    names = list(joint_sets.get("coco17"))
    attrs = {"keypoints": {"joints": names, "joint_set": "coco17", "score_definition": "random"}}
    box = np.concatenate([xy.min(1), xy.max(1)], 1)
    table = in_memory(
        "detections",
        frames={"name": [f"{i}.jpg" for i in range(count)], "size": size, "K": cameras.default_K(size * 1.0)},
        rows={"frame": np.arange(n) // PER_FRAME, "box": box},
        columns={"keypoints/xy": xy, "keypoints/score": rng.uniform(0.3, 1, (n, 17))},
        group_attrs=attrs,
    )
    job = Job("import", "detections", {"rows": n}, {}, KINDS["detections"].columns, group_attrs=attrs)
    run_whole(job, lambda: table, out, RunOptions())


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same function; its seconds are added to `spent`."""

    def call(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[0] += time.perf_counter() - start

    return call


def run_stage(stage: str, detections: Path, out: Path) -> dict[str, float]:
    """One stage in this process: seconds, seconds of computing, MiB."""
    spent = [0.0]
    if stage == "recover":
        model, provenance = recover.load(RecoverParams(), None, "cpu")  # before the clock: no matter of rows
        kind: Any = type(model)
        kind.__call__ = timed(kind.__call__, spent)
        recover.load = lambda *args: (model, provenance)
    else:
        for name in ("dpmesh_keypoints", "condition", "gaussian_heatmaps"):
            setattr(heatmaps.heatmap, name, timed(getattr(heatmaps.heatmap, name), spent))
    verb: Any = recover if stage == "recover" else heatmaps
    start = time.perf_counter()
    verb.run(detections, out)
    total = time.perf_counter() - start
    return {"seconds": total, "computing": spent[0], "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "IN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_stage(args.one[0], Path(args.one[1]), Path(args.one[2]))))
        return
    print("| stage | rows | rows/s | input/output | largest memory, MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n in (args.rows // 5, args.rows):
            table = Path(folder) / f"{n}.detections.h5"
            write_detections(table, n)
            for stage in ("heatmaps", "recover"):
                out = Path(folder) / f"{n}.{stage}.h5"
                command = [sys.executable, "-m", "benchmarks.verbs", "--one", stage, str(table), str(out)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                r = json.loads(done.stdout.splitlines()[-1])
                share = 1 - r["computing"] / r["seconds"]
                print(f"| {stage} | {n} | {n / r['seconds']:.0f} | {share:.0%} | {r['MiB']:.0f} |", flush=True)
                out.unlink()


if __name__ == "__main__":
    main()
