"""Choose the poses of the synthetic benchmark, once: `python -m stages.synthetic.make_poses MOCAP.npz MOCAP_TEST.npz`.

Only CMU subjects that no network of hmr is trained on (05, 09, 12, 14). Stills are chosen far apart from each other
(farthest-point sampling of joint rotations), clips are runs of consecutive frames in which the person moves most. The
choice depends on the two files alone; their SHA-256 are stored with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from stages.files.folders import packaged
from stages.files.hashing import sha256_of

STILLS = {"cmu14": 480, "cmu05": 200, "cmu09": 60, "cmu12": 100}
CLIPS = {"cmu14": 7, "cmu05": 3, "cmu09": 2}
CLIP_FRAMES = 48
OUT = packaged("data/synth_poses.npz")
CREDIT = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. "
    "The database was created with funding from NSF EIA-0196217."
)


def main(paths: list[Path]) -> None:
    """Write synth_poses.npz: stills (S, 24, 3), clips (C, T, 24, 3), trans (C, T, 3), subjects, fps, credit, hashes."""
    stills, clips, trans, still_of, clip_of = [], [], [], [], []
    for path in paths:
        with np.load(path) as file:
            poses, move, clip, frame = file["poses"], file["trans"], file["seq"], file["frame"]
            subjects, source = file["seq_subject"], file["seq_source"]
        for subject in sorted(set(STILLS) & set(subjects.tolist())):
            selected = np.isin(clip, np.flatnonzero((subjects == subject) & np.char.startswith(source, "cmu")))
            chosen = far_apart(poses[selected].astype(np.float64), STILLS[subject])
            stills.append(poses[selected][chosen])
            still_of += [subject] * len(chosen)
            for start in liveliest(poses, clip, frame, selected, CLIPS.get(subject, 0)):
                clips.append(poses[start : start + CLIP_FRAMES])
                trans.append(move[start : start + CLIP_FRAMES])
                clip_of.append(subject)
    np.savez_compressed(
        OUT,
        stills=np.concatenate(stills),
        still_subject=np.array(still_of),
        clips=np.stack(clips),
        trans=np.stack(trans).astype(np.float32),
        clip_subject=np.array(clip_of),
        fps=np.float32(30),
        sha256=np.array([sha256_of(path) for path in paths]),
        credit=np.array(CREDIT),
    )


def far_apart(poses: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` poses (N, 24, 3), each the farthest from all before it, ascending; the root does not count."""
    matrices = Rotation.from_rotvec(poses[:, 1:22].reshape(-1, 3)).as_matrix().reshape(len(poses), -1)
    chosen = [0]
    distance = np.full(len(poses), np.inf)
    for _ in range(min(count, len(poses)) - 1):
        distance = np.minimum(distance, ((matrices - matrices[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return np.sort(chosen)


def liveliest(poses: np.ndarray, clip: np.ndarray, frame: np.ndarray, selected: np.ndarray, count: int) -> list[int]:
    """Starts of `count` runs of CLIP_FRAMES consecutive frames with the most motion, at most two from one clip."""
    starts = np.flatnonzero(selected)[::12]
    starts = starts[starts + CLIP_FRAMES <= len(poses)]
    last = starts + CLIP_FRAMES - 1
    whole = (clip[last] == clip[starts]) & (frame[last].astype(int) - frame[starts] == CLIP_FRAMES - 1)
    starts = starts[whole]
    motion = [np.abs(np.diff(poses[s : s + CLIP_FRAMES, 1:].astype(float), axis=0)).mean() for s in starts]
    chosen: list[int] = []
    for s in starts[np.argsort(motion)[::-1]]:
        apart = all(abs(int(s) - c) >= CLIP_FRAMES for c in chosen)
        if len(chosen) < count and apart and sum(clip[c] == clip[s] for c in chosen) < 2:
            chosen.append(int(s))
    return sorted(chosen)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
