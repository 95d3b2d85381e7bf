"""Choose the walks of `synth-crowd-video`, once: `python -m stages.synthetic.make_walks MOCAP.npz MOCAP_TEST.npz`.

Gait cycles that repeat without a jump, and people busy on the spot, of CMU subjects that no network of hmr is trained
on (05, 09, 12, 14). A cycle is the pair of moments of a clip whose poses are most alike, about one double step apart;
its last frames are blended into those before its first. The choice depends on the two files alone; their SHA-256 are
stored with it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from stages.synthetic.make_poses import CREDIT

WALKS = ("cmu_12_01", "cmu_12_02", "cmu_12_03", "cmu_05_01", "cmu_09_01")  # the last one runs
PERIODS = {"cmu_09_01": (17, 27)}  # frames between which the length of a double step lies
PERIOD, BLEND = (28, 48), 6
BUSY = {"cmu_14_07": 60, "cmu_14_17": 200, "cmu_14_19": 120, "cmu_14_28": 60}  # clip -> first frame
BUSY_FRAMES = 200
OUT = Path(__file__).parents[1] / "data" / "synth_walks.npz"


def main(paths: list[Path]) -> None:
    """Write synth_walks.npz: poses (N, 24, 3) walking to +z, trans (N, 3), clip (N,), names, speed (C,) m/s, fps."""
    clips = _clips(paths)
    poses, trans, speeds = [], [], []
    for name in WALKS:
        pose, way, speed = _cycle(*clips[name], PERIODS.get(name, PERIOD))
        poses.append(pose)
        trans.append(way)
        speeds.append(speed)
    for name, first in BUSY.items():
        pose, way = (values[first : first + BUSY_FRAMES] for values in clips[name])
        poses.append(pose)
        trans.append(way - way[:1] * [1, 0, 1])
        speeds.append(0.0)
    np.savez_compressed(
        OUT,
        poses=np.concatenate(poses).astype(np.float16),
        trans=np.concatenate(trans).astype(np.float32),
        clip=np.repeat(np.arange(len(poses)), [len(p) for p in poses]).astype(np.int32),
        names=np.array([*WALKS, *BUSY]),
        speed=np.array(speeds, np.float32),
        fps=np.float32(30),
        sha256=np.array([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]),
        credit=np.array(CREDIT),
    )


def _clips(paths: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Poses (T, 24, 3) and translations (T, 3) by the name of the clip, of those that are used."""
    clips = {}
    for path in paths:
        with np.load(path) as file:
            poses, trans, seq = file["poses"].astype(float), file["trans"].astype(float), file["seq"]
            for number, name in enumerate(file["seq_name"].astype(str)):
                if name in WALKS or name in BUSY:
                    clips[name] = (poses[seq == number], trans[seq == number])
    return clips


def _cycle(pose: np.ndarray, trans: np.ndarray, period: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """One repeating cycle: poses (T, 24, 3) that walk along +z, sway around the even advance (T, 3), speed in m/s."""
    matrices = Rotation.from_rotvec(pose[:, 1:22].reshape(-1, 3)).as_matrix().reshape(len(pose), -1)
    pairs = [
        (float(((matrices[i] - matrices[j]) ** 2).sum()), i, j)
        for i in range(BLEND, len(pose))
        for j in range(i + period[0], min(i + period[1], len(pose) - 1))
    ]
    _, i, j = min(pairs)
    step = (trans[j] - trans[i]) * [1, 0, 1]
    ahead = Rotation.from_euler("y", -np.arctan2(step[0], step[2]))
    cycle = np.stack([_blended(pose[i:j, k], pose[i - BLEND : i, k]) for k in range(24)], 1)
    cycle[:, 0] = (ahead * Rotation.from_rotvec(cycle[:, 0])).as_rotvec()
    part = np.arange(j - i)[:, None] / (j - i)
    sway = trans[i:j] - trans[i] * [1, 0, 1] - part * (trans[j] - trans[i])
    return cycle, ahead.apply(sway), float(np.linalg.norm(step) / (j - i) * 30)


def _blended(joint: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Rotations (T, 3) of one joint whose last frames become those `before` (BLEND, 3) the first."""
    joint = joint.copy()
    for k in range(BLEND):
        pair = Rotation.from_rotvec(np.stack([joint[k - BLEND], before[k]]))
        joint[k - BLEND] = Slerp([0, 1], pair)((k + 1) / (BLEND + 1)).as_rotvec()
    return joint


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
