"""What must be quick: pages of help, and one body drawn at 640 x 480. CPU seconds, medians of one run.

    python -m benchmarks.quick [--times 7]

A page of help is also given as a multiple of `python -c "import typer"`, which no command line of typer can undercut;
drawing as a multiple of a 1000 x 1000 matrix product on the same thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stages.geometry import cameras
from stages.smpl.body import load_body
from stages.visualization import draw

HELP = ([], ["run"], ["train"], ["detect"], ["recover"])


def process_seconds(arguments: list[str]) -> float:
    """CPU seconds of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def call_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    times = parser.parse_args().times
    torch.set_num_threads(1)
    print("| | CPU seconds | multiple |\n|---|---|---|")

    def report(name: str, measure: Callable[[], float], unit: float) -> None:
        seconds = statistics.median(measure() for _ in range(times))
        print(f"| {name} | {seconds:.3f} | {seconds / unit:.1f} |", flush=True)

    typer = statistics.median(process_seconds(["-c", "import typer"]) for _ in range(times))
    for words in HELP:
        command = ["-m", "hmr_cli.app", *words, "--help"]
        report(f"`hmr {' '.join([*words, '--help'])}`", lambda command=command: process_seconds(command), typer)

    body, K = load_body("embedded"), torch.from_numpy(cameras.default_K(np.array([[640, 480]])))[0].float()
    vertices = body(*(torch.zeros(1, n) for n in (3, 69, 10)), torch.tensor([[0.0, 0.0, 3.0]])).vertices
    square = torch.rand(1000, 1000)
    product = statistics.median(call_seconds(lambda: square @ square) for _ in range(times))
    white = np.ones((1, 3))
    one = lambda: draw.render(vertices, body.faces, K, (640, 480), white, supersample=1)  # noqa: E731
    report(f"one body drawn, {len(body.faces)} faces", lambda: call_seconds(one), product)


if __name__ == "__main__":
    main()
