"""Rows of artefacts -> `PersonBatch`: the input of a network over rows, whichever verb runs it.

people = PersonLoader.for_model(model, {"detections": detections, "heatmaps": heatmaps})
model(people(rows))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.errors import ArtefactError, UsageError
from stages.media.frames import FrameSource
from stages.models.base import InputRecord, PersonBatch, PersonModel


class PersonLoader:
    """Builds the batch of some rows from detections and the artefacts made of them (same rows, same order).

    uses: columns that the network reads where an artefact has them · needs_images(names of those columns): whether
    images must be opened · root: the folder that frame names are relative to, if not where detection found the images.
    Raises ArtefactError for detections without keypoints.
    """

    def __init__(
        self,
        detections: Artefact,
        others: Iterable[Artefact] = (),
        *,
        uses: Sequence[str] = (),
        needs_images: Callable[[frozenset[str]], bool] = lambda available: True,
        root: str | Path | None = None,
    ) -> None:
        if not detections.has("keypoints/xy"):
            raise ArtefactError(
                f"{detections.path or 'the detections'} has boxes but no keypoints", "run hmr detect, or import them"
            )
        self.detections = detections
        self.joints = tuple(detections.group_attrs("keypoints")["joints"])
        self.tables = {name: table for table in others for name in uses if table.has(name)}
        self.source = FrameSource(detections, root) if needs_images(frozenset(self.tables)) else None

    @classmethod
    def for_model(
        cls, model: PersonModel, inputs: Mapping[str, Artefact], sha256: str = "", root: str | Path | None = None
    ) -> PersonLoader:
        """For a network, the SHA-256 of its checkpoint, and a verb's inputs by role: "detections" and others.

        Raises UsageError for an input that the network does not use, InputError for one that was not made for it.
        """
        others = {role: table for role, table in inputs.items() if role != "detections"}
        uses, needs_images = model.uses, model.needs_images
        people = cls(inputs["detections"], others.values(), uses=uses, needs_images=needs_images, root=root)
        unused = [role for role, table in others.items() if table not in people.tables.values()]
        if unused:
            raise UsageError(f"{model.name} does not use {' or '.join(unused)}", f"leave out --{unused[0]}")
        model.check_inputs({role: _record(table) for role, table in others.items()}, sha256)
        return people

    def __call__(self, rows: np.ndarray) -> PersonBatch:
        """The people of rows (n,). Raises InputError when an image cannot be read."""
        table = self.detections
        frame = table.rows["frame"][rows]
        frames, index = np.unique(frame, return_inverse=True)
        xy, score = table.read("keypoints/xy", rows), table.read("keypoints/score", rows)
        return PersonBatch(
            box=table.rows["box"][rows],
            keypoints=np.concatenate([xy, score[..., None]], -1),
            joints=self.joints,
            K=table.frames["K"][frame],
            size=table.frames["size"][frame],
            frame=index,
            row=np.asarray(rows),
            images=[self.source(i) for i in frames] if self.source else [],
            columns={name: artefact.read(name, rows) for name, artefact in self.tables.items()},
        )


def _record(table: Artefact) -> InputRecord:
    params = {**table.group_attrs(table.kind), **(table.attrs.get("params") or {})}
    return InputRecord(table.attrs.get("model") or {}, params)


def as_artefact(source: Path | Artefact, kind: str) -> Artefact:
    """An input of a verb, which may be a file or a table in memory."""
    return source if isinstance(source, Artefact) else open_artefact(source, kind)
