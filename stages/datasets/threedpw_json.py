"""3DPW as users of 3DCrowdNet, JOTR and DPMesh have it: COCO-style annotation files beside the images.

    3DPW_latest_test.json, 3DPW_oc.json, 3DPW_pc.json; Crowd: 3DPW_latest_validation.json with the 2D poses of
    3DPW_validation_crowd_hhrnet_result.json (HigherHRNet, by annotation id; OpenPose where there is none)

Where such a file is present it is the subset's own definition. `smpl_param` is in the camera frame already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.annotations import GENDERS, Annotations, box_of, consecutive_tracks
from stages.datasets.files import DatasetOrigin, Entry, damaged, need_images, read_json
from stages.datasets.subsets import check_count, facts
from stages.datasets.threedpw import IMAGES
from stages.errors import AssetError
from stages.keypoints import joint_sets

SOURCE = DatasetOrigin(
    "github.com/hongsukchoi/3DCrowdNet_RELEASE and github.com/xljh0520/JOTR (data)", "their 3DPW annotations"
)
FILES = {
    "3dpw": "3DPW_latest_test.json",
    "3dpw-oc": "3DPW_oc.json",
    "3dpw-pc": "3DPW_pc.json",
    "3dpw-crowd": "3DPW_latest_validation.json",
}
HHRNET = "3DPW_validation_crowd_hhrnet_result.json"


def file_of(name: str, data: Path) -> Path | None:
    """The annotation file of a subset in the folder, None without one."""
    folders = [data, data / "3DPW", data / "annotations"]
    return next((p / FILES[name] for p in folders if (p / FILES[name]).is_file()), None)


def read(name: str, path: Path, partial: bool = False) -> Annotations:
    """The rows of an annotation file. Raises AssetError with the file and what is wrong in it, or the counts."""
    file = Entry(read_json(path, SOURCE), path, SOURCE)
    subset = facts()["3dpw-test" if name == "3dpw" else name]
    sequences = set(subset["sequences"]) if name == "3dpw-crowd" else None
    poses = _poses(path) if name == "3dpw-crowd" else None
    images = {}
    for k, value in enumerate(file["images"]):
        image = Entry(value, path, SOURCE, f"in images[{k}]")
        images[image["id"]] = image
    people = []
    for k, value in enumerate(file["annotations"]):
        each = Entry(value, path, SOURCE, f"in annotations[{k}]")
        if each["image_id"] not in images:
            raise damaged(path, f"annotations[{k}] belongs to image {each['image_id']}, which is not listed", SOURCE)
        image = images[each["image_id"]]
        if (sequences is None or image["sequence"] in sequences) and _inside(each.array("bbox", (4,)), image):
            people.append((str(image["sequence"]), int(image["frame_idx"]), int(each["person_id"]), each, image))
    people.sort(key=lambda p: p[:3])
    rows: dict[str, int] = {}
    for person in people:
        rows[person[0]] = rows.get(person[0], 0) + 1
    known = facts()["3dpw"]["sequences"]
    most = {s: known[s]["frames"] * known[s]["persons"] for s in subset["sequences"]}
    part = check_count(name, path, rows, subset["rows"], most, partial)
    return _annotations(name, part, path, people, poses)


def _annotations(name: str, part: str, path: Path, people: list[Any], poses: Entry | None) -> Annotations:
    keys = list(dict.fromkeys(p[:2] for p in people))
    frame_of = {key: i for i, key in enumerate(keys)}
    first = {p[:2]: p[4] for p in reversed(people)}
    images = [first[key] for key in keys]
    smpl = [p[3].entry("smpl_param") for p in people]
    root = path.parent if (path.parent / "imageFiles").is_dir() else path.parent.parent
    frame = np.array([frame_of[p[:2]] for p in people])
    size = np.array([[i["width"], i["height"]] for i in images], int)
    keypoints = np.stack([_keypoints(p[3], poses) for p in people])
    order = np.unique([p[0] for p in people], return_inverse=True)[1]
    boxes = np.stack([p[3].array("bbox", (4,)) for p in people])
    boxes[:, 2:] += boxes[:, :2]
    has_keypoints = np.any(keypoints[..., 2] > 0, 1, keepdims=True)
    for s in smpl:
        if str(s["gender"]) not in GENDERS:
            raise damaged(path, f"gender {s['gender']!r}", SOURCE)
    names = [f"imageFiles/{i['sequence']}/{i['file_name']}" for i in images]
    need_images(root, names, IMAGES)
    return Annotations(
        name=f"{name} from {path.name}{f' (partial: {part})' if part else ''}",
        protocol="dpmesh",
        root=root,
        frames={
            "name": np.array(names, object),
            "size": size,
            "K": np.stack([_camera(i) for i in images]),
        },
        frame=frame,
        track=consecutive_tracks(order, np.array([p[2] for p in people]), np.array([p[1] for p in people])),
        box=np.where(has_keypoints, box_of(keypoints, size[frame]), boxes),
        keypoints=keypoints,
        joint_set="openpose18" if poses is None else "coco17",
        input_2d="OpenPose confidence" if poses is None else "HigherHRNet confidence (OpenPose where there is none)",
        detected=True,
        smpl={
            "pose": np.stack([s.array("pose", (72,)) for s in smpl]),
            "betas": np.stack([s.array("shape", (10,)) for s in smpl]),
            "gender": np.array([GENDERS[str(s["gender"])] for s in smpl]),
        },
    )


def _poses(path: Path) -> Entry:
    """HigherHRNet's poses by annotation id. Raises AssetError when the file is not beside the annotations."""
    paths = [folder / HHRNET for folder in (path.parent, path.parent.parent)]
    file = next((p for p in paths if p.is_file()), paths[0])
    return Entry(read_json(file, SOURCE), file, SOURCE)


def _keypoints(each: Entry, poses: Entry | None) -> np.ndarray:
    """The papers' 2D input of one person: (18, 3) OpenPose, or (17, 3) COCO with HigherHRNet's poses."""
    if poses is not None and (pose := poses.content.get(str(each["id"]))) is not None:
        return Entry(pose, poses.path, SOURCE, f"in entry {each['id']}").array("coco_joints", (17, 3))
    openpose = each.array("openpose_result", (18, 3))
    if poses is None:
        return openpose
    return np.nan_to_num(joint_sets.convert(openpose[None], joint_sets.get("openpose18"), "coco17")[0])


def _camera(image: Entry) -> np.ndarray:
    camera = image.entry("cam_param")
    (fx, fy), (cx, cy) = camera.array("focal", (2,)), camera.array("princpt", (2,))
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _inside(box: np.ndarray, image: Entry) -> bool:
    """Whether any part of the box is in the image. (The programs drop other boxes.)"""
    try:
        width, height = int(image["width"]), int(image["height"])
    except (TypeError, ValueError) as error:
        raise AssetError(f"{image.path} is damaged: an image without size", SOURCE.hint()) from error
    x1, y1 = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(width - 1, x1 + max(0, box[2] - 1)), min(height - 1, y1 + max(0, box[3] - 1))
    return bool(box[2] * box[3] > 0 and x2 >= x1 and y2 >= y1)
