"""Params: the settings of a stage, written once.

A stage's `Params` is a frozen dataclass whose fields are made by `param`. The command line turns every field into a
flag (`min_score` -> `--min-score`), the artefact stores them as sorted JSON, `--params-from` reads them back.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from stages.errors import InputError, UsageError

EXAMPLE = 'for example {"min_score": 0.3}'


def param(default: Any, help: str, *, unit: str = "") -> Any:
    """A field of a Params class: its default, one line of help and its unit."""
    return dataclasses.field(default=default, metadata={"help": f"{help} [{unit}]" if unit else help})


def to_json(params: Any) -> str:
    """Sorted JSON of a Params instance: what the artefact stores and the fingerprint covers."""
    return json.dumps(dataclasses.asdict(params), sort_keys=True)


def from_json(cls: type, text: str) -> Any:
    """A Params instance from stored JSON. Raises InputError for other text, UsageError for a setting not in `cls`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"stored parameters are not JSON: {error}", EXAMPLE) from error
    if not isinstance(values, dict):
        raise InputError(f"stored parameters are no JSON object but {text.strip()[:40]!r}", EXAMPLE)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise UsageError(
            f"stored parameters have no place here: {', '.join(unknown)}", "was this made by another stage?"
        )
    for field in dataclasses.fields(cls):  # a wrong type would only show deep inside the stage
        if field.name in values and not _fits(values[field.name], field.default):
            raise UsageError(
                f"stored parameter {field.name} is {json.dumps(values[field.name])[:40]}",
                f"it must be like {json.dumps(field.default)}",
            )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _fits(value: Any, default: Any) -> bool:
    """Is a JSON value of the kind of a field's default? Unknown (no default, or None) passes."""
    if default is None or default is dataclasses.MISSING or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, (tuple, list)):
        return isinstance(value, list)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not (isinstance(default, int) and value != int(value))
    return isinstance(value, type(default))
