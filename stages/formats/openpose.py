"""OpenPose: a folder of NAME_keypoints.json files, one per image or video frame."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.formats.base import clean_keypoints, parse_json, track_number
from stages.formats.source import KeypointSource, Person, box_of, file_source, joint_names
from stages.params import ImportParams

OPENPOSE_SETS = {25: "body25", 18: "openpose18"}


def read_openpose(folder: Path, params: ImportParams) -> KeypointSource:
    """OpenPose's NAME_keypoints.json files, one per picture or video frame: BODY_25 or COCO-18 by their length."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of OpenPose files")
    files = sorted(folder.glob("*_keypoints.json"))
    if not files:
        raise InputError(
            f"{folder} holds no *_keypoints.json files", "hmr import openpose wants OpenPose's --write_json"
        )
    digest = hashlib.sha256()
    people: dict[str, list[Person]] = {}
    joints: tuple[str, ...] | None = None
    for path in files:
        content, fingerprint = file_source(path)
        digest.update(f"{path.name} {fingerprint}\n".encode("utf-8", "surrogateescape"))
        data = parse_json(content, path)
        if not isinstance(data, dict) or not isinstance(data.get("people"), list):
            raise InputError(f"{path} is not an OpenPose file (no list of people)")
        group = people.setdefault(path.name.removesuffix("_keypoints.json"), [])
        for entry in data["people"]:
            flat = np.asarray(entry.get("pose_keypoints_2d") or entry.get("pose_keypoints") or [], np.float64)
            if not len(flat) or len(flat) % 3:
                raise InputError(f"{path}: a person has {len(flat)} numbers in pose_keypoints_2d")
            count = len(flat) // 3
            joints = joints or joint_names(params.joint_set, count, (), OPENPOSE_SETS, str(path))
            if count != len(joints):
                raise InputError(f"{path}: a person has {count} joints, the others have {len(joints)}")
            keypoints = clean_keypoints(flat.reshape(-1, 3))
            visible = keypoints[:, 2] > 0
            score = float(keypoints[visible, 2].mean()) if visible.any() else 0.0
            if visible.sum() >= params.min_keypoints and score >= params.min_score:
                group.append(
                    Person(box_of(keypoints, params.margin), keypoints, score, track_number(entry.get("person_id")))
                )
    definition = "OpenPose's confidence of each joint; score is their mean"
    names = joints or joint_names("body25", 25, (), {}, str(folder))
    return KeypointSource("openpose", digest.hexdigest(), people, {}, names, definition, video_frames=True)
