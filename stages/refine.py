"""meshes + detections (+ features) -> meshes: every body is pulled onto its evidence and stays plausible.

In: SMPL estimates, 2D keypoints of the same rows and, for published weights, the image features they are conditioned
on. Out: the same kind of file. Method: that of the refiner (`--model`). ScoreHMR (Stathopoulos et al. 2024), the
default, inverts the estimate into a diffusion prior over poses and samples back under the gradient of the evidence;
with the embedded prior, a Kalman update by the keypoints comes first, and single rows need no more. `--mode video` adds
smoothness along tracks, `--mode views` agreement between cameras; `--method fit` is plain gradient fitting of the same
loss, for comparison.

    hmr refine people.meshes.h5 --detections people.detections.h5 -o refined.meshes.h5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import ArtefactError, UsageError
from stages.files.checkpoints import read_checkpoint
from stages.loaders import tracks
from stages.loaders.people import as_artefact
from stages.models import find_model, load_refiner
from stages.models.base import Refiner
from stages.models.tables import REFINERS
from stages.params import RefineParams
from stages.params.rules import check
from stages.refinement.people import find_people, report_misses, report_people
from stages.refinement.plan import columns, plan_rows, usable_rows
from stages.refinement.rig import read_rig
from stages.refinement.rows import RowRefiner
from stages.smpl.body import load_body

WINDOW_BATCH = 256  # rows in a batch of modes video and views, which refine whole windows


def mode_of(detections: Artefact) -> str:
    """What the rows allow: views of one moment, tracks in time, or each row alone."""
    if len(set(detections.frames["view"].tolist())) > 1:
        return "views"
    return "video" if (detections.rows["track"] >= 0).any() else "frame"


def run(
    meshes: Path | Artefact,
    detections: Path | Artefact,
    out: Path | None,
    params: RefineParams = RefineParams(),
    run: RunOptions = RunOptions(),
    *,
    features: Path | Artefact | None = None,
    ckpt: Path | None = None,
) -> Path | Artefact:
    """Refine all rows into `out` (None: in memory). Rows with too little evidence are copied and marked.

    features: artefact of the same rows, for refiners that are conditioned on them · ckpt: the refiner's weights, if not
    packaged ones. Raises UsageError for impossible settings, ArtefactError for inputs that do not fit, AssetError for
    the weights.
    """
    params = check(params)
    _check(params)
    inputs = {"meshes": as_artefact(meshes, "meshes"), "detections": as_artefact(detections, "detections")}
    if features is not None:
        inputs["features"] = as_artefact(features, "features")
    estimates, evidence = inputs["meshes"], inputs["detections"]
    _check_columns(estimates, evidence)
    attrs = estimates.group_attrs("smpl")
    body_name = params.body or str(attrs.get("body_model", "embedded")).split(" ")[0]
    body = load_body(body_name, str(attrs.get("gender", "neutral")))
    checkpoint = read_checkpoint(ckpt) if ckpt is not None else None
    name = params.model or ("" if checkpoint else next(iter(REFINERS)))
    loader: type[Refiner] = find_model(REFINERS, name, checkpoint, Refiner)
    refiner = load_refiner(loader, checkpoint, resolve_device(run.device), body, params.stats)
    refiner.check_inputs(params, frozenset(inputs["features"].columns() if features is not None else ()))
    usable = usable_rows(estimates, inputs["features"] if refiner.features(params) else None)
    if params.mode == "video":
        usable &= _in_tracks(estimates, evidence, run.report)
    rig, people = read_rig(params.cameras), None
    if params.mode == "views":
        people = find_people(evidence, rig, usable, meshes=estimates, body=body)
    plan = plan_rows(estimates, params, usable, None if people is None else people.person)
    if people is not None:
        report_people(people, evidence, usable, run.report)
    same_rows = plan.table is estimates
    job = Job(
        stage="refine",
        kind="meshes",
        params=params,
        inputs=(inputs if same_rows else {"meshes": plan.table}) | ({"cameras": rig} if rig else {}),
        model=refiner.provenance(checkpoint) if params.method == "score" else None,
        columns=columns(params),
        group_attrs={"smpl": attrs, "joints": {"joints": list(body.joint_names)}},
        attrs={} if same_rows else {"filled_rows": len(plan.interpolated), "unfilled": estimates.fingerprint},
        batch_size=refiner.batch_size if params.mode == "frame" else WINDOW_BATCH,
    )
    result = run_rows(job, lambda: RowRefiner(inputs, refiner, params, plan, rig), out, run)
    if rig is not None and rig.has_positions and (isinstance(result, Artefact) or result.is_file()):
        with as_artefact(result, "meshes") as table:
            report_misses(table, run.report)
    return result


def _check_columns(estimates: Artefact, evidence: Artefact) -> None:
    for name in ("smpl/body_pose", "smpl/global_orient", "smpl/betas", "smpl/transl"):
        if not estimates.has(name):
            raise ArtefactError(f"{estimates.path or 'the meshes'} has no {name}: only SMPL bodies can be refined")
    if not (evidence.has("keypoints/xy") and evidence.group_attrs("keypoints").get("joints")):
        where = evidence.path or "the detections"
        raise ArtefactError(f"{where} has boxes but no keypoints", "run hmr detect, or import them")


def _in_tracks(meshes: Artefact, detections: Artefact, report: Any) -> np.ndarray:
    """Which rows (R,) belong to a track. The others have no neighbours in time; the report says so."""
    track = meshes.rows["track"]
    count = tracks.counted(meshes)
    alone = int((track < 0).sum())
    if alone:
        fix = "hmr track DETECTIONS -o T.detections.h5, then hmr recover; or --mode frame"
        if not count.tracks and (detections.rows["track"] >= 0).any():
            fix = f"{detections.path or 'the detections'} has tracks: hmr recover from it again"
        report.warn(f"{alone} of {len(track)} rows have no track and stay as they are: {fix}")
    report.note(f"refining over time: {count.text()}")
    return np.asarray(track >= 0)


def _check(params: RefineParams) -> None:
    if params.hypotheses > 1 and (params.mode != "frame" or params.method == "fit"):
        raise UsageError("--hypotheses is for --mode frame --method score")
    if params.fill_gaps and params.mode != "video":
        raise UsageError("--fill-gaps is for --mode video")
    if params.cameras and params.mode != "views":
        raise UsageError("--cameras is for --mode views")
    read_rig(params.cameras)
