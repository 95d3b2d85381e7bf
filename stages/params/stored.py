"""Settings as JSON: what artefacts store, fingerprints cover and `--params-from` reads back."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from stages.errors import InputError, UsageError
from stages.params.rules import setting, with_none

EXAMPLE = 'for example {"min_score": 0.3}'

P = TypeVar("P")


def to_json(params: Any) -> str:
    """Sorted JSON of a Params instance: what the artefact stores and the fingerprint covers."""
    none = {f.name: setting(f).stored_none for f in dataclasses.fields(params)}
    values = {name: none[name] if value is None else value for name, value in dataclasses.asdict(params).items()}
    return json.dumps(values, sort_keys=True)


def from_json(cls: type[P], text: str) -> P:
    """A Params instance from stored JSON. Raises InputError for other text, UsageError for a setting not in `cls`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"stored parameters are not JSON: {error}", EXAMPLE) from error
    if not isinstance(values, dict):
        raise InputError(f"stored parameters are no JSON object but {text.strip()[:40]!r}", EXAMPLE)
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(kinds)):
        raise UsageError(
            f"stored parameters that this stage does not have: {', '.join(unknown)}", "was this made by another stage?"
        )
    for name, value in values.items():  # a wrong type would only show deep inside the stage
        if not _fits(value, kinds[name]):
            raise UsageError(
                f"stored parameter {name} is {json.dumps(value)[:40]}", f"it must be {_in_words(kinds[name])}"
            )
    return with_none(cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, without None; of another type itself."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return tuple(k for k in kinds if k is not type(None))


def _fits(value: Any, kind: Any) -> bool:
    """Is a JSON value of the type of a setting? null fits all, and leaves the question to `check`."""
    if value is None:
        return True
    (kind,) = members(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(v, typing.get_args(kind)[0]) for v in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, (int, float)) and (kind is float or float(value).is_integer())
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    (kind,) = members(kind)
    if typing.get_origin(kind) is tuple:
        return "a list of whole numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
