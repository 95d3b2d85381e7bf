"""COCO: annotations and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError
from stages.formats.base import (
    clean_keypoints,
    field,
    joined_fingerprint,
    number,
    parse_json,
    track_number,
    xywh_to_xyxy,
)
from stages.formats.base import entries as _entries
from stages.formats.source import KeypointSource, Person, box_of, file_source, joint_names
from stages.media.inputs import IMAGE_SUFFIXES, frame_number
from stages.params import ImportParams

COCO_SETS = {17: "coco17"}


def read_coco(path: Path, images: Path | None, params: ImportParams, annotations: Path | None = None) -> KeypointSource:
    """COCO annotations ({"images", "annotations", ...}) or results ([{"image_id", "keypoints", "score"}, ...]).

    In annotations a joint scores 1 when visible, 0.5 when labelled but occluded, 0 when not labelled; crowds are left
    out. The names of pictures in results come from `annotations`, or from the numbers in the file names below `images`;
    with a video, image_id is the number of a frame ("12", 12 or "12.jpg"). AlphaPose's results are read as well.
    Raises InputError for anything else, naming the entry.
    """
    content, fingerprint = file_source(path)
    data = parse_json(content, path)
    results = isinstance(data, list)
    book, extra = data, ""
    if results and annotations is not None:
        text, extra = file_source(annotations)
        book = parse_json(text, annotations)
    if not results and not (isinstance(data, dict) and {"images", "annotations"} <= set(data)):
        raise InputError(f"{path} is neither COCO results (a list) nor annotations (with images and annotations)")
    stated: tuple[str, ...] = ()
    ids: dict[Any, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    if isinstance(book, dict):
        stated = next((tuple(c["keypoints"]) for c in book.get("categories", []) if c.get("keypoints")), ())
        for k, image in enumerate(_entries(book["images"], path, "images")):
            ids[image.get("id")] = field(image, "file_name", path, f"images[{k}]", str)
            if image.get("width") and image.get("height"):
                sizes[ids[image["id"]]] = (int(image["width"]), int(image["height"]))
    entries = data if results else data["annotations"]
    people: dict[str, list[Person]] = {name: [] for name in ids.values()}
    find = ids.get if ids else str if images is None and params.fps else _by_number(images, path)
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
        score = number(entry.get("score", 1.0))
        if score >= params.min_score:
            bbox = entry.get("bbox") or entry.get("box")  # the latter is AlphaPose's
            box = xywh_to_xyxy(bbox, where) if bbox else box_of(keypoints, params.margin)
            people.setdefault(name, []).append(Person(box, clean_keypoints(keypoints), score, _track(entry)))
    joints = joints or stated or joint_names("coco17", 17, (), {}, str(path))
    for group in people.values():  # people without keypoints still have the columns
        for person in group:
            if not len(person.keypoints):
                person.keypoints = np.zeros((len(joints), 3))
    definition = (
        "the detector's own score of each joint" if results else "1 visible, 0.5 labelled but occluded, 0 not labelled"
    )
    return KeypointSource("coco", joined_fingerprint(fingerprint, extra), people, sizes, joints, definition, path=path)


def _track(entry: Mapping[str, Any]) -> int:
    """The person's number, if the entry has one: `track_id`, or AlphaPose's `idx`, a number or a list of one."""
    value = next((entry[key] for key in ("track_id", "idx") if entry.get(key) is not None), -1)
    return track_number(value)


def _by_number(images: Path | None, path: Path) -> Callable[[Any], str | None]:
    """Pictures by the number in their name (000000000785.jpg is 785), or by name, for results without annotations;
    frames of a video by their number."""
    if images is not None and images.is_file():
        return lambda image: str(n) if (n := frame_number(str(image))) >= 0 else None
    if images is None or not images.is_dir():
        text = f"{path} holds results, which name no pictures"
        raise InputError(text, "give --annotations FILE, --images DIR or VIDEO, or --size and --fps")
    files = [p for p in sorted(images.rglob("*")) if p.suffix.lower()[1:] in IMAGE_SUFFIXES]
    table: dict[Any, str] = {}
    for file in files:
        name = file.relative_to(images).as_posix()
        digits = file.stem[len(file.stem.rstrip("0123456789")) :]
        table.update({name: name, file.name: name, file.stem: name} | ({int(digits): name} if digits else {}))
    return table.get
