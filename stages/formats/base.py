"""What readers of other tools' files share: JSON that names entry and field when it is wrong, numbers, boxes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError


def parse_json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def entries(value: Any, path: Path, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise InputError(f"{path}: {what} is not a list of objects")
    return value


def field(entry: Mapping[str, Any], name: str, path: Path, where: str, kind: type) -> Any:
    if not isinstance(entry.get(name), kind):
        raise InputError(f"{path}: {where} has no {name}")
    return entry[name]


def number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def track_number(value: Any) -> int:
    """A person's number, given as a number, a text or a list of one; -1 for none, as most tools write it."""
    while isinstance(value, list):
        value = value[0] if len(value) == 1 else -1
    parsed = number(value)
    return int(parsed) if math.isfinite(parsed) and 0 <= parsed < 2**31 else -1


def xywh_to_xyxy(box: Any, where: str) -> np.ndarray:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise InputError(f"{where}: bbox is not x, y, width, height")
    x, y, w, h = (number(v) for v in box)
    return np.array([x, y, x + w, y + h])


def clean_keypoints(keypoints: np.ndarray) -> np.ndarray:
    """Joints that are not finite, or scored below 0, become unseen: 0, 0, 0."""
    bad = ~np.isfinite(keypoints).all(1) | (keypoints[:, 2] <= 0)
    return np.where(bad[:, None], 0.0, keypoints)


def joined_fingerprint(*fingerprints: str) -> str:
    return fingerprints[0] if not any(fingerprints[1:]) else hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
