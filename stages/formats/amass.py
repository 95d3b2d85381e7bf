"""AMASS's npz layout: one person's motion in a z-up world, and back.

Keys: poses (T, 156) axis-angle (SMPL+H order: root, 21 body joints, 30 finger joints, which are zero here), betas (10,)
the mean of the sequence, trans (T, 3) metres, mocap_framerate, gender. Readers of AMASS take poses[:, :66]. Beside
these: hand_poses (T, 6), SMPL's own last two joints, which the layout lacks; betas_per_frame (T, 10); rows (T,) of the
artefact, -1 where interpolated; observed (T,), False there; world; body_model.

Coordinates. The camera frame (x right, y down, z forward) becomes a world with x right, y forward, z up, origin at the
camera, as if the camera had been level (gravity is not known):

    W = [[1, 0, 0], [0, 0, 1], [0, -1, 0]],   root' = W root,   trans' = W (J0 + transl) - J0(betas)

J0 is the pelvis of the T pose, about which SMPL rotates the root; `from_amass` is the exact inverse.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from stages.errors import InputError
from stages.files.atomic import write_bytes
from stages.formats.bodies import Bodies, read_npz
from stages.formats.source import parse_size
from stages.geometry import cameras
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.loaders.motion import Motion
from stages.params import ImportBodiesParams as Params
from stages.smpl.body import Body, load_body

TO_WORLD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def to_amass(motion: Motion, body: Body, fps: float, *, camera: bool = False) -> dict[str, np.ndarray]:
    """The arrays of the file. camera: keep the camera frame (W = identity)."""
    world = torch.eye(3) if camera else TO_WORLD
    betas = motion.mean_betas()[0]
    pelvis = body.rest_joints(motion.betas.to(body.device))[:, 0].cpu()
    pelvis_mean = body.rest_joints(betas[None].to(body.device))[:, 0].cpu()
    rotmat = motion.rotmat.clone()
    rotmat[:, 0] = world @ rotmat[:, 0]
    pose = matrix_to_axis_angle(rotmat)
    trans = (pelvis + motion.transl) @ world.T - pelvis_mean
    n = len(pose)
    return {
        "poses": torch.cat([pose[:, :22].reshape(n, 66), torch.zeros(n, 90)], 1).numpy(),
        "betas": betas.numpy(),
        "trans": trans.numpy(),
        "mocap_framerate": np.array(fps),
        "gender": np.array(body.gender),
        "hand_poses": pose[:, 22:].reshape(n, 6).numpy(),
        "betas_per_frame": motion.betas.numpy(),
        "observed": motion.observed,
        "rows": motion.rows.astype(np.int32),
        "world": np.array("camera: x right, y down, z forward" if camera else "x right, y forward, z up"),
        "body_model": np.array(body.name),
    }


def write_amass(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The file, whole or not at all."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())
    return path


def from_amass(arrays: dict[str, np.ndarray], body: Body) -> dict[str, np.ndarray]:
    """global_orient (T, 3), body_pose (T, 23, 3), betas (T, 10), transl (T, 3) in the camera frame: `to_amass` undone.

    A file of another program (AMASS itself) is placed before a level camera at the world's origin, looking along y.
    """
    camera = str(arrays.get("world", "")).startswith("camera")
    world = torch.eye(3) if camera else TO_WORLD
    poses = torch.as_tensor(np.asarray(arrays["poses"], np.float32))
    n = len(poses)
    hands = torch.as_tensor(np.asarray(arrays.get("hand_poses", np.zeros((n, 6))), np.float32))
    rotmat = axis_angle_to_matrix(torch.cat([poses[:, :66], hands], 1).reshape(n, 24, 3))
    rotmat[:, 0] = world.T @ rotmat[:, 0]
    shared = torch.as_tensor(np.asarray(arrays["betas"], np.float32))[:10]
    betas = torch.as_tensor(np.asarray(arrays.get("betas_per_frame", shared.expand(n, -1).numpy()), np.float32))
    pelvis_mean = body.rest_joints(shared[None].to(body.device))[:, 0].cpu()
    pelvis = body.rest_joints(betas.to(body.device))[:, 0].cpu()
    transl = (torch.as_tensor(np.asarray(arrays["trans"], np.float32)) + pelvis_mean) @ world - pelvis
    pose = matrix_to_axis_angle(rotmat)
    return {
        "global_orient": pose[:, 0].numpy(),
        "body_pose": pose[:, 1:].numpy(),
        "betas": betas.numpy(),
        "transl": transl.numpy(),
    }


def read_amass(path: Path, params: Params) -> Bodies:
    """An AMASS npz, or one of `hmr export`: one person per frame, before a level camera at the world's origin."""
    arrays, fingerprint = read_npz(path, ("poses", "trans", "betas"))
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
        parameters = [
            torch.from_numpy(np.asarray(smpl[k], np.float32)) for k in ("global_orient", "body_pose", "betas", "transl")
        ]
        points = body(*parameters).joints.numpy()
    in_front = (points[..., 2] > 0.1).all(1)
    xy = cameras.project(np.where(in_front[:, None, None], points, 1.0), K)
    box = np.where(in_front[:, None], np.concatenate([xy.min(1), xy.max(1)], 1), 0)
    names = [f"{path.stem}#{i:06d}" for i in range(n)]
    return Bodies(
        "amass", path, fingerprint, names, size, np.arange(n), box, smpl, K,
        track=np.zeros(n, int), time=np.arange(n) / rate, video=True,
    )  # fmt: skip
