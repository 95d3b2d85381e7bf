"""Where does hiding a part of the person hurt? A grey square slides over the box; the error of every joint is mapped.

As in PARE (Kocabas et al., ICCV 2021, section 3 and figure 2) and PostoMETRO (figure 4): for each place of the square
the person is recovered again and the mean per-joint error is noted. What the square hides is hidden from the network in
both ways that it looks: the pixels are grey, the keypoints under it are not given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stages.datasets import joint_regressors
from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import protocol_of
from stages.errors import InputError, UsageError
from stages.evaluation import metrics
from stages.evaluation.scorer import check_body, relative
from stages.models.base import PersonBatch

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

    model: a PersonModel that gives SMPL parameters or vertices · people_of(rows) -> People · body: of its meshes.
    Joints that the data set does not annotate are left out. Raises UsageError without 3D truth, ArtefactError for
    another body than the data set's, InputError when not even the people as they are can be recovered.
    """
    protocol = protocol_of(dataset.protocol)
    if not protocol.joints:
        raise UsageError(f"{dataset.name} has no joints in space, whose errors could be mapped", "choose another set")
    check_body(body, dataset, "the recovered meshes")
    dataset.check(protocol)
    people: PersonBatch = people_of(rows)
    truth = relative(dataset.truth(rows, protocol), protocol)
    known = np.isfinite(truth).all(-1).any(0)
    names = tuple(name for name, have in zip(protocol.joints, known, strict=True) if have)
    regress = joint_regressors.find(body, protocol.joint_set, dataset.data)

    def errors(seen: PersonBatch) -> np.ndarray:
        found = relative(_predicted(model(seen), body, regress, protocol.joint_set), protocol)
        each = metrics.per_joint_error(found, truth)[:, known].T
        return metrics.masked_mean(each, np.isfinite(each))

    plain = errors(people)
    if not len(plain) or not np.isfinite(plain).all():
        raise InputError(f"nobody of {dataset.name} whose joints are annotated was recovered", "raise --limit")
    places = [(y, x) for y in range(grid) for x in range(grid)]
    found = np.stack([errors(hide(people, (x + 0.5) / grid, (y + 0.5) / grid, size)) for y, x in places], 1)
    return OcclusionMap(found.reshape(-1, grid, grid), plain, names, len(rows))


def hide(people: PersonBatch, x: float, y: float, size: float) -> PersonBatch:
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


def _predicted(columns: dict[str, Any], body: Any, regress: joint_regressors.Regressor, joint_set: str) -> Truth:
    import torch

    from stages.keypoints import joint_sets

    with torch.no_grad():
        if "vertices/xyz" in columns:
            found = regress(torch.as_tensor(columns["vertices/xyz"]).float().cpu())
        else:
            names = ("global_orient", "body_pose", "betas", "transl")
            out = body(*(torch.as_tensor(columns[f"smpl/{n}"]).float().cpu() for n in names))
            found = out.joints if joint_set == "smpl24" else regress(out.vertices)
        return Truth(found.numpy(), joint_sets.get(joint_set))


# Dark blue, teal, yellow: readable in grey and to the colour-blind.
RAMP = np.array([[48, 18, 90], [30, 110, 140], [95, 190, 100], [250, 230, 60]], float)
COLUMNS, GAP = 4, 34
PAPER = np.full(3, 255, np.uint8)


def picture(found: OcclusionMap, side: int = 230) -> np.ndarray:
    """RGB picture (H, W, 3): how much the error grows with the square at each place, one map per joint and, first,
    their mean, all on one scale; above each its error with nothing hidden and the most that is added to it."""
    from stages.visualization.draw import label

    errors = np.concatenate([found.errors.mean(0, keepdims=True), found.errors])
    plain = np.r_[found.plain.mean(), found.plain]
    more = np.nan_to_num(errors - plain[:, None, None])
    high = max(float(more.max()), 1.0)
    cell = max(1, side // more.shape[1])
    tiles = _coloured(np.kron(more / high, np.ones((1, cell, cell))))
    step = tiles.shape[1] + GAP
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.tile(PAPER, (rows * step + 2 * GAP, COLUMNS * step + GAP, 1))
    for i, (tile, name) in enumerate(zip(tiles, ["mean", *found.joints], strict=True)):
        y, x = GAP + (i // COLUMNS) * step, GAP + (i % COLUMNS) * step
        label(sheet, (x - 3, y - 2), f"{name.replace('_', ' ')} {plain[i]:.0f} {more[i].max():+.0f}", PAPER / 255)
        sheet[y : y + len(tile), x : x + len(tile)] = tile
    y = rows * step + GAP // 2
    sheet[y : y + GAP // 2, GAP:step] = _coloured(np.linspace(0, 1, step - GAP)[None, None])[0]
    text = f"0 to +{high:.0f} mm with a square there; {found.rows} people"
    label(sheet, (step + 4, y + GAP // 2 + 6), text, PAPER / 255)
    return sheet


def _coloured(share: np.ndarray) -> np.ndarray:
    """0..1 (..., H, W) -> RGB (..., H, W, 3) uint8; less than nothing is nothing."""
    place = share.clip(0, 1) * (len(RAMP) - 1)
    step = np.minimum(place.astype(int), len(RAMP) - 2)
    return np.asarray((RAMP[step] + (place - step)[..., None] * (RAMP[step + 1] - RAMP[step])).astype(np.uint8))
