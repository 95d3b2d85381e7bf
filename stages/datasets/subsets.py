"""Which sequences and frames a benchmark has (subsets.json, with sources), and whether what was found is all of it."""

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
    name: str, where: Path, found: Mapping[str, int], wanted: int | None, most: Mapping[str, int], partial: bool
) -> str:
    """'' when the rows found per sequence add up to the published number, else (with `partial`) how many there are.

    most: rows of each sequence before any filter, where known. Raises AssetError with the count of every sequence when
    they do not add up and `partial` was not asked for.
    """
    total = sum(found.values())
    lost = [key for key in most if not found.get(key)]
    if not total:
        raise AssetError(f"{where} holds no row of {name}", "is this the folder of the data set?")
    if (wanted is None and not lost) or total == wanted:
        return ""
    count = f"{total} rows" if wanted is None else f"{total} of {wanted} rows"
    if partial:
        return count
    keys = sorted({*found, *most})
    each = ", ".join(f"{key} {found.get(key, 0)}" + (f"/{most[key]}" if key in most else "") for key in keys)
    raise AssetError(
        f"{where}: {count} of {name}; rows found / people in all frames per sequence: {each}",
        "complete the data set, or --partial scores what is there and says so in the scores",
    )
