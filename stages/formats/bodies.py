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
import torch

from stages.artefacts.kinds import FAILED, K_DEFAULT, K_USER, OK, SMPL_COLUMNS
from stages.artefacts.table import Artefact, memory
from stages.engine.runner import Job, Run, run_whole
from stages.errors import InputError, UsageError
from stages.files.joblib import read_data
from stages.formats.amass import from_amass
from stages.geometry import cameras
from stages.geometry.rotations import matrix_to_axis_angle
from stages.import_ import MeshParams as Params
from stages.import_ import parse_size
from stages.media.images import read_picture
from stages.smpl.body import load_body


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


def run(
    bodies: Bodies, out: Path | None, params: Params = Params(), run: Run = Run(), *, boxes: Path | None = None
) -> Path | Artefact:
    """Write the meshes (None: in memory) and, if `boxes` is given, detections with the same rows there."""
    attrs = {"body_model": params.body, "gender": "neutral"}

    def meshes() -> Artefact:
        lost = ~bodies.finite()
        columns = {f"smpl/{name}": np.array(value) for name, value in bodies.smpl.items()}
        for value in columns.values():
            value[lost] = np.nan
        return memory(
            "meshes", frames=bodies.frames(), rows=bodies.rows(), columns=columns, group_attrs={"smpl": attrs}
        )

    def empty() -> Artefact:
        none = np.zeros((len(bodies.frame), 0))
        return memory(
            "detections", frames=bodies.frames(), rows=bodies.rows(), group_attrs={"keypoints": BOXES},
            columns={"keypoints/xy": none[..., None].repeat(2, 2), "keypoints/score": none},
        )  # fmt: skip

    job = Job(
        stage=f"import {bodies.kind}",
        kind="meshes",
        params=params,
        inputs={bodies.kind: bodies},
        columns=SMPL_COLUMNS,
        group_attrs={"smpl": attrs},
    )
    if boxes is not None:
        from stages.artefacts.kinds import KINDS

        other = dataclasses.replace(
            job, kind="detections", columns=KINDS["detections"].columns, group_attrs={"keypoints": BOXES}
        )
        run_whole(other, empty, boxes, run)
    return run_whole(job, meshes, out, run)


BOXES = {"joints": [], "joint_set": "none", "score_definition": "no keypoints"}


# ---- formats -------------------------------------------------------------------------------------------------------


def read_amass(path: Path, params: Params) -> Bodies:
    """An AMASS npz, or one of `hmr export`: every frame one person, seen by a level camera at the world's origin."""
    arrays, fingerprint = _npz(path, ("poses", "trans", "betas"))
    poses = np.asarray(arrays["poses"])
    if poses.ndim != 2 or poses.shape[1] < 66 or len(arrays["trans"]) != len(poses):
        raise InputError(f"{path}: poses {poses.shape}, trans {arrays['trans'].shape}: no AMASS motion")
    body = load_body(params.body)
    smpl = from_amass(arrays, body)
    n = len(poses)
    rate = float(arrays.get("mocap_framerate", arrays.get("mocap_frame_rate", 30.0)))
    size = np.tile(np.array(parse_size(params.size) or (1000, 1000)), (n, 1))
    K = cameras.default_K(size)
    with torch.no_grad():
        out = [
            torch.from_numpy(np.asarray(smpl[k], np.float32)) for k in ("global_orient", "body_pose", "betas", "transl")
        ]
        points = body(*out).joints.numpy()
    front = (points[..., 2] > 0.1).all(1)
    xy = cameras.project(np.where(front[:, None, None], points, 1.0), K)
    box = np.where(front[:, None], np.concatenate([xy.min(1), xy.max(1)], 1), 0)
    names = [f"{path.stem}#{i:06d}" for i in range(n)]
    return Bodies(
        "amass", path, fingerprint, names, size, np.arange(n), box, smpl, K,
        track=np.zeros(n, int), time=np.arange(n) / rate, video=True,
    )  # fmt: skip


def read_predictions(path: Path, params: Params, annotations: Path | None = None, images: Path | None = None) -> Bodies:
    """A prediction npz of SPIN, HMR 2.0 or ScoreHMR: pred_pose (n, 24, 3, 3) or (n, 72), pred_betas, and pred_cam_t
    in the whole picture; or pred_cam with `annotations` (imgname, center, scale) and the pictures' sizes."""
    arrays, fingerprint = _npz(path, ("pred_pose", "pred_betas"))
    pose = np.asarray(arrays["pred_pose"], np.float32)
    n = len(pose)
    if pose.size != n * 72:
        if pose.shape[-2:] != (3, 3) or pose.size != n * 216:
            raise InputError(f"{path}: pred_pose has shape {pose.shape}", "expected (n, 24, 3, 3) or (n, 72)")
        pose = matrix_to_axis_angle(torch.from_numpy(pose.reshape(n, 24, 3, 3))).numpy()
    pose = pose.reshape(n, 24, 3)
    names, center, side = [f"row{i:06d}" for i in range(n)], None, None
    if annotations is not None:
        extra, other = _npz(annotations, ("imgname", "center", "scale"))
        fingerprint = hashlib.sha256((fingerprint + other).encode()).hexdigest()
        if len(extra["imgname"]) != n:
            raise InputError(f"{annotations} has {len(extra['imgname'])} rows, {path} {n}", "give the set predicted on")
        names, center = [str(x) for x in extra["imgname"]], np.asarray(extra["center"], float)
        side = np.asarray(extra["scale"], float).reshape(n, -1).max(1)
        side = side * 200 if np.median(side) < 20 else side  # SPIN counts in units of 200 px
    frames, frame = np.unique(names, return_inverse=True)
    size = _sizes([str(f) for f in frames], images, params)
    K = _camera(size, params.focal)
    if "pred_cam_t" in arrays:
        transl = np.asarray(arrays["pred_cam_t"], float)
    elif "pred_cam" in arrays and center is not None and side is not None:
        transl = cameras.weak_to_transl(np.asarray(arrays["pred_cam"], float), center, side, K[frame])
    else:
        raise InputError(f"{path} has no pred_cam_t, and pred_cam needs --annotations", "imgname, center and scale")
    smpl = _smpl(pose, np.asarray(arrays["pred_betas"]), transl)
    box = np.zeros((n, 4))
    if center is not None and side is not None:
        box = np.concatenate([center - side[:, None] / 2, center + side[:, None] / 2], 1)
    return Bodies("hmr2", path, fingerprint, [str(f) for f in frames], size, frame, box, smpl, K)


