"""Human3.6M (Ionescu et al., PAMI 2014), test subjects S9 and S11: protocol 1 (four cameras), 2 (one), or multi-view.

    S9/Videos/<Action>.<camera>.mp4
    S9/MyPoseFeatures/D3_Positions_mono/<Action>.<camera>.cdf     32 joints, mm, camera frame
    S9/MyPoseFeatures/D2_Positions/<Action>.<camera>.cdf          pixels

Every fifth frame of 50 a second, the poses' own frame numbers (ProHMR's scripts are one frame late and lose the first).
Marker-based joints without SMPL; the 2D input is their projection, the camera follows from both files. CDF is read by
cdflib: pip install "hmr-toolchain[h36m]".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.annotations import Annotations, box_of, intrinsics_of
from stages.datasets.files import DatasetOrigin, damaged, need, video_size
from stages.datasets.subsets import facts
from stages.errors import AssetError

SOURCE = DatasetOrigin(
    "vision.imar.ro/human3.6m", "Videos_*.tgz, Poses_D3_Positions_mono_*.tgz and Poses_D2_Positions_*.tgz"
)
_NAMES = (
    "pelvis left_hip left_knee left_ankle right_hip right_knee right_ankle spine neck nose head_top left_shoulder "
    "left_elbow left_wrist right_shoulder right_elbow right_wrist"
)
NAMES = tuple(_NAMES.split())


def read(name: str, data: Path, partial: bool = False) -> Annotations:
    """h36m (protocol 1), h36m-p2 or h36m-multiview. Raises AssetError with the exact file."""
    fact = facts()["h36m"]
    cameras = [fact["p2"]] if name == "h36m-p2" else fact["cameras"]
    parts: list[dict[str, Any]] = []
    missing: list[Path] = []
    moment, take = 0, 0
    for subject in fact["subjects"]:
        folder = data / subject / "MyPoseFeatures" / "D3_Positions_mono"
        if not partial:
            need(folder, SOURCE, data)
        actions = sorted({p.name.rpartition(".")[0].rpartition(".")[0] for p in folder.glob("*.cdf")})
        for action in (a for a in actions if "_ALL" not in a):
            longest = 0
            for view, camera in enumerate(cameras):
                files = _files(data, subject, f"{action}.{camera}")
                if lacking := [f for f in files if not f.exists()]:
                    if not partial:
                        need(lacking[0], SOURCE, data)
                    missing.append(lacking[0])
                    continue
                part = _video(*files, data, fact["every"])
                # Several views of one moment share time and track; single views are videos one after the other.
                part |= {"view": np.full(len(part["time"]), view), "moment": moment + np.arange(len(part["time"]))}
                part |= {"track": np.full(len(part["time"]), take if name == "h36m-multiview" else len(parts))}
                longest = max(longest, len(part["time"]))
                parts.append(part)
            moment, take = moment + longest, take + 1
    if not parts:
        raise AssetError(f"{data} holds no test sequence of Human3.6M", SOURCE.hint("S9 and S11"))
    return _annotations(name, data, parts, missing)


def _files(data: Path, subject: str, stem: str) -> tuple[Path, Path, Path]:
    poses = data / subject / "MyPoseFeatures"
    return (
        data / subject / "Videos" / f"{stem}.mp4",
        poses / "D3_Positions_mono" / f"{stem}.cdf",
        poses / "D2_Positions" / f"{stem}.cdf",
    )


def _annotations(name: str, data: Path, parts: list[dict[str, Any]], missing: list[Path]) -> Annotations:
    def join(key: str) -> np.ndarray:
        return np.concatenate([p[key] for p in parts])

    views = name == "h36m-multiview"
    lengths = [len(p["time"]) for p in parts]
    frames: dict[str, Any] = {"name": join("name"), "size": np.repeat([p["size"] for p in parts], lengths, 0)}
    frames |= {"K": np.repeat([p["K"] for p in parts], lengths, 0), "source": np.repeat(np.arange(len(parts)), lengths)}
    frames |= {"time": join("moment").astype(float) if views else join("time")}
    keypoints = np.concatenate([join("pixels"), np.ones((sum(lengths), 17, 1))], -1)
    return Annotations(
        name=f"{name}{f' (partial: without {len(missing)} files)' if missing else ''}",
        protocol="scorehmr" if views else "h36m",
        root=data,
        frames=frames | ({"view": join("view")} if views else {}),
        frame=np.arange(sum(lengths)),
        track=join("track"),
        box=box_of(keypoints, frames["size"]),
        keypoints=keypoints,
        joint_set=tuple(NAMES),
        input_2d="1: projected marker joints",
        joints=_with_head(join("xyz")),
        joint_names=(*NAMES, "head", "jaw"),
    )


def _with_head(xyz: np.ndarray) -> np.ndarray:
    """ProHMR's 19 joints call the head's top `head` and the nose `jaw`: both names for the same points."""
    return np.concatenate([xyz, xyz[:, [NAMES.index("head_top"), NAMES.index("nose")]]], 1)


def _video(video: Path, d3: Path, d2: Path, data: Path, every: int) -> dict[str, Any]:
    """Every fifth frame of one camera's take."""
    keep = facts()["h36m"]["joints17_of_32"]
    xyz, pixels = _poses(d3, 3) / 1000, _poses(d2, 2)
    if len(xyz) != len(pixels):
        raise damaged(d2, f"{len(pixels)} frames, {d3.name} in D3_Positions_mono has {len(xyz)}", SOURCE)
    width, height, n = video_size(video, SOURCE)
    if n < len(xyz) - 2 * every:
        raise damaged(video, f"{n} frames, the poses have {len(xyz)}", SOURCE)
    indices = np.arange(0, min(n, len(xyz)), every)
    stem = video.relative_to(data).as_posix()
    return {
        "name": np.array([f"{stem}#{i}" for i in indices], object),
        "size": (width, height),
        "K": intrinsics_of(xyz.reshape(-1, 3), pixels.reshape(-1, 2)),
        "time": indices / 50.0,
        "xyz": xyz[indices][:, keep],
        "pixels": pixels[indices][:, keep],
    }


def _poses(path: Path, axes: int) -> np.ndarray:
    """(N, 32, axes) of a CDF file. Raises AssetError for one that is missing, damaged, or without cdflib."""
    need(path, SOURCE)
    try:
        import cdflib  # the extra h36m: nothing else needs it
    except ImportError as error:
        raise AssetError(
            f"{path.name} is a CDF file, which needs cdflib", 'pip install "hmr-toolchain[h36m]"'
        ) from error
    try:
        values = np.asarray(cdflib.CDF(path).varget("Pose"), float)
    except Exception as error:  # cdflib fails in many ways on a damaged file
        raise damaged(path, error or type(error).__name__, SOURCE) from error
    if values.size % (32 * axes) or not values.size:
        raise damaged(path, f"Pose has shape {values.shape}, needed n x {32 * axes}", SOURCE)
    return values.reshape(-1, 32, axes)
