"""The files of other tools, read into an import_.Source: COCO results and annotations, OpenPose folders, box tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError
from stages.import_ import Params, Person, Source, box_of, file_source, joint_names
from stages.media.frames import PICTURES

COCO_SETS = {17: "coco17"}
OPENPOSE_SETS = {25: "body25", 18: "openpose18"}


def read_coco(path: Path, images: Path | None, params: Params, annotations: Path | None = None) -> Source:
    """COCO annotations ({"images", "annotations", ...}) or results ([{"image_id", "keypoints", "score"}, ...]).

    In annotations a joint scores 1 when visible, 0.5 when labelled but occluded, 0 when not labelled; crowds are left
    out. The names of pictures in results come from `annotations`, or from the numbers in the file names below `images`.
    Raises InputError for anything else, naming the entry.
    """
    content, fingerprint = file_source(path)
    data = _json(content, path)
    results = isinstance(data, list)
    book, extra = data, ""
    if results and annotations is not None:
        text, extra = file_source(annotations)
        book = _json(text, annotations)
    if not results and not (isinstance(data, dict) and {"images", "annotations"} <= set(data)):
        raise InputError(f"{path} is neither COCO results (a list) nor annotations (with images and annotations)")
    stated: tuple[str, ...] = ()
    ids: dict[Any, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    if isinstance(book, dict):
        stated = next((tuple(c["keypoints"]) for c in book.get("categories", []) if c.get("keypoints")), ())
        for k, image in enumerate(_entries(book["images"], path, "images")):
            ids[image.get("id")] = _field(image, "file_name", path, f"images[{k}]", str)
            if image.get("width") and image.get("height"):
                sizes[ids[image["id"]]] = (int(image["width"]), int(image["height"]))
    entries = data if results else data["annotations"]
    people: dict[str, list[Person]] = {name: [] for name in ids.values()}
    find = ids.get if ids else _by_number(images, path)
    joints: tuple[str, ...] | None = None
    for k, entry in enumerate(_entries(entries, path, "annotations")):
        where = f"{path}: entry {k}"
        if entry.get("iscrowd") or entry.get("category_id", 1) != 1:
            continue
        flat = np.asarray(entry.get("keypoints") or [], np.float64)
        if len(flat) % 3 or flat.ndim != 1:
            raise InputError(f"{where} has {flat.size} numbers in keypoints, not a multiple of 3")
        if joints is None and len(flat):
            joints = joint_names(params.joint_set, len(flat) // 3, stated, COCO_SETS, where)
        keypoints = flat.reshape(-1, 3)
        if len(flat) and joints is not None and len(keypoints) != len(joints):
            raise InputError(f"{where} has {len(keypoints)} joints, the others have {len(joints)}")
        labelled = int((keypoints[:, 2] > 0).sum())
        if labelled < params.min_keypoints:
            continue
        if not results:
            keypoints[:, 2] = np.select([keypoints[:, 2] >= 2, keypoints[:, 2] >= 1], [1.0, 0.5], 0.0)
        name = find(entry.get("image_id"))
        if name is None:
            raise InputError(f"{where}: no picture for image_id {entry.get('image_id')!r}", "--annotations or --images")
        score = _number(entry.get("score", 1.0))
        if score >= params.min_score:
            box = _xywh(entry["bbox"], where) if entry.get("bbox") else box_of(keypoints, params.margin)
            people.setdefault(name, []).append(Person(box, _clean(keypoints), score, int(entry.get("track_id", -1))))
    joints = joints or stated or joint_names("coco17", 17, (), {}, str(path))
    for group in people.values():  # people without keypoints still have the columns
        for person in group:
            if not len(person.keypoints):
                person.keypoints = np.zeros((len(joints), 3))
    definition = (
        "the detector's own score of each joint" if results else "1 visible, 0.5 labelled but occluded, 0 not labelled"
    )
    return Source("coco", _join(fingerprint, extra), people, sizes, joints, definition, path=path)


def read_openpose(folder: Path, params: Params) -> Source:
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
        data = _json(content, path)
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
            keypoints = _clean(flat.reshape(-1, 3))
            seen = keypoints[:, 2] > 0
            score = float(keypoints[seen, 2].mean()) if seen.any() else 0.0
            if seen.sum() >= params.min_keypoints and score >= params.min_score:
                group.append(Person(box_of(keypoints, params.margin), keypoints, score, _person_id(entry)))
    definition = "OpenPose's confidence of each joint; score is their mean"
    names = joints or joint_names("body25", 25, (), {}, str(folder))
    return Source("openpose", digest.hexdigest(), people, {}, names, definition, video_frames=True)


def read_boxes(path: Path, params: Params) -> Source:
    """Boxes: CSV with a header, or JSON, a list of objects or {name: [[x1, y1, x2, y2], ...]}.

    Fields: name (or file, file_name, image), x1 y1 x2 y2 (or x y w h), and optionally score, track. No keypoints.
    """
    content, fingerprint = file_source(path)
    people: dict[str, list[Person]] = {}
    for k, entry in enumerate(_box_entries(content, path)):
        where = f"{path}: entry {k}"
        name = next((str(entry[f]) for f in ("name", "file", "file_name", "image") if entry.get(f)), "")
        if not name:
            raise InputError(f"{where} names no picture", "fields: name, x1, y1, x2, y2, and optionally score, track")
        if all(f in entry for f in ("x1", "y1", "x2", "y2")):
            box = np.array([_number(entry[f]) for f in ("x1", "y1", "x2", "y2")])
        elif all(f in entry for f in ("x", "y", "w", "h")):
            box = _xywh([entry[f] for f in ("x", "y", "w", "h")], where)
        else:
            raise InputError(f"{where} has no box", "fields: name, x1, y1, x2, y2, and optionally score, track")
        group = people.setdefault(name, [])
        score = _number(entry.get("score") or 1.0)
        if score >= params.min_score:
            group.append(Person(box, np.zeros((0, 3)), score, int(_number(entry.get("track") or -1))))
    return Source("boxes", fingerprint, people, {}, (), "no keypoints", path=path)


def _box_entries(content: bytes, path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix.lower() == ".json":
        data = _json(content, path)
        if isinstance(data, dict):
            keys = ("x1", "y1", "x2", "y2", "score")
            data = [{"name": n, **dict(zip(keys, box, strict=False))} for n, boxes in data.items() for box in boxes]
        return _entries(data, path, "boxes")
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), skipinitialspace=True, strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    header = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"name", "file", "file_name", "image"} & set(header):
        what = f"its first line is {','.join(header)[:60]!r}" if header else "it is empty"
        raise InputError(f"{path} has no header that names pictures: {what}", "name,x1,y1,x2,y2,score,track")
    return [{str(k).strip().lower(): v for k, v in row.items() if k is not None} for row in rows]


def _json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _entries(value: Any, path: Path, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise InputError(f"{path}: {what} is not a list of objects")
    return value


def _field(entry: Mapping[str, Any], name: str, path: Path, where: str, kind: type) -> Any:
    if not isinstance(entry.get(name), kind):
        raise InputError(f"{path}: {where} has no {name}")
    return entry[name]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _xywh(box: Any, where: str) -> np.ndarray:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise InputError(f"{where}: bbox is not x, y, width, height")
    x, y, w, h = (_number(v) for v in box)
    return np.array([x, y, x + w, y + h])


def _clean(keypoints: np.ndarray) -> np.ndarray:
    """Joints that are not finite, or scored below 0, become unseen: 0, 0, 0."""
    bad = ~np.isfinite(keypoints).all(1) | (keypoints[:, 2] <= 0)
    return np.where(bad[:, None], 0.0, keypoints)


def _person_id(entry: Mapping[str, Any]) -> int:
    value = entry.get("person_id", -1)
    value = value[0] if isinstance(value, list) and value else value
    return int(value) if isinstance(value, (int, float)) else -1


def _by_number(images: Path | None, path: Path) -> Callable[[Any], str | None]:
    """Pictures by the number in their name (000000000785.jpg is 785), or by name, for results without annotations."""
    if images is None or not images.is_dir():
        raise InputError(f"{path} holds results, which name no pictures", "give --annotations FILE or --images DIR")
    files = [p for p in sorted(images.rglob("*")) if p.suffix.lower()[1:] in PICTURES]
    table: dict[Any, str] = {}
    for file in files:
        name = file.relative_to(images).as_posix()
        digits = file.stem[len(file.stem.rstrip("0123456789")) :]
        table.update({name: name, file.name: name, file.stem: name} | ({int(digits): name} if digits else {}))
    return table.get


def _join(*fingerprints: str) -> str:
    return fingerprints[0] if not any(fingerprints[1:]) else hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
