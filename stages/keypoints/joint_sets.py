"""Joints are names. A set is an ordered tuple of names; every mapping between sets is computed from the names.

The same name in two sets means the same place up to the habits of the data set: COCO's hips and shoulders are points
that people clicked, SMPL's are centres of rotation, a few centimetres apart. Conversions by name are for keypoints that
go into a network trained to take them; errors between bodies are computed in one set, from one regressor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.errors import InputError

_SMPL24 = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot "
    "neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_hand right_hand"
)
_COCO17 = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
_OPENPOSE18 = (
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear"
)
_BODY25 = (
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe left_small_toe "
    "left_heel right_big_toe right_small_toe right_heel"
)
_H36M17 = (
    "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine neck nose head_top left_shoulder "
    "left_elbow left_wrist right_shoulder right_elbow right_wrist"
)
_LSP14 = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top"
)
_BLAZEPOSE33 = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index"
)
_DPMESH15 = (
    "pelvis left_hip right_hip left_knee right_knee left_ankle right_ankle neck head_top left_shoulder right_shoulder "
    "left_elbow right_elbow left_wrist right_wrist"
)

SETS: dict[str, tuple[str, ...]] = {
    "coco17": tuple(_COCO17.split()),
    "body25": tuple(_BODY25.split()),
    "openpose18": tuple(_OPENPOSE18.split()),
    "smpl24": tuple(_SMPL24.split()),
    "h36m17": tuple(_H36M17.split()),
    "lsp14": tuple(_LSP14.split()),
    # DPMesh's 30 prompt joints: SMPL's 24, nose, eyes, ears, head top; its names Torso, Spine, Chest are spine1 to 3,
    # Toe is foot, Thorax is collar. dpmesh15 are the joints that it predicts.
    "dpmesh30": (*_SMPL24.split(), "nose", "left_eye", "right_eye", "left_ear", "right_ear", "head_top"),
    "dpmesh15": tuple(_DPMESH15.split()),
    "blazepose33": tuple(_BLAZEPOSE33.split()),
    # SMPL_to_J19: numbers 25 to 43 of ProHMR's 44 joints: LSP's 14, then MPII's and Human3.6M's of the trunk and head.
    "j19": (*_LSP14.split(), "pelvis", "thorax", "spine", "jaw", "head"),
    # SPIN's J_regressor_extra; GraphCMR's file of the same name has five points of the face before these nine.
    "extra9": ("right_hip", "left_hip", "neck", "head_top", "pelvis", "thorax", "spine", "jaw", "head"),
}

SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

# Lines to draw, by name, one side; those whose ends a set has are that set's bones.
_LIMBS = (
    "left_shoulder-left_elbow left_elbow-left_wrist left_hip-left_knee left_knee-left_ankle nose-left_eye "
    "left_eye-left_ear left_ankle-left_heel left_ankle-left_big_toe left_big_toe-left_small_toe "
    "left_ankle-left_foot left_heel-left_foot_index left_wrist-left_hand left_wrist-left_index "
    "left_wrist-left_pinky left_wrist-left_thumb"
)


def get(joint_set: str) -> tuple[str, ...]:
    """The names of a set. Raises InputError, naming the sets there are."""
    if joint_set not in SETS:
        raise InputError(f"unknown joint set {joint_set!r}", f"choose one of {', '.join(SETS)}")
    return SETS[joint_set]


def identify(names: Sequence[str]) -> str | None:
    """The set with exactly these names in this order, or None."""
    return next((key for key, value in SETS.items() if value == tuple(names)), None)


def index(names: Sequence[str], requested: Sequence[str]) -> np.ndarray:
    """Index of each requested name in `names`: int64 (len(requested),), -1 where it is absent."""
    index_of = {name: i for i, name in enumerate(names)}
    return np.array([index_of.get(name, -1) for name in requested], dtype=np.int64)


def mirror_name(name: str) -> str:
    """left_knee -> right_knee and back; mouth_left -> mouth_right; others unchanged."""
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(part, part) for part in name.split("_"))


def flip(names: Sequence[str]) -> np.ndarray:
    """Permutation (J,) that exchanges left and right: `keypoints[:, flip(names)]` after mirroring the image."""
    return index(names, [mirror_name(name) for name in names])


def bones(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices into `names` to draw as lines: limbs, trunk and face as far as the set has them."""
    have = set(names)
    if "spine1" in have:
        smpl = SETS["smpl24"]
        lines = [(smpl[p], smpl[j]) for j, p in enumerate(SMPL_PARENTS) if p >= 0]
        lines += [("head", "head_top"), ("head", "nose")]
    else:
        middle = next((m for m in ("pelvis", "mid_hip") if m in have), None)
        if middle and "neck" in have:
            trunk = [(middle, "spine"), ("spine", "neck")] if "spine" in have else [(middle, "neck")]
            lines = [*trunk, ("neck", "left_shoulder"), ("neck", "right_shoulder"), (middle, "left_hip")]
            lines += [(middle, "right_hip")]
        elif "neck" in have:
            lines = [("neck", s + e) for s in ("left_", "right_") for e in ("shoulder", "hip")]
        else:
            lines = [("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip")]
            lines += [("right_shoulder", "right_hip")]
        lines += [("neck", "nose"), ("nose" if "nose" in have else "neck", "head_top")]
    drawn = {frozenset(line) for line in lines}
    for limb in _LIMBS.split():
        a, _, b = limb.partition("-")
        pairs = ((a, b), (mirror_name(a), mirror_name(b)))
        lines += [
            pair
            for pair in pairs[: 1 if frozenset(pairs[0]) == frozenset(pairs[1]) else 2]
            if frozenset(pair) not in drawn
        ]
    index_of = {name: i for i, name in enumerate(names)}
    return [(index_of[a], index_of[b]) for a, b in lines if a in have and b in have]


