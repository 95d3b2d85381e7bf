"""Rows of artefacts -> `PersonBatch`: what a network over rows is given, whichever verb runs it.

people = PersonLoader(detections, [heatmaps], uses=model.uses, needs_images=model.needs_images)
model(people(rows))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.errors import ArtefactError, UsageError
from stages.media.frames import FrameSource
from stages.models.base import PersonBatch, PersonModel


class PersonLoader:
    """Builds the batch of given rows from detections and the artefacts made of them (same rows, same order).

    uses: columns that the network reads when there · needs_images(given names) -> whether pictures must be opened.
    Raises ArtefactError for detections without keypoints.
    """

    def __init__(
        self,
        detections: Artefact,
        others: Iterable[Artefact] = (),
        *,
        uses: Sequence[str] = (),
        needs_images: Callable[[frozenset[str]], bool] = lambda given: True,
        root: str | Path | None = None,
    ) -> None:
        if not detections.has("keypoints/xy"):
            raise ArtefactError(
                f"{detections.path or 'the detections'} has boxes but no keypoints", "run hmr detect, or import them"
            )
        self.detections = detections
        self.joints = tuple(detections.group_attrs("keypoints")["joints"])
        self.given = {name: table for table in others for name in uses if table.has(name)}
        self.source = FrameSource(detections, root) if needs_images(frozenset(self.given)) else None

    @classmethod
    def of(cls, model: PersonModel, inputs: Mapping[str, Artefact], root: str | Path | None = None) -> PersonLoader:
        """For a network and a verb's inputs by role, "detections" and others. Raises UsageError for one without use."""
        others = {role: table for role, table in inputs.items() if role != "detections"}
        uses, needs_images = model.uses, model.needs_images
        people = cls(inputs["detections"], others.values(), uses=uses, needs_images=needs_images, root=root)
        unused = [role for role, table in others.items() if table not in people.given.values()]
        if unused:
            raise UsageError(f"{model.name} does not use {' or '.join(unused)}", f"leave out --{unused[0]}")
        return people

    def __call__(self, rows: np.ndarray) -> PersonBatch:
        """The people of rows (n,). Raises InputError when a picture cannot be read."""
        table = self.detections
        frame = table.rows["frame"][rows]
        frames, which = np.unique(frame, return_inverse=True)
        xy, score = table.read("keypoints/xy", rows), table.read("keypoints/score", rows)
        return PersonBatch(
            box=table.rows["box"][rows],
            keypoints=np.concatenate([xy, score[..., None]], -1),
            joints=self.joints,
            K=table.frames["K"][frame],
            size=table.frames["size"][frame],
            frame=which,
            row=np.asarray(rows),
            images=[self.source(i) for i in frames] if self.source else [],
            columns={name: artefact.read(name, rows) for name, artefact in self.given.items()},
        )


def check_given(model: Any, inputs: Mapping[str, Artefact], sha256: str) -> None:
    """Let a network that can tell refuse artefacts that are not for it. Raises InputError.

    sha256: of its checkpoint · inputs by role. A network tells by `check_given(role, sha256, model, params)`.
    """
    for role, table in inputs.items():
        if role != "detections" and hasattr(model, "check_given"):
            params = {**table.group_attrs(table.kind), **(table.attrs.get("params") or {})}
            model.check_given(role, sha256, table.attrs.get("model") or {}, params)


def set_option(model: Any, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Set an attribute that only some networks have; the first choice is what every network does without it.

    Raises UsageError for another value, or where the network has no such choice.
    """
    if value not in choices:
        raise UsageError(f"--{name} {value}: no such choice", f"one of {', '.join(choices)}")
    if hasattr(model, name):
        setattr(model, name, value)
    elif value != choices[0]:
        raise UsageError(f"{model.name} has no choice of {name}", f"leave out --{name}")


def model_record(model: Any, sha256: str) -> dict[str, str]:
    """What an artefact says of the network that made it."""
    about = {"source_sha256": source} if (source := getattr(model, "source", "")) else {}
    return {"name": model.name, "sha256": sha256, "licence": model.licence, **about, **getattr(model, "record", {})}


def as_artefact(given: Path | Artefact, kind: str) -> Artefact:
    """An input of a verb, which may be a file or a table in memory."""
    return given if isinstance(given, Artefact) else open_artefact(given, kind)
