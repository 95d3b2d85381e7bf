"""Bodies of other programs -> meshes: a starting point for refinement, evaluation or export.

    hmr import amass walk_poses.npz -o walk.meshes.h5
    hmr import hmr2 3dpw_test_pred.npz --annotations 3dpw_test.npz --images 3dpw/ -o 3dpw.meshes.h5
    hmr import phalp results/demo_video.pkl -o video.meshes.h5

In: AMASS npz; predictions of SPIN, HMR 2.0 and ScoreHMR (`pred_pose`, `pred_betas`, `pred_cam`, `pred_cam_t`); tracks
of PHALP and 4D-Humans (joblib pickles, read without running them). Out: a meshes artefact in the OpenCV camera frame,
and on request detections with the same rows (boxes, no keypoints), which `hmr detect --boxes` completes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import FAILED, K_DEFAULT, K_USER, OK
from stages.errors import InputError, UsageError
from stages.formats.source import parse_size
from stages.geometry import cameras
from stages.media.images import read_image
from stages.params import ImportBodiesParams as Params


@dataclasses.dataclass
class Bodies:
    """What a file says: names (F,), size (F, 2), time (F,) of frames; frame, track (R,), box (R, 4), score (R,);
    smpl: global_orient (R, 3), body_pose (R, 23, 3), betas (R, 10), transl (R, 3). known: K is what transl is for."""

    kind: str
    path: Path
    fingerprint: str
    names: list[str]
    size: np.ndarray
    frame: np.ndarray
    box: np.ndarray
    smpl: dict[str, np.ndarray]
    K: np.ndarray
    known: bool = True
    track: np.ndarray | int = -1
    score: np.ndarray | float = 1.0
    time: np.ndarray | None = None
    video: bool = False

    def frames(self) -> dict[str, Any]:
        time = np.full(len(self.names), np.nan) if self.time is None else self.time
        source = 0 if self.video else -1
        known = K_USER if self.known else K_DEFAULT
        return {
            "name": self.names, "size": self.size, "K": self.K, "K_source": known, "time": time, "source": source,
        }  # fmt: skip

    def finite(self) -> np.ndarray:
        """Which rows (R,) have a whole body and box."""
        every = [np.isfinite(value) for value in (self.box, *self.smpl.values())]
        return np.logical_and.reduce([value.all(tuple(range(1, value.ndim))) for value in every])

    def rows(self) -> dict[str, Any]:
        good = self.finite()
        return {
            "frame": self.frame, "box": np.where(good[:, None], self.box, 0), "track": self.track, "score": self.score,
            "status": np.where(good, OK, FAILED), "error": np.where(good, "", "the body in the file is not finite"),
        }  # fmt: skip


# ---- formats -------------------------------------------------------------------------------------------------------


# ---- parts ---------------------------------------------------------------------------------------------------------


def smpl_columns(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> dict[str, np.ndarray]:
    return {"global_orient": pose[:, 0], "body_pose": pose[:, 1:], "betas": betas, "transl": transl}


def program_camera(size: np.ndarray, focal: float) -> np.ndarray:
    """K (F, 3, 3) of these programs: one focal length, the principal point at (w / 2, h / 2)."""
    f = np.full(len(size), focal)
    return cameras.make_K(f, f, size[:, 0] / 2.0, size[:, 1] / 2.0)


def image_sizes(names: list[str], images: Path | None, params: Params) -> np.ndarray:
    """Sizes (F, 2) of the images: read from the files, or as --size requests. Raises InputError."""
    requested = parse_size(params.size)
    if images is None:
        if requested is None:
            raise UsageError("the pictures' sizes are not known", "give --images DIR or --size WxH")
        return np.tile(np.array(requested), (len(names), 1))
    return np.array([read_image(Path(images) / name).size for name in names]).reshape(-1, 2)


def read_npz(path: Path, needed: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The arrays of an npz (never pickled objects) and the file's SHA-256. Raises InputError."""
    try:
        data = Path(path).read_bytes()
        with np.load(path, allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError:  # an array of Python objects, which nobody needs here
                    continue
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except Exception as error:
        raise InputError(f"{path} is no whole npz file: {error}") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}", f"it holds {', '.join(arrays) or 'nothing'}")
    return arrays, hashlib.sha256(data).hexdigest()
