"""Tracks of PHALP and 4D-Humans: joblib pickles, read without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.errors import InputError
from stages.files.hashing import sha256_of
from stages.files.joblib import read_data
from stages.formats.bodies import Bodies, program_camera, smpl_columns
from stages.formats.source import parse_size
from stages.geometry import cameras
from stages.geometry.rotations import matrix_to_axis_angle
from stages.params import ImportBodiesParams as Params


def read_phalp(path: Path, params: Params) -> Bodies:
    """Tracks of PHALP or 4D-Humans: {frame path: {smpl, camera_bbox, center, bbox, tid, size, ...}}."""
    content = read_data(path)
    if not isinstance(content, dict) or not content or not all(isinstance(v, dict) for v in content.values()):
        raise InputError(f"{path} holds no tracks", "expected PHALP's dictionary: one entry a frame")
    names = sorted(content, key=lambda name: (content[name].get("time", 0), str(name)))
    rows: dict[str, list[Any]] = {
        k: [] for k in ("frame", "box", "track", "score", "pose", "betas", "camera", "center", "side")
    }
    sizes = np.zeros((len(names), 2), int)
    for f, name in enumerate(names):
        entry = content[name]
        for k, person in enumerate(entry.get("smpl") or ()):
            if not isinstance(person, dict) or "body_pose" not in person:
                continue  # a track that is only predicted here, not seen
            try:
                root = np.asarray(person["global_orient"], np.float32).reshape(1, 3, 3)
                pose = np.asarray(person["body_pose"], np.float32).reshape(23, 3, 3)
                x, y, w, h = np.asarray(entry["bbox"][k], float).reshape(4)
                rows["camera"].append(np.asarray(entry["camera_bbox"][k], float).reshape(3))
                rows["center"].append(np.asarray(entry["center"][k], float).reshape(2))
                rows["track"].append(int(entry["tid"][k]))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(f"{path}: person {k} of frame {name} cannot be read: {error!r}") from error
            height, width = np.asarray(entry["size"][k] if "size" in entry else (0, 0), int).reshape(2)
            sizes[f] = width, height
            rows["frame"].append(f)
            rows["pose"].append(np.concatenate([root, pose]))
            rows["betas"].append(np.asarray(person["betas"], np.float32).reshape(-1)[:10])
            rows["box"].append([x, y, x + w, y + h])
            rows["side"].append(max(w, h))
            rows["score"].append(float(np.asarray(entry["conf"][k])) if "conf" in entry else 1.0)
    if not rows["frame"]:
        raise InputError(f"{path} holds no person", "were the tracks made with another version?")
    known = sizes.any(1)
    if not known.all():
        sizes[~known] = parse_size(params.size) or sizes[known][0]
    K = program_camera(sizes, params.focal)
    table = {name: np.array(values) for name, values in rows.items()}
    transl = cameras.weak_to_transl(table["camera"], table["center"], table["side"], K[table["frame"]])
    pose = matrix_to_axis_angle(torch.from_numpy(table["pose"])).numpy()
    return Bodies(
        "phalp", path, sha256_of(path), [Path(str(n)).name for n in names], sizes,
        table["frame"], table["box"], smpl_columns(pose, table["betas"], transl), K,
        track=table["track"], score=table["score"], video=True,
    )  # fmt: skip
