"""3DOH50K (Zhang et al., CVPR 2020), test set: one person per image, behind objects.

    3DOH50K/testset/{images/, annots.json}     or JOTR's and DPMesh's 3doh_test_annots_scale_1.json

The poses of annots.json are in the world frame: `extri` rotates the root. Their scale is left out (metric bodies come
from pose and betas). The neutral body.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stages.artefacts.kinds import K_DEFAULT
from stages.datasets.annotations import Annotations, box_of, orient_to_camera
from stages.datasets.files import DatasetOrigin, Entry, contents, first, image_size, need, read_json
from stages.datasets.subsets import check_count, facts
from stages.geometry.cameras import default_K

SOURCE = DatasetOrigin("www.yangangwang.com (3DOH50K)", "3DOH50K testset.zip")
JOTR = DatasetOrigin("github.com/xljh0520/JOTR (data)", "its 3DOH annotations")
JOTR_FILE = "3doh_test_annots_scale_1.json"


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """The test set, from JOTR's file where there is one. Raises AssetError with the exact file, or the count."""
    file = next((p for p in (data, data / JOTR_FILE, data / "3DOH" / JOTR_FILE) if p.is_file()), None)
    if file is not None:
        with contents(file, JOTR):
            return _jotr(name, file, partial)
    root = first(data, ("testset", "3DOH50K/testset", "."), SOURCE) if data.is_dir() else need(data, SOURCE)
    path = need(root / "annots.json", SOURCE, data)
    with contents(path, SOURCE):
        return _annotated(name, root, path, partial)


def _annotated(name: str, root: Path, path: Path, partial: bool) -> Annotations:
    content = Entry(read_json(path, SOURCE), path, SOURCE).content
    people = [Entry(content[key], path, SOURCE, f"in entry {key}") for key in sorted(content)]
    part = check_count(name, path, {"testset": len(people)}, facts()["3doh"]["rows"], {}, partial)
    names = [f"images/{PurePosixPath(str(p['img_path']).replace(chr(92), '/')).name}" for p in people]
    pose = np.concatenate([p.array("pose", (1, 72)) for p in people])
    camera = np.stack([p.array("extri", (4, 4)) for p in people])
    keypoints = np.stack([p.array("lsp_joints_2d", (14, 2)) for p in people])
    K = np.stack([p.array("intri", (3, 3)) for p in people])
    return _annotations(
        f"{name}{f' (partial: {part})' if part else ''}",
        root,
        names,
        pose=np.concatenate([orient_to_camera(pose[:, :3], camera[:, :3, :3]), pose[:, 3:]], 1),
        betas=np.concatenate([p.array("betas", (1, 10)) for p in people]),
        keypoints=np.concatenate([keypoints, np.ones((len(people), 14, 1))], -1),
        box=np.stack([p.array("bbox", (2, 2)).ravel() for p in people]),
        joint_set="lsp14",
        input_2d="1: the annotated joints",
        K=K,
    )


def _jotr(name: str, path: Path, partial: bool) -> Annotations:
    content = Entry(read_json(path, JOTR), path, JOTR).content
    people = [Entry(content[key], path, JOTR, f"in entry {key}") for key in sorted(content)]
    part = check_count(name, path, {"testset": len(people)}, facts()["3doh"]["rows"], {}, partial)
    folders = ("testset", "3DOH50K/testset", "3DOH/testset", ".")
    root = next((path.parent / p for p in folders if (path.parent / p / "images").is_dir()), path.parent)
    keypoints = np.stack([p.array("hrnet_results", (17, 3)) for p in people])
    box = np.stack([p.shaped(np.ravel(p["bbox"]), "bbox", (4,)) for p in people])
    return _annotations(
        f"{name} from {path.name}{f' (partial: {part})' if part else ''}",
        root,
        [f"images/{PurePosixPath(key.replace(chr(92), '/')).name}" for key in sorted(content)],
        pose=np.stack([p.shaped(np.ravel(p["pose"]), "pose", (72,)) for p in people]),
        betas=np.stack([p.shaped(np.ravel(p["shape"]), "shape", (10,)) for p in people]),
        keypoints=keypoints,
        box=box,
        joint_set="coco17",
        input_2d="HRNet confidence",
        K=None,
    )


def _annotations(
    name: str,
    root: Path,
    names: list[str],
    *,
    pose: np.ndarray,
    betas: np.ndarray,
    keypoints: np.ndarray,
    box: np.ndarray,
    joint_set: str,
    input_2d: str,
    K: np.ndarray | None,
) -> Annotations:
    size = np.array([image_size(need(root / n, SOURCE, root), SOURCE) for n in names])
    frames: dict[str, Any] = {"name": np.array(names, object), "size": size}
    frames |= {"K": default_K(size), "K_source": K_DEFAULT} if K is None else {"K": K}
    has_keypoints = np.any(keypoints[..., 2] > 0, 1, keepdims=True)
    return Annotations(
        name=name,
        protocol="dpmesh",
        root=root,
        frames=frames,
        frame=np.arange(len(names)),
        box=np.where(has_keypoints, box_of(keypoints, size), box),
        keypoints=keypoints,
        joint_set=joint_set,
        input_2d=input_2d,
        smpl={"pose": pose, "betas": betas, "gender": np.full(len(names), "neutral")},
    )
