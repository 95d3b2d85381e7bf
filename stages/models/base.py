"""The contract of a network: what it is given and what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass
class PersonBatch:
    """A batch of n rows (one person in one frame each), in picture pixels; (0, 0) is the centre of the first pixel.

    box (n, 4) xyxy · keypoints (n, J, 3) x, y, score (NaN or score 0 = not seen) · joints: the J names ·
    K (n, 3, 3) intrinsics · size (n, 2) picture width, height · frame (n,) index into `images` ·
    images: the distinct pictures, RGB uint8 (H, W, 3), empty unless the network says `needs_images` ·
    columns: what earlier artefacts give for these rows, e.g. "heatmaps/value", "features/dpmesh", "smpl/betas" ·
    row (n,) the rows' numbers in the artefact: what a per-row random generator is seeded with.
    """

    box: np.ndarray
    keypoints: np.ndarray
    joints: tuple[str, ...]
    K: np.ndarray
    size: np.ndarray
    frame: np.ndarray
    row: np.ndarray
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.box)


@runtime_checkable
class PersonModel(Protocol):
    """A network over rows: a feature extractor ("features/<name>" columns) or a recoverer (smpl, joints, vertices).

    `columns` name, dtype and shape of what `__call__` returns (stages.artefacts.kinds.Column), `group_attrs` the
    attributes of their groups (e.g. {"joints": {"joints": [...]}}), `uses` the columns of earlier artefacts that it
    reads when they are given ("features/dpmesh"); with them `needs_images` may be False.
    """

    name: str
    licence: str
    batch_size: int
    columns: tuple[Any, ...]
    group_attrs: Mapping[str, Mapping[str, Any]]
    uses: tuple[str, ...]

    def needs_images(self, given: frozenset[str]) -> bool: ...

    def __call__(self, people: PersonBatch) -> dict[str, Any]: ...


class Loader(Protocol):
    """The class named in a table below: builds the network from a checkpoint or, without one, from the package."""

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool: ...

    @classmethod
    def load(cls, checkpoint: Any | None, *, device: str, body: Any | None) -> PersonModel: ...
