"""The contract of a data set: what its reader returns, what scoring asks of it, and the truth that it gives.

A data set in its original layout is one file of this folder with `read(name, data, partial) -> Annotations`
(stages/datasets/annotations.py) and one line in stages/datasets/__init__.py; `AnnotatedData` makes a `Dataset` of these
annotations. Whatever else can be scored is a subclass of `Dataset`, as stages/datasets/synthetic.py is.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.table import Artefact
from stages.datasets.protocols import Protocol


@dataclasses.dataclass
class Truth:
    """Ground truth of n rows, or what was predicted for them. What has no truth is NaN.

    joints (n, J, 3) m in the protocol's joint set, with their `names` · vertices (n, V, 3) m, None where there are none
    · vertex_root (n, 3) m, SMPL's own pelvis · visible (n, J), None where it is not known · labelled (n, L, 3): x, y in
    px and visibility of `labelled_names`, None without 2D truth. Each row may have a frame of reference of its own,
    because everything is compared relative to a root.
    """

    joints: np.ndarray
    names: tuple[str, ...]
    vertices: np.ndarray | None = None
    vertex_root: np.ndarray | None = None
    visible: np.ndarray | None = None
    labelled: np.ndarray | None = None
    labelled_names: tuple[str, ...] = ()

    def select(self, names: Sequence[str]) -> np.ndarray:
        """The joints (n, len(names), 3) of these names."""
        return self.joints[:, [self.names.index(name) for name in names]]


class Dataset(abc.ABC):
    """Rows with ground truth. Every member that `hmr eval` reads is here."""

    name: str  # as scores name it, marked when the set is not whole
    detections: Artefact  # the rows: boxes, cameras, and the papers' 2D input as keypoints
    protocol: str  # the papers' own (stages/datasets/protocols.py)
    topology: str  # of the body that the true vertices belong to, "" without vertices
    data: Path | None  # the folder or file that it was read from, where joint regressors are looked for
    subset: dict[str, Any]  # which rows these are, for the scores

    @abc.abstractmethod
    def check(self, protocol: Protocol) -> None:
        """Raise AssetError for a body or regressor that scoring will need, before anything is computed."""

    @abc.abstractmethod
    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth:
        """The truth of rows (n,). Raises UsageError for a protocol that this data set cannot follow."""
