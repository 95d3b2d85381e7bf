"""detections -> heatmaps: one stack of Gaussian heatmaps per person, in the pixels of DPMesh's crop.

The keypoints determine a square crop (the box of an occluded person is not known); each visible joint becomes a
Gaussian in it, one that is not visible an empty map.

    hmr heatmaps photos.detections.h5 -o photos.heatmaps.h5
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import Column, required_columns
from stages.artefacts.table import Artefact
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import ArtefactError
from stages.geometry import heatmaps
from stages.keypoints import joint_sets
from stages.params import HeatmapsParams
from stages.params.rules import check


def columns(params: HeatmapsParams) -> tuple[Column, ...]:
    """The columns that are written, with the sizes that these settings give."""
    count, side = len(joint_sets.get(params.joint_set)), params.size
    return required_columns("heatmaps", J=count, H=side, W=side)


def run(
    detections: Path | Artefact,
    out: Path | None,
    params: HeatmapsParams = HeatmapsParams(),
    run: RunOptions = RunOptions(),
) -> Path | Artefact:
    """Write the heatmaps of all rows to `out` (None: in memory). A person without a visible joint is a failed row.

    Raises ArtefactError for detections without keypoints, UsageError for impossible settings.
    """
    params = check(params)
    targets = joint_sets.get(params.joint_set)
    table = detections if isinstance(detections, Artefact) else open_artefact(detections, "detections")
    if not table.has("keypoints/xy"):
        raise ArtefactError(
            f"{table.path or 'the detections'} has boxes but no keypoints", "run hmr detect, or import them"
        )
    names = table.group_attrs("keypoints")["joints"]
    job = Job(
        stage="heatmaps",
        kind="heatmaps",
        params=params,
        inputs={"detections": table},
        model=None,
        columns=columns(params),
        group_attrs={"heatmaps": {"joints": list(targets), "joint_set": params.joint_set, "sigma": params.sigma}},
        batch_size=256,
    )
    return run_rows(job, lambda: compute(table, list(names), params), out, run)


def compute(table: Artefact, names: list[str], params: HeatmapsParams) -> Callable[[np.ndarray], dict[str, object]]:
    """The function rows -> columns."""

    def batch(rows: np.ndarray) -> dict[str, object]:
        xy, score = table.read("keypoints/xy", rows), table.read("keypoints/score", rows)
        keypoints = np.concatenate([xy, score[..., None]], -1)
        if params.joint_set == "dpmesh30":
            keypoints = heatmaps.dpmesh_keypoints(keypoints, names)
        else:
            keypoints = np.nan_to_num(joint_sets.convert(keypoints, names, params.joint_set))
        size = table.frames["size"][table.rows["frame"][rows]]
        joints = heatmaps.joints_in_crop(keypoints, size, params.size, params.threshold)
        valid = np.isfinite(joints.affine).all((1, 2))
        value = heatmaps.gaussian_heatmaps(
            torch.from_numpy(joints.xy), torch.from_numpy(joints.visible), (params.size, params.size), params.sigma
        )
        return {
            "heatmaps/value": value.half().numpy(),  # numpy converts to half ten times slower
            "heatmaps/crop": joints.affine.astype(np.float32),
            "heatmaps/xy": joints.xy,
            "heatmaps/mask": joints.visible.astype(np.uint8),
            "error": ["" if v else f"no keypoint in the image with a score above {params.threshold}" for v in valid],
        }

    return batch
