"""CMU Panoptic (Joo et al., ICCV 2015), four crowded scenes, two HD cameras: Haggling, Mafia, Ultimatum, Pizza.

    <sequence>/calibration_<sequence>.json
    <sequence>/hdImgs/00_16/00_16_00002945.jpg (or .png)
    <sequence>/hdPose3d_stage1_coco19/body3DScene_00002945.json
    <sequence>/frames.txt                       which frames: lines such as 00_16_00002945

or the preprocessed pickle of CRMH's data package, `<sequence>.pkl` or `<scene>.pkl`. Which frames count is in that
package alone (the list of Zanfir et al.), so hmr cannot carry it. 3D joints without SMPL; the 2D input is their
projection. Each person is compared with the nearest of the bodies recovered in the image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.annotations import Annotations, box_of, intrinsics_of
from stages.datasets.files import DatasetOrigin, Entry, contents, damaged, image_size, need, read_json, read_pickle
from stages.datasets.subsets import facts
from stages.errors import AssetError

SOURCE = DatasetOrigin("domedb.perception.cs.cmu.edu", "the panoptic toolbox's download (getData.sh)")
CRMH = DatasetOrigin("github.com/JiangWenPL/multiperson", "its data package (panoptic)")
_COCO19 = (
    "neck nose pelvis left_shoulder left_elbow left_wrist left_hip left_knee left_ankle right_shoulder right_elbow "
    "right_wrist right_hip right_knee right_ankle left_eye left_ear right_eye right_ear"
)
COCO19 = tuple(_COCO19.split())
# CRMH's 24 joints: LSP's 14, the trunk and head of MPII and Human3.6M, the face.
_CRMH24 = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck lsp_head_top pelvis thorax spine nose head_top coco_nose left_eye "
    "right_eye left_ear right_ear"
)
CRMH24 = tuple(_CRMH24.split())
RESIZED = np.array([832, 512])  # images that CRMH's pixel values refer to fit into this


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """One scene, panoptic-haggling and so on. Raises AssetError with the exact file."""
    scene = name.removeprefix("panoptic-")
    sequence = facts()["panoptic"]["scenes"][scene]
    packed = [data, *(data / f"{stem}.pkl" for stem in (sequence, scene, scene.capitalize()))]
    if (path := next((p for p in packed if p.is_file()), None)) is not None:
        with contents(path, CRMH):
            return _packed(name, path)
    root = data / sequence
    need(root, SOURCE, data)
    path = need(root / f"calibration_{sequence}.json", SOURCE, data)
    with contents(path, SOURCE):
        listed = Entry(read_json(path, SOURCE), path, SOURCE)["cameras"]
        cameras = {str(c["name"]): _camera(Entry(c, path, SOURCE, f"in camera {c['name']}")) for c in listed}
    parts = [_image(root, camera, number, cameras, path) for camera, number in _frames(root, sequence)]
    return _annotations(name, data, parts, tuple(COCO19), "1: projected joints")


def _frames(root: Path, sequence: str) -> list[tuple[str, str]]:
    """(camera, frame number) of the list. Raises AssetError when there is none."""
    path = root / "frames.txt"
    if not path.is_file():
        raise AssetError(
            f"{path}: no list of frames; which frames of {sequence} count is not public",
            f"lines such as 00_16_00002945, or the scene's pickle {sequence}.pkl; {CRMH.hint()}",
        )
    listed = re.findall(r"(00_\d\d)_(\d{8})", path.read_text(errors="replace"))
    frames = [f for f in dict.fromkeys(listed) if f[0] in facts()["panoptic"]["cameras"]]
    if not frames:
        raise damaged(path, "no line such as 00_16_00002945", CRMH)
    return frames


def _camera(view: Entry) -> dict[str, np.ndarray]:
    """R, K (3, 3), t (3,) cm, and five numbers of distortion."""
    flat = {key: view.shaped(np.ravel(view[key]), key, (size,)) for key, size in (("t", 3), ("distCoef", 5))}
    return flat | {key: view.array(key, (3, 3)) for key in ("R", "K")}


def _image(
    root: Path, camera: str, number: str, cameras: dict[str, dict[str, np.ndarray]], calibration: Path
) -> dict[str, Any]:
    if camera not in cameras:
        raise damaged(calibration, f"no camera {camera}", SOURCE)
    view = cameras[camera]
    path = need(root / "hdPose3d_stage1_coco19" / f"body3DScene_{number}.json", SOURCE, root.parent)
    with contents(path, SOURCE):
        bodies = Entry(read_json(path, SOURCE), path, SOURCE)["bodies"]
        flat = [Entry(b, path, SOURCE, "in bodies").array("joints19", (76,)).reshape(19, 4) for b in bodies]
    joints = np.stack(flat) if flat else np.zeros((0, 19, 4))
    xyz = (joints[..., :3] @ view["R"].T + view["t"]) / 100
    pixels = _project(xyz, view["K"], view["distCoef"])
    folder = root / "hdImgs" / camera
    image = next((p for p in (folder / f"{camera}_{number}{e}" for e in (".jpg", ".png")) if p.is_file()), None)
    image = image or need(folder / f"{camera}_{number}.jpg", SOURCE, root.parent)
    visible = (joints[..., 3] > 0) & (xyz[..., 2] > 0)  # annotated, and before the camera
    return {
        "name": image.relative_to(root.parent).as_posix(),
        "size": image_size(image, SOURCE),
        "K": view["K"],
        "keypoints": np.concatenate([np.where(visible[..., None], pixels, 0), visible[..., None]], -1),
        "xyz": np.where(joints[..., 3:] > 0, xyz, np.nan),
    }


def _project(xyz: np.ndarray, K: np.ndarray, dist: np.ndarray) -> np.ndarray:
    """Pixels of points, with OpenCV's five distortion coefficients (k1, k2, p1, p2, k3)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = xyz[..., 0] / xyz[..., 2], xyz[..., 1] / xyz[..., 2]
    k1, k2, p1, p2, k3 = dist
    r = x * x + y * y
    radial = 1 + r * (k1 + r * (k2 + r * k3))
    u = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    v = y * radial + 2 * p2 * x * y + p1 * (r + 2 * y * y)
    return np.stack([K[0, 0] * u + K[0, 1] * v + K[0, 2], K[1, 1] * v + K[1, 2]], -1)


