"""What a data set must give to be scored: rows (a detections artefact) and the truth of any of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np

from stages.artefacts.table import Artefact
from stages.datasets.protocols import Protocol


@dataclasses.dataclass
class Truth:
    """Ground truth of n rows. joints (n, J, 3) m in the protocol's joint_set, with their `names` · roots are the data
    set's own · vertices (n, V, 3) or None where there are none · vertex_root (n, 3) · visible (n, J) or None ·
    labelled (n, L, 3) px and visibility of `labelled_names`, or None: 2D truth. What has no truth is NaN. Any one frame
    of reference per row: everything is compared root-relative."""

    joints: np.ndarray
    names: tuple[str, ...]
    vertices: np.ndarray | None = None
    vertex_root: np.ndarray | None = None
    visible: np.ndarray | None = None
    labelled: np.ndarray | None = None
    labelled_names: tuple[str, ...] = ()


class Dataset(Interface):
    """`name`, `detections` (the rows, with keypoints as the papers' input), the papers' `protocol`, `topology` of the
    body that its vertices belong to ("" without vertices), `data` where its files lie, and `truth` of some rows.
    `subset`: which rows these are, for the scores. `check` raises AssetError for whatever scoring will miss, before
    anything is computed."""

    name: str
    detections: Artefact
    protocol: str
    topology: str
    data: Path | None
    subset: dict[str, Any]

    def check(self, protocol: Protocol) -> None: ...

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth: ...
