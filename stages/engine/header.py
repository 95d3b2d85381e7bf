"""What a job makes, of what, and in which parts: the header that unfinished parts and the finished artefact carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from stages.artefacts.kinds import SCHEMA, Column
from stages.errors import InputError


@dataclasses.dataclass(frozen=True)
class PartPlan:
    """`n` rows, frames or tables (`per`: rows, frames, whole) divided into parts of `size`."""

    per: str
    n: int
    size: int

    @property
    def count(self) -> int:
        return -(-self.n // self.size)

    @property
    def unit(self) -> str:
        """What progress counts."""
        return "tables" if self.per == "whole" else self.per

    def range(self, part: int) -> tuple[int, int]:
        """First row (or frame) of a part and the one after its last."""
        return part * self.size, min((part + 1) * self.size, self.n)

    def ranges(self) -> Iterator[tuple[int, int]]:
        return map(self.range, range(self.count))


@dataclasses.dataclass(frozen=True)
class Header:
    """Provenance of a job (the root attributes documented in artefacts/kinds.py) and what its parts are joined by.

    `fingerprint` covers kind, schema, stage, params, rows, inputs' fingerprints and model · `attrs`: further root
    attributes of this stage · `parts`, `columns`, `group_attrs` and `finish` end with the parts. `finish` is the name
    of the stage whose last pass completes the whole table, '' for none.
    """

    kind: str
    stage: str
    params: Mapping[str, Any]
    inputs: tuple[Mapping[str, str], ...]
    model: Mapping[str, Any] | None
    fingerprint: str
    rows_fingerprint: str
    hmr_version: str
    created: str
    command: str
    parts: PartPlan
    columns: tuple[Column, ...]
    group_attrs: Mapping[str, Mapping[str, Any]]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schema: str = SCHEMA
    finish: str = ""

    def root_attrs(self) -> dict[str, Any]:
        """The part of the header that becomes root attributes of the artefact."""
        provenance = {name: getattr(self, name) for name in PROVENANCE}
        return provenance | {"kind": f"hmr/{self.kind}", "inputs": list(self.inputs), **self.attrs}

    def to_json(self) -> dict[str, Any]:
        """What is stored beside the parts."""
        return self.root_attrs() | {
            "per": self.parts.per,
            "n": self.parts.n,
            "part_rows": self.parts.size,
            "columns": [[c.name, c.dtype, list(c.shape), c.optional] for c in self.columns],
            "group_attrs": {group: dict(attrs) for group, attrs in self.group_attrs.items()},
            "finish": self.finish,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str) -> Header:
        """`to_json` undone. Raises InputError, naming `where`, for a header of a version with other entries."""
        try:
            return cls(
                **{name: stored[name] for name in PROVENANCE}
                | {"kind": stored["kind"].removeprefix("hmr/"), "inputs": tuple(stored["inputs"])},
                parts=PartPlan(stored["per"], int(stored["n"]), int(stored["part_rows"])),
                columns=tuple(Column(n, dtype, tuple(s), optional=o) for n, dtype, s, o in stored["columns"]),
                group_attrs=stored["group_attrs"],
                finish=stored["finish"],
                attrs={k: v for k, v in stored.items() if k not in PROVENANCE and k not in FOR_JOINING},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where} was written by another version of hmr ({type(error).__name__}: {error})",
                "--fresh discards the unfinished parts; the version that made them can finish them",
            ) from error


# Fields that are root attributes, and stored entries that end with the parts.
PROVENANCE = (
    *("kind", "schema", "stage", "params", "inputs", "model", "fingerprint", "rows_fingerprint"),
    *("hmr_version", "created", "command"),
)
FOR_JOINING = ("per", "n", "part_rows", "columns", "group_attrs", "finish", "shapes")
