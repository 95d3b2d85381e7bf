"""Prediction files (npz) of SPIN, HMR 2.0 and ScoreHMR."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from stages.errors import InputError
from stages.formats.bodies import Bodies, image_sizes, program_camera, read_npz, smpl_columns
from stages.geometry import cameras
from stages.geometry.rotations import matrix_to_axis_angle
from stages.params import ImportBodiesParams as Params


def read_predictions(path: Path, params: Params, annotations: Path | None = None, images: Path | None = None) -> Bodies:
    """A prediction npz of SPIN, HMR 2.0 or ScoreHMR: pred_pose (n, 24, 3, 3) or (n, 72), pred_betas, and pred_cam_t
    in the whole picture; or pred_cam with `annotations` (imgname, center, scale) and the pictures' sizes."""
    arrays, fingerprint = read_npz(path, ("pred_pose", "pred_betas"))
    pose = np.asarray(arrays["pred_pose"], np.float32)
    n = len(pose)
    if pose.size != n * 72:
        if pose.shape[-2:] != (3, 3) or pose.size != n * 216:
            raise InputError(f"{path}: pred_pose has shape {pose.shape}", "expected (n, 24, 3, 3) or (n, 72)")
        pose = matrix_to_axis_angle(torch.from_numpy(pose.reshape(n, 24, 3, 3))).numpy()
    pose = pose.reshape(n, 24, 3)
    names, center, side = [f"row{i:06d}" for i in range(n)], None, None
    if annotations is not None:
        extra, other = read_npz(annotations, ("imgname", "center", "scale"))
        fingerprint = hashlib.sha256((fingerprint + other).encode()).hexdigest()
        if len(extra["imgname"]) != n:
            raise InputError(f"{annotations} has {len(extra['imgname'])} rows, {path} {n}", "give the set predicted on")
        names, center = [str(x) for x in extra["imgname"]], np.asarray(extra["center"], float)
        side = np.asarray(extra["scale"], float).reshape(n, -1).max(1)
        side = side * 200 if np.median(side) < 20 else side  # SPIN counts in units of 200 px
    frames, frame = np.unique(names, return_inverse=True)
    size = image_sizes([str(f) for f in frames], images, params)
    K = program_camera(size, params.focal)
    if "pred_cam_t" in arrays:
        transl = np.asarray(arrays["pred_cam_t"], float)
    elif "pred_cam" in arrays and center is not None and side is not None:
        transl = cameras.weak_to_transl(np.asarray(arrays["pred_cam"], float), center, side, K[frame])
    else:
        raise InputError(f"{path} has no pred_cam_t, and pred_cam needs --annotations", "imgname, center and scale")
    smpl = smpl_columns(pose, np.asarray(arrays["pred_betas"]), transl)
    box = np.zeros((n, 4))
    if center is not None and side is not None:
        box = np.concatenate([center - side[:, None] / 2, center + side[:, None] / 2], 1)
    return Bodies("hmr2", path, fingerprint, [str(f) for f in frames], size, frame, box, smpl, K)
