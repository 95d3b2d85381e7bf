"""One synthetic scene: who stands where, in which pose, seen by which camera, behind what.

A scene depends on (version, set, scene number) alone: its random numbers come from a counter-based generator keyed by
them, so scenes can be made in any order, in shards, and again bit for bit. World frame: metres, y up, ground at y = 0.
Camera frame: OpenCV.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from stages.files.folders import packaged
from stages.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from stages.smpl.body import Body
from stages.synthetic.crowd_video import cast, obstacles
from stages.synthetic.mocap import BENCHMARK, PoseBank, load_poses
from stages.synthetic.occluders import Occluder
from stages.synthetic.sets import SIZE, VERSION, SynthSet

FLIP = np.diag([1.0, -1.0, -1.0])  # y up, camera looking along -z -> OpenCV


@dataclasses.dataclass
class SyntheticScene:
    """n people and m occluders in one image.

    K (3, 3) px · global_orient (n, 3), body_pose (n, 23, 3), betas (n, 10), transl (n, 3): camera frame, metres ·
    occluders: list of m, see `Occluder`, in the camera frame · world_to_camera (4, 4) ·
    look: seeds (n,) of the people's clothes · background: seed · time in s, view number.
    """

    K: np.ndarray
    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    occluders: list[Occluder]
    world_to_camera: np.ndarray
    look: np.ndarray
    background: int
    time: float = np.nan
    view: int = 0


@functools.cache
def poses() -> dict[str, np.ndarray]:
    """stills (S, 24, 3), clips (C, T, 24, 3), trans (C, T, 3): CMU subjects that no network of hmr is trained on."""
    with np.load(packaged("data/synth_poses.npz")) as file:
        return {name: file[name].astype(np.float32) for name in ("stills", "clips", "trans")}


@functools.cache
def motion(path: str) -> PoseBank:
    """Poses to train on: a motion file's, without the benchmark's subjects. Raises AssetError."""
    return load_poses(path, without=BENCHMARK)


def generator(spec: SynthSet, scene: int) -> np.random.Generator:
    """The random numbers of one scene."""
    purpose = " training" if spec.motion else ""
    key = hashlib.sha256(f"hmr {VERSION} {spec.name} {scene}{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def make_scene(spec: SynthSet, number: int, body: Body) -> SyntheticScene:
    """Image `number` of a set: scene number // (frames * views), its frame and view the rest."""
    index, rest = divmod(number, spec.frames * spec.views)
    frame, view = divmod(rest, spec.views)
    rng = generator(spec, index)
    n = int(rng.integers(spec.people[0], spec.people[1] + 1))
    betas = rng.normal(size=(n, 10)).clip(-2.5, 2.5).astype(np.float32)
    width, height = SIZE
    focal = float(rng.uniform(0.9, 1.5) * width)
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

    if spec.walking:
        return _walking(spec, frame, betas, K, rng, body)
    pose, lift, ground = _act(spec, index, frame, n, rng, body, betas)
    heading = Rotation.from_euler("y", rng.uniform(0, 2 * np.pi, (n, 1))).as_matrix()
    distance = float(rng.uniform(*spec.distance))
    positions = _positions(n, spec.spread, distance, focal, rng)
    root_in_world = heading @ axis_angle_to_matrix(torch.from_numpy(pose[:, 0])).numpy().astype(np.float64)
    pelvis = positions + np.einsum("nij,nj->ni", heading, ground) + lift[:, None] * [0, 1, 0]

    camera = _camera(rng, distance, view, spec.views)
    root = camera[:3, :3] @ root_in_world
    transl = pelvis @ camera[:3, :3].T + camera[:3, 3] - _rest_pelvis(body, betas)
    occluders = _occluders(spec, rng, pelvis, camera)
    return SyntheticScene(
        K=K.astype(np.float32),
        global_orient=matrix_to_axis_angle(torch.from_numpy(root)).numpy().astype(np.float32),
        body_pose=pose[:, 1:],
        betas=betas,
        transl=transl.astype(np.float32),
        occluders=occluders,
        world_to_camera=camera,
        look=rng.integers(0, 2**31, n),
        background=int(rng.integers(0, 2**31)) + view,
        time=frame / spec.fps if spec.frames > 1 else np.nan,
        view=view,
    )


def _walking(
    spec: SynthSet, frame: int, betas: np.ndarray, K: np.ndarray, rng: np.random.Generator, body: Body
) -> SyntheticScene:
    """A frame of a scene in which people walk about; whatever is drawn at random is the same in all its frames."""
    distance, time = float(rng.uniform(*spec.distance)), frame / spec.fps
    camera = _camera(rng, distance, 0, 1)
    people = cast(spec, len(betas), distance, K[0, 0], rng)
    betas = betas[: len(people)]
    occluders = obstacles(spec, people, distance, K[0, 0], camera, rng)
    look, background = rng.integers(0, 2**31, len(people)), int(rng.integers(0, 2**31))
    pose = np.stack([one.pose(time) for one in people]).astype(np.float32)
    x, z = np.concatenate([one.path(np.array([time])) for one in people]).T
    pelvis = np.stack([x, -_lowest(body, pose, betas), z], 1)  # the lower foot on the ground
    root = camera[:3, :3] @ axis_angle_to_matrix(torch.from_numpy(pose[:, 0])).numpy().astype(np.float64)
    transl = pelvis @ camera[:3, :3].T + camera[:3, 3] - _rest_pelvis(body, betas)
    return SyntheticScene(
        K=K.astype(np.float32),
        global_orient=matrix_to_axis_angle(torch.from_numpy(root)).numpy().astype(np.float32),
        body_pose=pose[:, 1:],
        betas=betas,
        transl=transl.astype(np.float32),
        occluders=occluders,
        world_to_camera=camera,
        look=look,
        background=background,
        time=time,
    )


