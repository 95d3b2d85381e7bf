"""What a data set must give to be scored: rows (a detections artefact) and the truth of any of them."""

from __future__ import annotations

import dataclasses
from typing import Protocol as Interface

import numpy as np

from stages.artefact import Artefact
from stages.datasets.protocols import Protocol


@dataclasses.dataclass
class Truth:
    """Ground truth of n rows. joints (n, J, 3) m in the protocol's joint_set, with their `names` · roots are the data
    set's own · vertices (n, V, 3) or None where there are none · vertex_root (n, 3) · visible (n, J) or None.
    Rows without truth are NaN. Any one frame of reference per row: everything is compared root-relative."""

    joints: np.ndarray
    names: tuple[str, ...]
    vertices: np.ndarray | None = None
    vertex_root: np.ndarray | None = None
    visible: np.ndarray | None = None


class Dataset(Interface):
    """`name`, `detections` (the rows, with keypoints as the papers' input), the papers' `protocol`, `topology` of the
    body that its vertices belong to ("" without vertices), and `truth` of some rows."""

    name: str
    detections: Artefact
    protocol: str
    topology: str

    def truth(self, rows: np.ndarray, protocol: Protocol) -> Truth: ...
