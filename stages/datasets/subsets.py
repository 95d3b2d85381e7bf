"""Which sequences and frames a benchmark has (subsets.json, with sources), and whether the rows read are all of it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import AssetError
from stages.files.folders import packaged


@functools.cache
def facts() -> dict[str, Any]:
    """The definitions, by data set."""
    return json.loads(packaged("datasets/subsets.json").read_text())


def definition(name: str) -> dict[str, Any]:
    """For the scores: where the definition of a subset comes from, and its SHA-256."""
    entry = facts().get({"3dpw": "3dpw-test"}.get(name, name)) or facts().get(name.split("-")[0], {})
    text = json.dumps([name, entry], sort_keys=True)
    return {"source": entry.get("source", "the file"), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def check_count(
    name: str, where: Path, rows: Mapping[str, int], expected: int | None, most: Mapping[str, int], partial: bool
) -> str:
    """'' when the rows of all sequences add up to the expected number, else (with `partial`) how many there are.

    rows: that were read, by sequence · expected: the published number, None unknown · most: rows of each sequence
    before any filter, where known. Raises AssetError with the count of every sequence when they do not add up, unless
    `partial`.
    """
    total = sum(rows.values())
    missing = [key for key in most if not rows.get(key)]
    if not total:
        raise AssetError(f"{where} holds no row of {name}", "is this the folder of the data set?")
    if (expected is None and not missing) or total == expected:
        return ""
    count = f"{total} rows" if expected is None else f"{total} of {expected} rows"
    if partial:
        return count
    keys = sorted({*rows, *most})
    each = ", ".join(f"{key} {rows.get(key, 0)}" + (f"/{most[key]}" if key in most else "") for key in keys)
    raise AssetError(
        f"{where}: {count} of {name}; rows found / people in all frames per sequence: {each}",
        "complete the data set, or --partial scores what is there and says so in the scores",
    )
