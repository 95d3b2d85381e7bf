"""OCHuman (Zhang et al., CVPR 2019) and CrowdPose (Li et al., CVPR 2019): labelled keypoints, no 3D truth.

    ochuman.json, or ochuman_coco_format_{test,val}_range_0.00_1.00.json, and images/
    crowdpose_test.json or mmpose_crowdpose_test.json (also below annotations/), and images/

Measured is the distance of the projected body from the labelled joints, which are also the 2D input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import K_DEFAULT
from stages.datasets.annotations import Annotations, box_of
from stages.datasets.files import DatasetOrigin, Entry, contents, damaged, missing_images, need, read_json
from stages.errors import AssetError
from stages.geometry.cameras import default_K
from stages.keypoints import joint_sets

_OCHUMAN = (
    "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee right_ankle "
    "left_hip left_knee left_ankle head_top neck right_ear left_ear nose right_eye left_eye"
)
OCHUMAN = tuple(_OCHUMAN.split())
_CROWDPOSE = (
    "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle head_top neck"
)
CROWDPOSE = tuple(_CROWDPOSE.split())
SETS: dict[str, tuple[tuple[str, ...], DatasetOrigin]] = {
    "ochuman": (
        (
            "ochuman.json",
            "ochuman_coco_format_test_range_0.00_1.00.json",
            "ochuman_coco_format_val_range_0.00_1.00.json",
        ),
        DatasetOrigin("github.com/liruilong940607/OCHumanApi", "OCHuman's download (by application)"),
    ),
    "crowdpose": (
        ("crowdpose_test.json", "mmpose_crowdpose_test.json"),
        DatasetOrigin("github.com/Jeff-sjtu/CrowdPose", "annotations.zip and images.zip"),
    ),
}


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """All labelled people. Raises AssetError with the exact file, or how many images are missing."""
    files, source = SETS[name]
    paths = [data / sub / f for f in files for sub in ("", "annotations", "json")]
    path = data if data.is_file() else next((p for p in paths if p.is_file()), None) or need(paths[0], source, data)
    with contents(path, source):
        return _read(name, path, source, partial)


def _read(name: str, path: Path, source: DatasetOrigin, partial: bool) -> Annotations:
    content = Entry(read_json(path, source), path, source)
    ochuman_api = "annotations" not in content
    images = {}
    people: list[tuple[Any, np.ndarray, np.ndarray]] = []
    for k, value in enumerate(content["images"]):
        image = Entry(value, path, source, f"in images[{k}]")
        key = image["image_id"] if ochuman_api else image["id"]
        images[key] = (str(image["file_name"]), int(image["width"]), int(image["height"]))
        for each in image["annotations"] if ochuman_api else ():
            if each.get("keypoints"):
                people.append(_person(Entry(each, path, source, f"in images[{k}]"), key, ochuman_api=True))
    for k, value in enumerate(() if ochuman_api else content["annotations"]):
        each = Entry(value, path, source, f"in annotations[{k}]")
        if not each.content.get("iscrowd") and any(each.content.get("keypoints") or ()):
            people.append(_person(each, each["image_id"], ochuman_api=False))
    if not people:
        raise damaged(path, "nobody has labelled keypoints", source)
    if unknown := [key for key, _, _ in people if key not in images]:
        raise damaged(path, f"people of image {unknown[0]}, which is not listed", source)
    return _annotations(name, path, images, people, source, partial)


def _person(each: Entry, key: Any, ochuman_api: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """Image, keypoints (J, 3) with score 1 visible, 0.5 labelled but hidden, 0 not labelled, box xyxy."""
    flat = each.shaped(np.ravel(each["keypoints"]), "keypoints", (-1,))
    if len(flat) % 3:
        raise damaged(each.path, f"{len(flat)} numbers in keypoints{each.where}", each.source)
    keypoints = flat.reshape(-1, 3)
    flag = keypoints[:, 2]
    # OCHuman's API: 1 visible, 2 hidden by oneself, 3 by others; COCO: 2 visible, 1 hidden
    keypoints[:, 2] = np.select([flag == (1 if ochuman_api else 2), flag > 0], [1.0, 0.5], 0.0)
    box = each.array("bbox", (4,))
    return key, keypoints, box if ochuman_api else np.concatenate([box[:2], box[:2] + box[2:]])


def _annotations(
    name: str,
    path: Path,
    images: dict[Any, tuple[str, int, int]],
    people: list[Any],
    source: DatasetOrigin,
    partial: bool,
) -> Annotations:
    counts = {len(p[1]) for p in people}
    names = (
        {19: tuple(OCHUMAN), 17: joint_sets.get("coco17"), 14: tuple(CROWDPOSE)}.get(counts.pop())
        if len(counts) == 1
        else None
    )
    if names is None:
        raise damaged(path, "keypoints of unknown or different numbers", source)
    folders = (path.parent / "images", path.parent.parent / "images", path.parent)
    folder = next((f for f in folders if f.is_dir()), folders[0])
    need(folder, source)
    missing = set(missing_images(folder, sorted({images[p[0]][0] for p in people})))
    if missing and not partial:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise AssetError(f"{folder / min(missing)}: no such file{more}", source.hint(f"images/{min(missing)}"))
    total, people = len(people), [p for p in people if images[p[0]][0] not in missing]
    keys = sorted({p[0] for p in people}, key=lambda key: images[key][0])
    frame_of = {key: i for i, key in enumerate(keys)}
    people.sort(key=lambda p: frame_of[p[0]])
    size = np.array([images[key][1:] for key in keys])
    frame = np.array([frame_of[p[0]] for p in people])
    keypoints, box = np.stack([p[1] for p in people]), np.stack([p[2] for p in people])
    part = f" (partial: {len(people)} of {total} people)" if missing else ""
    return Annotations(
        name=f"{name} from {path.name}{part}",
        protocol="keypoints",
        root=folder,
        frames={
            "name": np.array([images[key][0] for key in keys], object),
            "size": size,
            "K": default_K(size),
            "K_source": K_DEFAULT,
        },
        frame=frame,
        box=np.where(np.all(box[:, 2:] > box[:, :2], 1, keepdims=True), box, box_of(keypoints, size[frame])),
        keypoints=keypoints,
        joint_set="coco17" if len(names) == 17 else names,
        input_2d="1 visible, 0.5 labelled but hidden",
        labelled=keypoints,
        labelled_names=names,
    )
