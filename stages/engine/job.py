"""What a stage makes and from what: `Job`; how it runs: `RunOptions`; who is told about progress: `ProgressReport`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from stages.artefacts.kinds import Column
from stages.engine.assembly import Finish

BATCH = 64


class ProgressReport:
    """The interface for progress and messages; this one is silent. hmr_cli/_output.py has those for people."""

    def start(self, title: str, total: int | None = None, *, unit: str = "rows", done: int = 0) -> None: ...
    def advance(self, n: int) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


SILENT = ProgressReport()


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run; none of it changes a value. See the shared flags of the command line (hmr_cli/_flags.py)."""

    device: str = "auto"
    batch_size: int | None = None
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    fresh: bool = False
    force: bool = False
    strict: bool = False
    dry_run: bool = False
    report: Any = SILENT


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage makes: `kind` with `columns`, by `stage` with `params` from `inputs` (role -> artefact; the first
    one gives frames and rows) and `model` ({name, sha256, licence} or None).

    `columns`: letters in shapes are bound by the first output; `group_attrs` {group: {name: value}}; `attrs` more
    root attributes. `part_rows`: rows (frames for run_frames) between two saves, smaller for slow networks. `finish`, a
    module-level function, sees the whole table and returns (row columns to replace, root attributes to add).
    """

    stage: str
    kind: str
    params: Any
    inputs: Mapping[str, Any]
    columns: tuple[Column, ...]
    model: Mapping[str, Any] | None = None
    group_attrs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = BATCH
    part_rows: int | None = None
    finish: Finish | None = None
