"""The poses of the cameras of several views: `--cameras`, a JSON file of world-to-camera poses by view number."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.errors import InputError

EXAMPLE = '{"0": {"R": [[...]], "t": [...]}, ...}'


@dataclass(frozen=True)
class CameraRig:
    """World-to-camera poses by view number: R (3, 3), and t (3,) m of every view or of none. An input of a job."""

    R: dict[int, np.ndarray]
    t: dict[int, np.ndarray]
    path: Path
    kind = "cameras"

    @property
    def fingerprint(self) -> str:
        """sha256 over the poses."""
        matrices = {
            name: {str(v): each[v].tolist() for v in sorted(each)} for name, each in (("R", self.R), ("t", self.t))
        }
        return hashlib.sha256(json.dumps(matrices, sort_keys=True).encode()).hexdigest()

    @property
    def has_positions(self) -> bool:
        """Whether the positions of the cameras are known, not only their orientations."""
        return bool(self.t)

    def poses(self, view: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """R (n, 3, 3) and, if known, t (n, 3) of views (n,). Raises InputError for views not in the file."""
        if missing := sorted({int(v) for v in view} - self.R.keys()):
            views = ", ".join(map(str, missing))
            available = ", ".join(map(str, sorted(self.R))) or "none"
            raise InputError(
                f"{self.path} has no pose of view {views} (it has {available})", "name every view of the frames"
            )
        R = np.stack([self.R[int(v)] for v in view]) if len(view) else np.zeros((0, 3, 3), np.float32)
        if not self.has_positions:
            return R, None
        return R, np.stack([self.t[int(v)] for v in view]) if len(view) else np.zeros((0, 3), np.float32)


def read_rig(path: str | None) -> CameraRig | None:
    """The rig of a file; None without a path. Raises InputError."""
    if not path:
        return None
    try:
        table = json.loads(Path(path).read_text())
        R = {int(view): np.array(entry["R"], np.float32) for view, entry in table.items()}
        t = {int(view): np.array(entry["t"], np.float32) for view, entry in table.items() if entry.get("t") is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no table of camera poses: {error}", EXAMPLE) from error
    for view, matrix in R.items():
        rotation = matrix.shape == (3, 3) and np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3)
        if not rotation or np.linalg.det(matrix) < 0:
            raise InputError(f"{path}: R of view {view} is no rotation matrix", "three rows of three, world to camera")
    for view, position in t.items():
        if position.shape != (3,) or not np.isfinite(position).all():
            raise InputError(f"{path}: t of view {view} is not three numbers", "metres, world to camera: x = R X + t")
    if t and (without := sorted(R.keys() - t.keys())):
        raise InputError(f"{path}: view {without[0]} has no t, others have one", "give t of every view, or of none")
    return CameraRig(R, t, Path(path))
