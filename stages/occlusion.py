"""Where does hiding a part of the person hurt? A grey square slides over the box; the error of every joint is mapped.

As in PARE (Kocabas et al., ICCV 2021, section 3 and figure 2) and PostoMETRO (figure 4): for each place of the square
the person is recovered again and the mean per-joint error is noted. What the square hides is hidden from the network in
both ways that it looks: the pixels are grey, the keypoints under it are not given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stages.datasets import regressors
from stages.datasets.protocols import protocol_of
from stages.datasets.truth import Dataset, Truth
from stages.evaluate import relative
from stages.human import metrics
from stages.models import People

GREY = 127


@dataclasses.dataclass(frozen=True)
class OcclusionMap:
    """errors (J, G, G) mm: mean error of joint j with the square at row, column of the grid over the box ·
    plain (J,): without it · joints: names · rows: people it is the mean of."""

    errors: np.ndarray
    plain: np.ndarray
    joints: tuple[str, ...]
    rows: int


def occlusion_map(
    model: Any, people_of: Any, dataset: Dataset, rows: np.ndarray, *, grid: int, size: float, body: Any
) -> OcclusionMap:
    """Slide a square of `size` (share of the box's longer side) over grid x grid places of the people of `rows`.

    model: a RowModel that gives SMPL parameters or vertices · people_of(rows) -> People · body: of its meshes.
    """
    protocol = protocol_of(dataset.protocol)
    people: People = people_of(rows)
    dataset.check(protocol)
    truth = dataset.truth(rows, protocol)
    regress = regressors.find(body, protocol.joint_set, dataset.data)

    def errors(seen: People) -> np.ndarray:
        a, b = relative(_predicted(model(seen), body, regress, protocol.joint_set), protocol), relative(truth, protocol)
        return np.nanmean(metrics.per_joint_error(a, b), axis=0)

    places = [(y, x) for y in range(grid) for x in range(grid)]
    found = np.stack([errors(hide(people, (x + 0.5) / grid, (y + 0.5) / grid, size)) for y, x in places], 1)
    return OcclusionMap(found.reshape(-1, grid, grid), errors(people), protocol.joints, len(rows))


def hide(people: People, x: float, y: float, size: float) -> People:
    """The people with a grey square at (x, y) of their boxes (shares of width and height), and no keypoint under it."""
    low, high = people.box[:, :2], people.box[:, 2:]
    centre = low + (high - low) * [x, y]
    half = 0.5 * size * (high - low).max(1, keepdims=True)
    under = (np.abs(people.keypoints[..., :2] - centre[:, None]) <= half[:, None]).all(-1)
    keypoints = people.keypoints.copy()
    keypoints[under, 2] = 0
    images = []
    for i, frame in enumerate(people.frame if people.images else ()):  # one copy each: neighbours may share a frame
        image = people.images[frame].copy()
        left, top = np.floor(np.maximum(centre[i] - half[i], 0)).astype(int)
        right, bottom = np.ceil(np.maximum(centre[i] + half[i], 0)).astype(int)
        image[top:bottom, left:right] = GREY
        images.append(image)
    frame = np.arange(len(people)) if images else people.frame
    return dataclasses.replace(people, keypoints=keypoints, images=images, frame=frame, columns={})


def _predicted(columns: dict[str, Any], body: Any, regress: regressors.Regressor, joint_set: str) -> Truth:
    import torch

    from stages.human import joints

    with torch.no_grad():
        if "vertices/xyz" in columns:
            found = regress(torch.as_tensor(columns["vertices/xyz"]).float().cpu())
        else:
            names = ("global_orient", "body_pose", "betas", "transl")
            out = body(*(torch.as_tensor(columns[f"smpl/{n}"]).float().cpu() for n in names))
            found = out.joints if joint_set == "smpl24" else regress(out.vertices)
        return Truth(found.numpy(), joints.get(joint_set))


# Dark blue, teal, yellow: readable in grey and to the colour-blind.
RAMP = np.array([[48, 18, 90], [30, 110, 140], [95, 190, 100], [250, 230, 60]], float)


def picture(found: OcclusionMap, cell: int = 22) -> np.ndarray:
    """RGB picture (H, W, 3): one map per joint and, first, their mean; brighter is worse, all on one scale."""
    from stages.human.draw import label

    maps = np.concatenate([found.errors.mean(0, keepdims=True), found.errors])
    low, high = float(np.nanmin(maps)), float(np.nanmax(maps))
    place = np.nan_to_num((maps - low) / max(high - low, 1e-9)) * (len(RAMP) - 1)
    step = np.minimum(place.astype(int), len(RAMP) - 2)
    colour = RAMP[step] + (place - step)[..., None] * (RAMP[step + 1] - RAMP[step])
    tiles = np.kron(colour, np.ones((1, cell, cell, 1))).astype(np.uint8)
    side, gap = tiles.shape[1], 26
    columns = 5
    sheet = np.full((-(-len(tiles) // columns) * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    names = [f"mean {low:.0f}-{high:.0f} mm", *found.joints]
    for i, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        y, x = gap + (i // columns) * (side + gap), gap + (i % columns) * (side + gap)
        sheet[y : y + side, x : x + side] = tile
        label(sheet, (x, y - 4), name.replace("_", " "), np.full(3, 0.9))
    return sheet
