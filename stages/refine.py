"""meshes + detections (+ features) -> meshes: every body pulled onto its evidence without leaving the plausible.

In: SMPL estimates, 2D keypoints of the same rows, and for published weights the image features they are conditioned on.
Out: the same kind of file. Method: ScoreHMR (Stathopoulos et al. 2024): invert the estimate into a diffusion prior over
poses, sample back under the gradient of the evidence. With the embedded prior, estimates are first weighed against
their keypoints (scorehmr/kalman_update.py), and single rows need no more. `--mode video` adds smoothness along tracks,
`--mode views` agreement between cameras; `--method fit` is plain gradient fitting of the same loss, for comparison.

    hmr refine people.meshes.h5 --detections people.detections.h5 -o refined.meshes.h5
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import ArtefactError, AssetError, UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint
from stages.loaders import tracks
from stages.loaders.people import as_artefact
from stages.models import find_loader
from stages.models.scorehmr.refiner import EMBEDDED, ScoreHmrRefiner
from stages.models.tables import REFINERS
from stages.params import RefineParams
from stages.params.rules import check
from stages.refinement.people import find_people, tell, tell_misses
from stages.refinement.rig import read_rig
from stages.refinement.rows import RowRefiner, columns, plan_rows, usable
from stages.smpl.body import load_body


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

    Raises UsageError for impossible settings, ArtefactError for inputs that do not fit, AssetError for the weights.
    """
    params = check(params)
    _check(params)
    tables = {"meshes": as_artefact(meshes, "meshes"), "detections": as_artefact(detections, "detections")}
    if features is not None:
        tables["features"] = as_artefact(features, "features")
    start, seen = tables["meshes"], tables["detections"]
    for name in ("smpl/body_pose", "smpl/global_orient", "smpl/betas", "smpl/transl"):
        if not start.has(name):
            raise ArtefactError(f"{start.path or 'the meshes'} has no {name}: only SMPL bodies can be refined")
    if not (seen.has("keypoints/xy") and seen.group_attrs("keypoints").get("joints")):
        raise ArtefactError(
            f"{seen.path or 'the detections'} has boxes but no keypoints", "run hmr detect, or import them"
        )
    attrs = start.group_attrs("smpl")
    body = load_body(
        params.body or str(attrs.get("body_model", "embedded")).split(" ")[0], str(attrs.get("gender", "neutral"))
    )
    checkpoint = _weights(ckpt)
    kind = ScoreHmrRefiner.conditioned_on(checkpoint) if params.method == "score" else ""
    if kind and not (features is not None and tables["features"].has(f"features/{kind}")):
        raise AssetError(
            f"{checkpoint.where} is conditioned on {kind} features, and none are given",
            f"hmr features DETECTIONS --model {kind} --ckpt FILE -o F.h5, then --features F.h5",
        )
    no_loop = not kind and params.mode == "frame" and params.preset == "default" and not params.loops
    if no_loop and params.keypoint_weight:
        text = "--keypoint-weight is of the diffusion loop, which the embedded prior does not need for single rows"
        raise UsageError(text, "add --loops 10 to run it as well, or leave it out")
    model = None
    if params.method == "score":
        model = {"name": "scorehmr", "sha256": checkpoint.sha256, "licence": checkpoint.licence}
    good = usable(start, tables["features"] if kind else None)
    if params.mode == "video":
        good &= _in_tracks(start, seen, run.report)
    rig, people = read_rig(params.cameras), None
    if params.mode == "views":
        people = find_people(seen, rig, good, meshes=start, body=body)
    plan = plan_rows(start, params, good, None if people is None else people.person)
    if people is not None:
        tell(people, seen, good, run.report)
    job = Job(
        stage="refine",
        kind="meshes",
        params=params,
        inputs=(tables if plan.table is start else {"meshes": plan.table}) | ({"cameras": rig} if rig else {}),
        model=model,
        columns=columns(params),
        group_attrs={"smpl": attrs, "joints": {"joints": list(body.joint_names)}},
        attrs={} if plan.table is start else {"filled_rows": len(plan.filled), "unfilled": start.fingerprint},
        batch_size=128 if params.mode == "frame" else 256,
    )

    def load() -> Callable[[np.ndarray], dict[str, Any]]:
        device = resolve_device(run.device)
        loader: type[ScoreHmrRefiner] = find_loader(REFINERS, checkpoint)
        refiner = loader.load(checkpoint, device=device, body=body.to(device), stats=params.stats)
        return RowRefiner(tables, refiner, params, plan)

    made = run_rows(job, load, out, run)
    if rig is not None and rig.placed and (isinstance(made, Artefact) or made.is_file()):
        with as_artefact(made, "meshes") as table:
            tell_misses(table, run.report)
    return made


def _in_tracks(meshes: Artefact, detections: Artefact, report: Any) -> np.ndarray:
    """Which rows (R,) belong to a track; the others have no neighbours in time, stay as they are, and that is said."""
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


def _weights(ckpt: Path | None) -> Checkpoint:
    if ckpt is None and not EMBEDDED.exists():
        raise AssetError("the embedded pose prior is not in this installation", "give --ckpt FILE, or: hmr train prior")
    return read_checkpoint(ckpt or EMBEDDED)


def _check(params: RefineParams) -> None:
    if params.hypotheses > 1 and (params.mode != "frame" or params.method == "fit"):
        raise UsageError("--hypotheses is for --mode frame --method score")
    if params.fill_gaps and params.mode != "video":
        raise UsageError("--fill-gaps is for --mode video")
    if params.cameras and params.mode != "views":
        raise UsageError("--cameras is for --mode views")
    read_rig(params.cameras)