def read_phalp(path: Path, params: Params) -> Bodies:
    """Tracks of PHALP or 4D-Humans: {frame path: {smpl, camera_bbox, center, bbox, tid, size, ...}}."""
    content = read_data(path)
    if not isinstance(content, dict) or not content or not all(isinstance(v, dict) for v in content.values()):
        raise InputError(f"{path} holds no tracks", "expected PHALP's dictionary: one entry a frame")
    names = sorted(content, key=lambda name: (content[name].get("time", 0), str(name)))
    rows: dict[str, list[Any]] = {
        k: [] for k in ("frame", "box", "track", "score", "pose", "betas", "camera", "center", "side")
    }
    sizes = np.zeros((len(names), 2), int)
    for f, name in enumerate(names):
        entry = content[name]
        for k, person in enumerate(entry.get("smpl") or ()):
            if not isinstance(person, dict) or "body_pose" not in person:
                continue  # a track that is only predicted here, not seen
            try:
                root = np.asarray(person["global_orient"], np.float32).reshape(1, 3, 3)
                pose = np.asarray(person["body_pose"], np.float32).reshape(23, 3, 3)
                x, y, w, h = np.asarray(entry["bbox"][k], float).reshape(4)
                rows["camera"].append(np.asarray(entry["camera_bbox"][k], float).reshape(3))
                rows["center"].append(np.asarray(entry["center"][k], float).reshape(2))
                rows["track"].append(int(entry["tid"][k]))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(f"{path}: person {k} of frame {name} cannot be read: {error!r}") from error
            height, width = np.asarray(entry["size"][k] if "size" in entry else (0, 0), int).reshape(2)
            sizes[f] = width, height
            rows["frame"].append(f)
            rows["pose"].append(np.concatenate([root, pose]))
            rows["betas"].append(np.asarray(person["betas"], np.float32).reshape(-1)[:10])
            rows["box"].append([x, y, x + w, y + h])
            rows["side"].append(max(w, h))
            rows["score"].append(float(np.asarray(entry["conf"][k])) if "conf" in entry else 1.0)
    if not rows["frame"]:
        raise InputError(f"{path} holds no person", "were the tracks made with another version?")
    known = sizes.any(1)
    if not known.all():
        sizes[~known] = parse_size(params.size) or sizes[known][0]
    K = _camera(sizes, params.focal)
    table = {name: np.array(values) for name, values in rows.items()}
    transl = cameras.weak_to_transl(table["camera"], table["center"], table["side"], K[table["frame"]])
    pose = matrix_to_axis_angle(torch.from_numpy(table["pose"])).numpy()
    return Bodies(
        "phalp", path, hashlib.sha256(path.read_bytes()).hexdigest(), [Path(str(n)).name for n in names], sizes,
        table["frame"], table["box"], _smpl(pose, table["betas"], transl), K,
        track=table["track"], score=table["score"], video=True,
    )  # fmt: skip


# ---- parts ---------------------------------------------------------------------------------------------------------


def _smpl(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> dict[str, np.ndarray]:
    return {"global_orient": pose[:, 0], "body_pose": pose[:, 1:], "betas": betas, "transl": transl}


def _camera(size: np.ndarray, focal: float) -> np.ndarray:
    """K (F, 3, 3) of these programs: one focal length, the principal point at (w / 2, h / 2)."""
    f = np.full(len(size), focal)
    return cameras.make_K(f, f, size[:, 0] / 2.0, size[:, 1] / 2.0)


def _sizes(names: list[str], images: Path | None, params: Params) -> np.ndarray:
    """Sizes (F, 2) of the pictures, read or as told. Raises InputError."""
    told = parse_size(params.size)
    if images is None:
        if told is None:
            raise UsageError("the pictures' sizes are not known", "give --images DIR or --size WxH")
        return np.tile(np.array(told), (len(names), 1))
    return np.array([read_picture(Path(images) / name).size for name in names]).reshape(-1, 2)


def _npz(path: Path, needed: tuple[str, ...]) -> tuple[dict[str, Any], str]:
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