def side(name: str) -> str:
    """ "left", "right" or "middle": for colours."""
    parts = name.split("_")
    return "left" if "left" in parts else "right" if "right" in parts else "middle"


# A missing joint that stands half way between two others, or under another name.
_MIDDLE = {
    "neck": ("left_shoulder", "right_shoulder"),
    "mid_hip": ("left_hip", "right_hip"),
    "pelvis": ("left_hip", "right_hip"),
}
_ALIAS = {"pelvis": "mid_hip", "mid_hip": "pelvis"}


def convert(
    keypoints: np.ndarray, names: Sequence[str], to_set: str | Sequence[str], *, derive: bool = True
) -> np.ndarray:
    """Keypoints (n, J, 3) x, y, score of `names` -> (n, J', 3) of another set, by name.

    What is absent becomes NaN, NaN, 0. Unless `derive` is False, an absent `neck` is the mean of the shoulders and an
    absent `mid_hip` or `pelvis` the mean of the hips, with the smaller of the two scores; NaN, NaN, 0 if one of the two
    is not visible.
    """
    keypoints = np.asarray(keypoints)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (len(names), 3):
        raise InputError(
            f"keypoints have shape {keypoints.shape}, the joint set has {len(names)} joints",
            "expected (n, joints, 3): x, y, score",
        )
    requested = get(to_set) if isinstance(to_set, str) else tuple(to_set)
    have = set(names)
    source = [name if name in have else _ALIAS.get(name, name) for name in requested]
    at = index(names, source)
    if not len(names):  # boxes alone
        keypoints = np.full((len(keypoints), 1, 3), np.nan)
    out = keypoints[:, np.maximum(at, 0)].copy()
    out[:, at < 0] = (np.nan, np.nan, 0)
    for k in np.flatnonzero(at < 0) if derive else ():
        pair = index(names, _MIDDLE.get(requested[k], ()))
        if len(pair) and (pair >= 0).all():
            a, b = keypoints[:, pair[0]], keypoints[:, pair[1]]
            visible = (a[:, 2] > 0) & (b[:, 2] > 0)
            out[:, k, :2] = np.where(visible[:, None], (a[:, :2] + b[:, :2]) / 2, np.nan)
            out[:, k, 2] = np.where(visible, np.minimum(a[:, 2], b[:, 2]), 0)
    return out
