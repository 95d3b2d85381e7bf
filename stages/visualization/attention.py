"""detections + a DPMesh checkpoint -> images of its cross-attention: where in the crop each joint of the prompt acts.

One image per person, as in the paper's Figure 6: the crop, then the crop under the 16 x 16 map of each visible joint,
each map scaled from its own minimum to its own maximum.

    hmr view photos.detections.h5 --attention dpmesh.safetensors -o attention/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import RunOptions
from stages.files.checkpoints import read_checkpoint
from stages.keypoints.joint_sets import SETS
from stages.loaders.people import PersonLoader, as_artefact
from stages.media.images import write_image
from stages.models import find_loader
from stages.models.base import PersonModel
from stages.models.tables import EXTRACTORS
from stages.visualization import draw

TILE, COLUMNS = 160, 6
COLOUR = np.array([1.0, 0.3, 0.0])


def run(
    detections: Path | Artefact,
    out: Path,
    ckpt: Path,
    *,
    root: str | Path | None = None,
    run: RunOptions = RunOptions(),
) -> list[Path]:
    """Write out/row_NNNNN.jpg for each person; returns the files.

    Raises AssetError (checkpoint), UsageError (a network without attention over joints), InputError (an image).
    """
    table = as_artefact(detections, "detections")
    checkpoint = read_checkpoint(ckpt)
    model: PersonModel = find_loader(EXTRACTORS, checkpoint).load(
        checkpoint, device=resolve_device(run.device), body=None
    )
    people = PersonLoader(table, root=root)
    rows = np.flatnonzero(table.rows["status"] == OK)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    batch = run.batch_size or model.batch_size
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        result = model.attention(people(part))
        for k, row in enumerate(part):
            image = sheet(result["images"][k], result["attn16"][k], result["seen"][k])
            written.append(write_image(out / f"row_{row:05d}.jpg", image))
    return written


def sheet(crop: np.ndarray, maps: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Crop (256, 256, 3) uint8, maps (30, side, side), visible (30,) bool -> one image of tiles."""
    small = draw.resized(crop, (TILE, TILE))
    tiles = [small]
    for joint in np.flatnonzero(visible):
        low, high = float(maps[joint].min()), float(maps[joint].max())
        share = (maps[joint] - low) / max(high - low, 1e-9)
        grey = np.repeat((share * 255).astype(np.uint8)[..., None], 3, 2)
        weight = draw.resized(grey, (TILE, TILE)).astype(np.float64) / 255 * 0.8
        tile = (small * (1 - weight) + 255 * COLOUR * weight).astype(np.uint8)
        draw.label(tile, (4.0, 14.0), SETS["dpmesh30"][joint], COLOUR)
        tiles.append(tile)
    blank = np.full_like(small, 255)
    tiles += [blank] * (-len(tiles) % COLUMNS)
    lines = [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
    return np.concatenate(lines, 0)
