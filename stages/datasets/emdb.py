"""EMDB 1 (Kaufmann et al., ICCV 2023): 17 sequences filmed by a moving camera.

    EMDB/P?/<NN_name>/images/00000.jpg      EMDB/P?/<NN_name>/P?_<NN_name>_data.pkl

Frames outside the good mask are not scored. Gendered SMPL, root orientations rotated into the camera frame. ScoreHMR's
authors ran OpenPose on these images and did not publish the result; the input here is EMDB's own `kp2d` (24 projected
joints).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.annotations import GENDERS, Annotations, join_sequences, orient_to_camera
from stages.datasets.files import DatasetOrigin, Entry, contents, need, need_images, read_pickle
from stages.datasets.subsets import check_count, facts
from stages.errors import AssetError

SOURCE = DatasetOrigin("eth-ait.github.io/emdb", "EMDB's P0.zip to P9.zip")


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """The good frames of EMDB 1. Raises AssetError with the exact file, or the counts per sequence."""
    root = data / "EMDB" if (data / "EMDB").is_dir() else data
    sequences = facts()["emdb"]["sequences"]
    parts: list[dict[str, Any]] = []
    rows: dict[str, int] = {}
    for number, sequence in enumerate(sequences):
        folder = root / sequence[:2] / sequence[3:]
        path = folder / f"{sequence}_data.pkl"
        if partial and not path.exists():
            continue
        need(path, SOURCE, root)
        with contents(path, SOURCE):
            parts.append(_sequence(path, folder, root, sequence, number))
        rows[sequence] = len(parts[-1]["frame"])
    most = {key: value["good"] for key, value in sequences.items()}
    part = check_count(name, root, rows, facts()["emdb"]["rows"], most, partial)
    return join_sequences(
        parts,
        name=f"{name}{f' (partial: {part})' if part else ''}",
        protocol="emdb",
        root=root,
        joint_set="smpl24",
        input_2d="1: EMDB's projected joints",
    )


def _sequence(path: Path, folder: Path, root: Path, sequence: str, number: int) -> dict[str, np.ndarray]:
    file = Entry(read_pickle(path, SOURCE), path, SOURCE)
    n = int(file["n_frames"])
    if not file["emdb1"]:
        raise AssetError(f"{path} says that it is not in EMDB 1, {sequence} is", f"get it again; {SOURCE.hint()}")
    good = np.flatnonzero(file.array("good_frames_mask", (n,)) > 0)
    camera, smpl = file.entry("camera"), file.entry("smpl")
    names = [f"{i:05d}.jpg" for i in range(n)]
    stem = folder.relative_to(root).as_posix()
    need_images(root, [f"{stem}/images/{names[i]}" for i in good], SOURCE)
    rotation = camera.array("extrinsics", (n, 4, 4))[good, :3, :3]
    poses = [
        orient_to_camera(smpl.array("poses_root", (n, 3))[good], rotation),
        smpl.array("poses_body", (n, 69))[good],
    ]
    betas = smpl.shaped(np.ravel(smpl["betas"])[:10], "betas", (10,))
    keypoints = np.concatenate([file.array("kp2d", (n, 24, 2))[good], np.ones((len(good), 24, 1))], -1)
    return {
        "names": np.array([f"{stem}/images/{name}" for name in names], object),
        "size": np.full((n, 2), np.array([camera["width"], camera["height"]], int)),
        "K": np.repeat(camera.array("intrinsics", (3, 3))[None], n, 0),
        "time": np.arange(n) / 30.0,
        "frame": good,
        "track": np.full(len(good), number),
        "box": file.entry("bboxes").array("bboxes", (n, 4))[good],
        "keypoints": keypoints,
        "pose": np.concatenate(poses, 1),
        "betas": np.repeat(betas[None], len(good), 0),
        "gender": np.full(len(good), GENDERS[str(file["gender"])]),
    }
