"""The true bodies of a table of people: the group `extra` that `hmr synth` writes, in the camera frame."""

from __future__ import annotations

import numpy as np

from stages.artefacts.table import Artefact
from stages.errors import ArtefactError

TRUTH = ("global_orient", "body_pose", "betas", "transl")


def read_truth(table: Artefact) -> dict[str, np.ndarray]:
    """global_orient (R, 3), body_pose (R, 23, 3), betas (R, 10), transl (R, 3). Raises ArtefactError without them."""
    missing = [f"extra/{name}" for name in TRUTH if not table.has(f"extra/{name}")]
    if missing:
        raise ArtefactError(f"{table.path or 'the table'} holds no {', '.join(missing)}", "make one with hmr synth")
    return {name: table.read(f"extra/{name}") for name in TRUTH}
