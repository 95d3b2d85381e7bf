"""Rows of artefacts -> `People`: what a network over rows is given, whichever verb runs it.

people = PeopleOf(detections, [heatmaps], uses=model.uses, needs_images=model.needs_images)
model(people(rows))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from stages.artefact import Artefact
from stages.errors import ArtefactError
from stages.frames import FrameSource
from stages.models import People


class PeopleOf:
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

    def __call__(self, rows: np.ndarray) -> People:
        """The people of rows (n,). Raises InputError when a picture cannot be read."""
        table = self.detections
        frame = table.rows["frame"][rows]
        frames, which = np.unique(frame, return_inverse=True)
        xy, score = table.read("keypoints/xy", rows), table.read("keypoints/score", rows)
        return People(
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
