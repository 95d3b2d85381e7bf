"""Where does occluding a part of the person hurt? A grey square slides over the box; each joint's error is mapped.

As in PARE (Kocabas et al., ICCV 2021, section 3 and figure 2) and PostoMETRO (figure 4): for each position of the
square the person is recovered again and the mean per-joint error is noted. The square is hidden from the network in
both of its inputs: the pixels under it are grey, the keypoints under it are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stages.datasets import joint_regressors
from stages.datasets.base import Dataset, Truth
from stages.datasets.protocols import protocol_of
from stages.errors import InputError, UsageError
from stages.evaluation import metrics
from stages.evaluation.scorer import check_body, relative
from stages.keypoints import joint_sets
from stages.models.base import PersonBatch
from stages.smpl.body import Body
from stages.visualization.draw import label

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
    model: Callable[[PersonBatch], dict[str, Any]],
    people_of: Callable[[np.ndarray], PersonBatch],
    dataset: Dataset,
    rows: np.ndarray,
    *,
    grid: int,
    size: float,
    body: Body,
) -> OcclusionMap:
    """Slide a square of `size` (share of the box's longer side) over grid x grid positions on the people of `rows`.

    model: a PersonModel that gives SMPL parameters or vertices · people_of(rows) · body: of the model's meshes. Joints
    that the data set does not annotate are left out. Raises UsageError without 3D truth, ArtefactError for another body
    than the data set's, InputError when nobody can be recovered even without a square.
    """
    protocol = protocol_of(dataset.protocol)
    if not protocol.joints:
        raise UsageError(f"{dataset.name} has no 3D joints, whose errors could be mapped", "choose another set")
    check_body(body, dataset, "the recovered meshes")
    dataset.check(protocol)
    people = people_of(rows)
    truth = relative(dataset.truth(rows, protocol), protocol)
    annotated = np.isfinite(truth).all(-1).any(0)
    names = tuple(name for name, known in zip(protocol.joints, annotated, strict=True) if known)
    regressor = joint_regressors.find(body, protocol.joint_set, dataset.data)

    def errors(people: PersonBatch) -> np.ndarray:
        pred = relative(_predicted(model(people), body, regressor, protocol.joint_set), protocol)
        each = metrics.per_joint_error(pred, truth)[:, annotated].T
        return metrics.masked_mean(each, np.isfinite(each))

    plain = errors(people)
    if not len(plain) or not np.isfinite(plain).all():
        raise InputError(f"nobody of {dataset.name} whose joints are annotated was recovered", "raise --limit")
    centres = [((x + 0.5) / grid, (y + 0.5) / grid) for y in range(grid) for x in range(grid)]
    occluded = np.stack([errors(occlude(people, x, y, size)) for x, y in centres], 1)
    return OcclusionMap(occluded.reshape(-1, grid, grid), plain, names, len(rows))


def occlude(people: PersonBatch, x: float, y: float, size: float) -> PersonBatch:
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


@torch.no_grad()
def _predicted(columns: dict[str, Any], body: Body, regressor: joint_regressors.Regressor, joint_set: str) -> Truth:
    """The joints of what a network returned."""
    if "vertices/xyz" in columns:
        joints = regressor(torch.as_tensor(columns["vertices/xyz"]).float().cpu())
    else:
        names = ("global_orient", "body_pose", "betas", "transl")
        posed = body(*(torch.as_tensor(columns[f"smpl/{n}"]).float().cpu() for n in names))
        joints = posed.joints if joint_set == "smpl24" else regressor(posed.vertices)
    return Truth(joints.numpy(), joint_sets.get(joint_set))


# Dark blue, teal, yellow: readable in grey and to the colour-blind.
RAMP = np.array([[48, 18, 90], [30, 110, 140], [95, 190, 100], [250, 230, 60]], float)
COLUMNS, GAP = 4, 34
PAPER = np.full(3, 255, np.uint8)


def to_image(result: OcclusionMap, side: int = 230) -> np.ndarray:
    """RGB image (H, W, 3): how much the error grows with the square at each position, one map per joint, their mean
    first, all on one scale; above each its error without the square and the largest increase."""
    errors = np.concatenate([result.errors.mean(0, keepdims=True), result.errors])
    plain = np.r_[result.plain.mean(), result.plain]
    increase = np.nan_to_num(errors - plain[:, None, None])
    high = max(float(increase.max()), 1.0)
    cell = max(1, side // increase.shape[1])
    tiles = _coloured(np.kron(increase / high, np.ones((1, cell, cell))))
    step = tiles.shape[1] + GAP
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.tile(PAPER, (rows * step + 2 * GAP, COLUMNS * step + GAP, 1))
    for i, (tile, name) in enumerate(zip(tiles, ["mean", *result.joints], strict=True)):
        y, x = GAP + (i // COLUMNS) * step, GAP + (i % COLUMNS) * step
        label(sheet, (x - 3, y - 2), f"{name.replace('_', ' ')} {plain[i]:.0f} {increase[i].max():+.0f}", PAPER / 255)
        sheet[y : y + len(tile), x : x + len(tile)] = tile
    y = rows * step + GAP // 2
    sheet[y : y + GAP // 2, GAP:step] = _coloured(np.linspace(0, 1, step - GAP)[None, None])[0]
    text = f"0 to +{high:.0f} mm with a square there; {result.rows} people"
    label(sheet, (step + 4, y + GAP // 2 + 6), text, PAPER / 255)
    return sheet


def _coloured(share: np.ndarray) -> np.ndarray:
    """0..1 (..., H, W) -> RGB (..., H, W, 3) uint8; negative shares count as 0."""
    position = share.clip(0, 1) * (len(RAMP) - 1)
    step = np.minimum(position.astype(int), len(RAMP) - 2)
    return np.asarray((RAMP[step] + (position - step)[..., None] * (RAMP[step + 1] - RAMP[step])).astype(np.uint8))
