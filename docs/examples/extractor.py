"""A feature extractor from outside: the mean colour of each cell of an 8 x 8 grid over the person's box.

PYTHONPATH=docs/examples hmr features people.detections.h5 --model extractor:ColourGrid -o people.features.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.artefacts.kinds import Column
from stages.geometry import crops
from stages.models.base import PersonBatch, PersonModel

SIDE = 8


class ColourGrid(PersonModel):
    name, licence, batch_size = "colour-grid", "CC0", 64
    columns = (Column("features/colour", "f4", ("R", SIDE, SIDE, 3), "", "mean RGB of each cell, 0 to 1"),)

    @classmethod
    def load(cls, checkpoint: Any, *, device: str, body: Any) -> ColourGrid:
        return cls()

    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        affine = crops.resize_affine(people.box, 8 * SIDE)
        patches = crops.warp(people.images, people.frame, affine, 8 * SIDE, np.float32)
        cells = patches.reshape(-1, SIDE, 8, SIDE, 8, 3).mean((2, 4)) / 255
        return {"features/colour": cells}