def _act(
    spec: SynthSet, index: int, frame: int, n: int, rng: np.random.Generator, body: Body, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses (n, 24, 3), height of the pelvis over the ground (n,), way walked since the clip's first frame (n, 3)."""
    if spec.frames > 1:
        clip = index % len(poses()["clips"])
        clips, walk = poses()["clips"][clip], poses()["trans"][clip]
        walk = walk - walk[:1]
        lowest = _lowest(body, clips, np.repeat(betas, len(clips), 0)) + walk[:, 1]
        lift = np.array([walk[frame, 1] - lowest.min()])
        return clips[frame : frame + 1].copy(), lift, (walk[frame] * [1, 0, 1])[None]
    if spec.motion:
        pose = motion(spec.motion).draw(n, torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()
    else:
        pose = poses()["stills"][rng.integers(0, len(poses()["stills"]), n)].copy()
    return pose, -_lowest(body, pose, betas), np.zeros((n, 3))


def _lowest(body: Body, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Height (n,) of the lowest vertex over the pelvis, y-up world."""
    with torch.no_grad():
        rotmat = axis_angle_to_matrix(torch.tensor(pose))
        out = body.forward_rotmat(rotmat, torch.tensor(betas), torch.zeros(len(pose), 3))
    return (out.vertices[..., 1].amin(1) - out.joints[:, 0, 1]).numpy().astype(np.float64)


def _rest_pelvis(body: Body, betas: np.ndarray) -> np.ndarray:
    """The pelvis (n, 3) of the untranslated body, which the root rotates about."""
    with torch.no_grad():
        still = torch.eye(3).expand(len(betas), 24, 3, 3)
        joints = body.joints(still, torch.tensor(betas), torch.zeros(len(betas), 3))
    return joints[:, 0].numpy().astype(np.float64)


def _positions(n: int, spread: float, distance: float, focal: float, rng: np.random.Generator) -> np.ndarray:
    """Ground positions (n, 3): the first near the optical axis, the others around it, nobody inside another."""
    reach = 0.3 * SIZE[0] / focal * distance
    positions = [np.array([rng.uniform(-reach, reach) * (0.6 if n == 1 else 0.4), 0.0, -distance])]
    while len(positions) < n:
        angle, step = rng.uniform(0, 2 * np.pi), spread * rng.uniform(0.9, 2.2)
        position = positions[rng.integers(len(positions))] + step * np.array([np.cos(angle), 0.0, np.sin(angle)])
        apart = min(np.linalg.norm(position - other) for other in positions)
        if apart > 0.85 * spread and position[2] < -1.8 and abs(position[0]) < -position[2] * 0.4 * SIZE[0] / focal:
            positions.append(position)
    return np.stack(positions)


def _camera(rng: np.random.Generator, distance: float, view: int, views: int) -> np.ndarray:
    """World to camera (4, 4): eye height, slight pitch and roll; several views stand around the first person."""
    height, pitch, roll = rng.uniform(0.7, 2.1), rng.normal(0, 0.06), rng.normal(0, 0.03)
    around = rng.uniform(-0.25, 0.25, views) + np.arange(views) * 2 * np.pi / max(views, 1)
    target = np.array([0, 0, -distance])
    orbit = Rotation.from_euler("y", around[view]).as_matrix() if views > 1 else np.eye(3)
    eye = target + orbit @ (np.array([0, height, 0]) - target)
    aim = np.arctan2(height - 0.95, distance) * rng.uniform(0.7, 1.0) + pitch
    tilt = Rotation.from_euler("zx", [roll, aim]).as_matrix()
    rotation = tilt @ FLIP @ orbit.T
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = rotation, -rotation @ eye
    return camera


def _occluders(spec: SynthSet, rng: np.random.Generator, pelvis: np.ndarray, camera: np.ndarray) -> list[Occluder]:
    """Boxes and balls between the camera and people, each hiding some part of one."""
    occluders = []
    for _ in range(int(rng.integers(spec.objects[0], spec.objects[1] + 1))):
        goal = pelvis[rng.integers(len(pelvis))] + rng.uniform([-0.45, -0.8, -0.1], [0.45, 0.5, 0.1])
        at = (camera[:3, :3] @ goal + camera[:3, 3]) * rng.uniform(0.6, 0.88)
        kind = ("box", "ball", "panel")[rng.integers(3)]
        size = rng.uniform(0.07, 0.24, 3) * (1, 1.5, 1)
        if kind == "panel":
            size = np.array([rng.uniform(0.08, 0.3), rng.uniform(0.2, 0.5), 0.03])
        rotation = camera[:3, :3] @ Rotation.from_euler("yzx", rng.normal(0, [1.0, 0.15, 0.15])).as_matrix()
        occluders.append((kind, size, at, rotation))
    return occluders
