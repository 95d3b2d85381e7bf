"""Tables of boxes without keypoints: CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError
from stages.formats.base import entries, number, parse_json, track_number, xywh_to_xyxy
from stages.formats.source import KeypointSource, Person, file_source
from stages.params import ImportParams


def read_boxes(path: Path, params: ImportParams) -> KeypointSource:
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
            box = np.array([number(entry[f]) for f in ("x1", "y1", "x2", "y2")])
        elif all(f in entry for f in ("x", "y", "w", "h")):
            box = xywh_to_xyxy([entry[f] for f in ("x", "y", "w", "h")], where)
        else:
            raise InputError(f"{where} has no box", "fields: name, x1, y1, x2, y2, and optionally score, track")
        group = people.setdefault(name, [])
        score = number(entry.get("score") or 1.0)
        if score >= params.min_score:
            group.append(Person(box, np.zeros((0, 3)), score, track_number(entry.get("track"))))
    return KeypointSource("boxes", fingerprint, people, {}, (), "no keypoints", path=path)


def _box_entries(content: bytes, path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix.lower() == ".json":
        data = parse_json(content, path)
        if isinstance(data, dict):
            keys = ("x1", "y1", "x2", "y2", "score")
            data = [{"name": n, **dict(zip(keys, box, strict=False))} for n, boxes in data.items() for box in boxes]
        return entries(data, path, "boxes")
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
