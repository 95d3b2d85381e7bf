"""Params: the settings of a stage, written once.

A stage's `Params` is a frozen dataclass whose fields are made by `param`. The command line turns every field into a
flag (`min_score` -> `--min-score`), the artefact stores them as sorted JSON, `--params-from` reads them back.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from stages.errors import UsageError


def param(default: Any, help: str, *, unit: str = "") -> Any:
    """A field of a Params class: its default, one line of help and its unit."""
    return dataclasses.field(default=default, metadata={"help": f"{help} [{unit}]" if unit else help})


def to_json(params: Any) -> str:
    """Sorted JSON of a Params instance: what the artefact stores and the fingerprint covers."""
    return json.dumps(dataclasses.asdict(params), sort_keys=True)


def from_json(cls: type, text: str) -> Any:
    """A Params instance from stored JSON. Raises UsageError for a setting that `cls` does not have."""
    values = json.loads(text)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise UsageError(f"stored parameters have no place here: {', '.join(unknown)}", "was this made by another stage?")
    return cls(**values)
