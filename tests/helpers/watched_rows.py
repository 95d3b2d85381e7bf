"""What tests of the engine share: a table of three parts, computations that are watched, a job over frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, KINDS, OK
from stages.artefacts.table import Artefact
from stages.engine.job import Job, ProgressReport
from tests.helpers.small_artefacts import COCO, detections, recover_load

ROWS = 700  # three parts


TABLE = detections(ROWS)


class Notes(ProgressReport):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


def counted(table: Artefact, stop_at: int = 10**9, error: BaseException | None = None) -> tuple[Callable, list[int]]:
    """recover_load that counts the rows it computes and raises `error` when it comes to row `stop_at`."""
    seen: list[int] = []

    def load() -> Callable[[np.ndarray], Any]:
        compute = recover_load(table)()

        def watched(rows: np.ndarray) -> Any:
            if error is not None and (rows >= stop_at).any():
                raise error
            seen.extend(rows.tolist())
            return compute(rows)

        return watched

    return load, seen


def never() -> Any:
    raise AssertionError("nothing is left to compute")


class Images:
    kind, path, fingerprint = "frames", None, "f" * 64


def detect_job(**changes: Any) -> Job:
    columns = KINDS["detections"].columns
    return Job("detect", "detections", {}, {"pictures": Images()}, columns, group_attrs={"keypoints": COCO}, **changes)


def detect_load(empty: range = range(0)) -> Any:
    """Frame i holds i % 3 people, none in `empty`; frame 5 cannot be read."""

    def compute(frames: np.ndarray) -> Any:
        people = [0 if f in empty or f == 5 else int(f) % 3 for f in frames]
        of = np.repeat(frames, people)
        n = len(frames)
        table = {
            "name": [f"{f}.jpg" for f in frames],
            "size": np.full((n, 2), 64),
            "K": np.tile(np.array([[80, 0, 31.5], [0, 80, 31.5], [0, 0, 1]]), (n, 1, 1)),
            "status": [FAILED if f == 5 else OK for f in frames],
            "error": ["5.jpg: empty" if f == 5 else "" for f in frames],
        }
        rows = {"frame": of, "box": np.stack([of, of, of + 9, of + 9], 1), "score": of / 1000}
        xy = np.tile(of[:, None, None], (1, 17, 2)) if len(of) else np.zeros((0, 0, 2))
        return table, rows, {"keypoints/xy": xy, "keypoints/score": xy[..., 0]}

    return lambda: compute


def tracks(artefact: Artefact) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A `finish` that needs the whole table."""
    order = np.argsort(-artefact.read("keypoints/score")[:, 0], kind="stable")
    return {"track": np.argsort(order).astype(np.int32)}, {"summary": {"people": artefact.n_rows}}