def _packed(name: str, path: Path) -> Annotations:
    """CRMH's pickle: a list of {filename, width, height, bboxes, kpts2d (P, 24, 3), kpts3d (P, 24, 4)}."""
    items = read_pickle(path, CRMH)
    if not isinstance(items, (list, tuple)) or not items:
        raise damaged(path, "it is not a list of images", CRMH)
    parts = []
    for k, value in enumerate(items):
        each = Entry(value, path, CRMH, f"in entry {k}")
        n = len(each["kpts3d"])
        truth, keypoints = each.array("kpts3d", (n, 24, 4)), each.array("kpts2d", (n, 24, 3)).copy()
        file = str(each["filename"])
        paths = [path.parent / file, path.parent / "images" / file, path.parent.parent / file]
        image = next((p for p in paths if p.is_file()), paths[0])
        size = image_size(image, CRMH)
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * max(np.array(size) / RESIZED) - 0.5
        xyz = np.where(truth[..., 3:] > 0, truth[..., :3], np.nan)
        part = {"name": image.relative_to(path.parent.parent).as_posix(), "size": size, "xyz": xyz}
        part |= {"keypoints": keypoints, "K": intrinsics_of(xyz.reshape(-1, 3), keypoints[..., :2].reshape(-1, 2))}
        parts.append(part)
    return _annotations(f"{name} from {path.name}", path.parent.parent, parts, tuple(CRMH24), "CRMH's 2D joints")


def _annotations(
    name: str, root: Path, parts: list[dict[str, Any]], names: tuple[str, ...], input_2d: str
) -> Annotations:
    frame = np.repeat(np.arange(len(parts)), [len(p["xyz"]) for p in parts])
    size = np.array([p["size"] for p in parts])
    keypoints = np.concatenate([p["keypoints"] for p in parts])
    if not len(frame):
        raise AssetError(f"{root} holds nobody of {name}", "is this the right list of frames?")
    return Annotations(
        name=name,
        protocol="panoptic",
        root=root,
        frames={
            "name": np.array([p["name"] for p in parts], object),
            "size": size,
            "K": np.stack([p["K"] for p in parts]),
        },
        frame=frame,
        # No tracks: the frames of the list are far apart, and what a track number means between them is not said.
        box=box_of(keypoints, size[frame]),
        keypoints=keypoints,
        joint_set=names,
        input_2d=input_2d,
        joints=np.concatenate([p["xyz"] for p in parts]),
        joint_names=names,
    )
