"""3DPW (von Marcard et al., ECCV 2018) in its own layout: test split, and the subsets OC, PC and Crowd.

    3DPW/imageFiles/<sequence>/image_00000.jpg
    3DPW/sequenceFiles/{train,validation,test}/<sequence>.pkl     poses, betas, cam_poses, poses2d, campose_valid, ...

Poses are in the world frame: the root is rotated by the camera's rotation. Which frames of which people belong to a
subset is in subsets.json; three rules of validity are in use (most of the field: `valid`; ROMP: `official`; the JSON
files of 3DCrowdNet, JOTR and DPMesh: `json`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.annotations import GENDERS, Annotations, box_of, join_sequences, orient_to_camera
from stages.datasets.files import DatasetOrigin, Entry, contents, damaged, image_size, need, need_images, read_pickle
from stages.datasets.subsets import check_count, facts
from stages.errors import AssetError

SITE = "virtualhumans.mpi-inf.mpg.de/3DPW"
POSES, IMAGES = DatasetOrigin(SITE, "sequenceFiles.zip"), DatasetOrigin(SITE, "imageFiles.zip")
MIN_KEYPOINTS = 1  # 2D joints with any confidence for rule `official`


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """The rows of 3dpw, 3dpw-oc, 3dpw-pc or 3dpw-crowd. Raises AssetError with the exact file, or the counts."""
    root = data / "3DPW" if (data / "3DPW").is_dir() else data
    subset, known = facts()["3dpw-test" if name == "3dpw" else name], facts()["3dpw"]["sequences"]
    need(root / "sequenceFiles", POSES, root)
    pieces, rows, most = [], {}, {}
    for number, sequence in enumerate(subset["sequences"]):
        first, last = subset.get("ranges", {}).get(sequence, (0, known[sequence]["frames"]))
        most[sequence] = (last - first) * known[sequence]["persons"]
        path = root / "sequenceFiles" / known[sequence]["split"] / f"{sequence}.pkl"
        if partial and not path.exists():
            continue
        with contents(path, POSES):
            piece = _sequence(path, root, sequence, (first, last), subset["filter"], partial)
        piece["track"] += 100 * number
        rows[sequence] = len(piece["frame"])
        pieces.append(piece)
    part = check_count(name, root / "sequenceFiles", rows, subset["rows"], most, partial)
    return join_sequences(
        pieces,
        name=f"{name}{f' (partial: {part})' if part else ''}",
        protocol="dpmesh",
        root=root,
        joint_set="openpose18",
        input_2d="OpenPose confidence, as 3DPW gives it",
        detected=True,
    )


def _sequence(
    path: Path, root: Path, sequence: str, span: tuple[int, int], rule: str, partial: bool
) -> dict[str, np.ndarray]:
    """The people of one pickle in frames first <= i < last, those that the rule keeps."""
    need(path, POSES, root)
    file = Entry(read_pickle(path, POSES), path, POSES)
    people = len(file["poses"])
    cameras, K = file.array("cam_poses", (-1, 4, 4)), file.array("cam_intrinsics", (3, 3))
    n = len(cameras)
    if n < span[1] and not partial:
        raise AssetError(
            f"{path} has {n} frames, {sequence} has {span[1]} in this subset", f"get it again; {POSES.hint()}"
        )
    frames = np.arange(span[0], min(span[1], n))
    size = np.array(_size(root, sequence, frames))
    rows: list[dict[str, Any]] = []
    for person in range(people):
        each = _person(file, person, n, frames, cameras, K, size)
        kept = {
            "valid": each["valid"] == 1,
            "official": (each["valid"] == 1) & each["labelled"],
            "json": each["inside"],
        }
        keep = kept[rule]
        rows.append({k: v[keep] for k, v in each.items() if k not in ("valid", "labelled", "inside")})
    out = {key: np.concatenate([r[key] for r in rows]) for key in (rows[0] if rows else ())}
    if not rows:
        raise damaged(path, "it holds nobody", POSES)
    order = np.lexsort((out["track"], out["frame"]))
    names = [f"imageFiles/{sequence}/image_{i:05d}.jpg" for i in frames]
    return {key: value[order] for key, value in out.items()} | {
        "names": np.array(names, object),
        "size": np.repeat(size[None], len(frames), 0),
        "K": np.repeat(K[None], len(frames), 0),
        "time": frames / 30.0,
    }


def _person(
    file: Entry, person: int, n: int, frames: np.ndarray, cameras: np.ndarray, K: np.ndarray, size: np.ndarray
) -> dict[str, Any]:
    """All frames of one person, with what the rules check: valid, labelled (it has 2D joints), inside (the image)."""

    def part(key: str, shape: tuple[int, ...]) -> np.ndarray:
        values = file[key]
        if len(values) <= person:
            raise damaged(file.path, f"{key!r} has {len(values)} people, 'poses' has {person + 1} or more", POSES)
        return file.shaped(values[person], f"{key}[{person}]", shape)

    pose = part("poses", (n, 72))[frames]
    camera = cameras[frames]
    world = part("jointPositions", (n, 72))[frames].reshape(-1, 24, 3)
    cam = np.einsum("nij,nkj->nki", camera[:, :3, :3], world) + camera[:, None, :3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = (cam @ K.T)[..., :2] / cam[..., 2:]
    inside = ((pixels >= 0) & (pixels < size)).all(-1) & (cam[..., 2] > 0)
    keypoints = part("poses2d", (n, 3, 18))[frames].transpose(0, 2, 1)
    labelled = (keypoints[..., 2] > 0).sum(1) >= MIN_KEYPOINTS
    body = np.concatenate([pixels, inside[..., None]], -1)
    sizes = np.repeat(size[None], len(frames), 0)
    box = np.where(labelled[:, None], box_of(keypoints, sizes), box_of(body, sizes))
    betas = file.shaped(np.asarray(file["betas"][person]).ravel()[:10], f"betas[{person}]", (10,))
    gender = str(file["genders"][person])
    if gender not in GENDERS:
        raise damaged(file.path, f"gender {gender!r}", POSES)
    valid = part("campose_valid", (n,))[frames]
    return {
        "frame": np.arange(len(frames)),
        "track": np.full(len(frames), person),
        "box": box,
        "keypoints": keypoints,
        "pose": np.concatenate([orient_to_camera(pose[:, :3], camera[:, :3, :3]), pose[:, 3:]], 1),
        "betas": np.repeat(betas[None], len(frames), 0),
        "gender": np.full(len(frames), GENDERS[gender]),
        "valid": valid,
        "labelled": labelled,
        "inside": (valid != 0) & inside.any(1),
    }


def _size(root: Path, sequence: str, frames: np.ndarray) -> tuple[int, int]:
    """Width, height of the images (one size per sequence). Raises AssetError for the first that is missing."""
    folder = root / "imageFiles" / sequence
    need(folder, IMAGES, root)
    names = [f"imageFiles/{sequence}/image_{i:05d}.jpg" for i in frames]
    need_images(root, names, IMAGES)
    return image_size(root / names[0], IMAGES)
