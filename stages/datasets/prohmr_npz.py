"""The evaluation files of ProHMR and ScoreHMR: 3dpw_test.npz, and lists of tracks or views in .pkl.

    3dpw_test.npz · 3dpw_test_video.pkl · h36m_val_multiview.pkl · mannequin.pkl

Per person: image name, box (centre and side in pixels), OpenPose's 25 joints, and the truth: the 19 joints of
SMPL_to_J19 in metres (from gendered SMPL for 3DPW), each with a confidence. A list holds one dictionary per track
(3DPW; Mannequin Challenge: a frozen person whose frames are views) or per moment (Human3.6M: four cameras).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import K_DEFAULT
from stages.datasets.annotations import Annotations
from stages.datasets.files import DatasetOrigin, Entry, damaged, image_size, need_images, read_npz, read_pickle
from stages.datasets.subsets import check_count, facts
from stages.errors import AssetError
from stages.geometry.cameras import default_K
from stages.keypoints import joint_sets

SOURCE = DatasetOrigin(
    "github.com/nkolot/ProHMR and github.com/statho/ScoreHMR", "the data package that fetch_data.sh downloads"
)
FILES = {
    "3dpw": ("3dpw_test.npz", "3dpw_test_video.pkl"),
    "h36m-multiview": ("h36m_val_multiview.pkl",),
    "mannequin": ("mannequin.pkl",),
}
IMAGE_FOLDERS = ("", "images", "frames", "3DPW", "MannequinChallenge/frames", "datasets")  # names are relative to one


def file_of(name: str, data: Path) -> Path | None:
    """The file of a data set in the folder, or below its `datasets` or `data`."""
    paths = [data / sub / file for sub in ("", "data", "datasets") for file in FILES[name]]
    return next((p for p in paths if p.is_file()), None)


def read(name: str, path: Path, partial: bool = False) -> Annotations:
    """The rows of one such file. Raises AssetError with the file and what is wrong in it, or the count."""
    items = [read_npz(path, SOURCE)] if path.suffix == ".npz" else read_pickle(path, SOURCE)
    if not isinstance(items, (list, tuple)) or not items:
        raise damaged(path, f"it holds a {type(items).__name__}, a list of dictionaries is needed", SOURCE)
    parts = [_item(Entry(value, path, SOURCE, f"in entry {k}")) for k, value in enumerate(items)]
    merged = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    item = np.repeat(np.arange(len(parts)), [len(p["name"]) for p in parts])
    expected = facts()["3dpw-test"]["rows"] if name == "3dpw" else None
    sequences, counts = np.unique([_folder(n) for n in merged["name"]], return_counts=True)
    part = check_count(name, path, dict(zip(sequences.tolist(), counts.tolist(), strict=True)), expected, {}, partial)
    views = name == "h36m-multiview"
    # Views of one moment are frames of their own; elsewhere people may share an image.
    key = np.array([f"{i} {n}" for i, n in zip(item, merged["name"], strict=True)]) if views else merged["name"]
    _, first, frame = np.unique(key, return_index=True, return_inverse=True)
    names = merged["name"][first]
    root = _root(path, str(names[0]))
    need_images(root, names, SOURCE)
    sizes = {folder: image_size(root / n, SOURCE) for folder, n in {_folder(n): n for n in names[::-1]}.items()}
    size = np.array([sizes[_folder(n)] for n in names])
    single = path.suffix == ".npz"
    frames: dict[str, Any] = {"name": names.astype(object), "size": size, "K": default_K(size), "K_source": K_DEFAULT}
    if views:
        order = np.concatenate([np.arange(len(p["name"])) for p in parts])
        frames |= {"view": order[first], "time": item[first].astype(float)}
    elif name == "mannequin":  # nobody moves: the images of a clip are views of one moment
        _, start, clip = np.unique([_folder(n) for n in names], return_index=True, return_inverse=True)
        frames |= {"view": np.arange(len(names)) - start[clip], "time": clip.astype(float)}
    return Annotations(
        name=f"{name} from {path.name}{f' (partial: {part})' if part else ''}",
        protocol="scorehmr",
        root=root,
        frames=frames,
        frame=frame,
        track=np.full(len(item), -1) if single else item,
        box=merged["box"],
        keypoints=merged["keypoints"],
        joint_set="body25",
        input_2d="OpenPose confidence",
        joints=merged["joints"],
        joint_names=joint_sets.get("j19"),
    )


def _item(entry: Entry) -> dict[str, np.ndarray]:
    """One dictionary of arrays, checked."""
    names = np.array([n.decode() if isinstance(n, bytes) else str(n) for n in np.asarray(entry["imgname"]).ravel()])
    n = len(names)
    centre, scale = entry.array("center", (n, 2)), np.asarray(entry["scale"], float).reshape(n, -1)
    truth = entry.array("extra_keypoints_3d", (n, 19, 4))
    half = scale.max(1, keepdims=True) / 2  # the side in pixels; some files give both sides
    xyz = np.where(truth[..., 3:] > 0, truth[..., :3], np.nan)
    return {
        "name": names,
        "box": np.concatenate([centre - half, centre + half], 1),
        "keypoints": entry.array("body_keypoints_2d", (n, 25, 3)),
        "joints": xyz,
    }


def _folder(name: str) -> str:
    """What shares an image size: the folder, and for Human3.6M's flat names the camera."""
    folder, _, file = name.rpartition("/")
    return folder if folder and "." not in file.rpartition(".")[0] else name.rpartition("_")[0]


def _root(path: Path, name: str) -> Path:
    """The folder that names are relative to. Raises AssetError for the first image if it is nowhere."""
    for folder in (path.parent, path.parent.parent):
        for sub in IMAGE_FOLDERS:
            if (folder / sub / name).is_file():
                return folder / sub
    raise AssetError(
        f"{path.parent / name}: no such image, nor below {', '.join(p for p in IMAGE_FOLDERS if p)}",
        f"{path.name} names it; put the data set's images beside it",
    )
