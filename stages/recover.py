"""detections (+ heatmaps, features) -> meshes: a body for every person.

The recoverer is the embedded one (keypoints alone, no checkpoint), or the one that `--ckpt` is for, or the one that
`--model` names. It computes what it needs and no input artefact holds, and images are opened only where it needs them.

    hmr recover photos.detections.h5 -o photos.meshes.h5
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import UsageError
from stages.files.checkpoints import read_checkpoint
from stages.files.hashing import sha256_of
from stages.loaders.people import PersonLoader, as_artefact
from stages.models import find_model, load_model
from stages.models.base import PersonModel
from stages.models.tables import RECOVERERS
from stages.params import RecoverParams
from stages.params.rules import check
from stages.smpl.body import load_body


def run(
    detections: Path | Artefact,
    out: Path | None,
    params: RecoverParams = RecoverParams(),
    run: RunOptions = RunOptions(),
    *,
    ckpt: Path | None = None,
    heatmaps: Path | Artefact | None = None,
    features: Path | Artefact | None = None,
    root: Path | None = None,
) -> Path | Artefact:
    """Write the bodies of all rows to `out` (None: in memory).

    ckpt: the recoverer's weights · heatmaps, features: artefacts of the same rows, used instead of being computed ·
    root: where the images are, if not where detection found them. A person who cannot be recovered is a failed row.
    Raises AssetError (checkpoint, body), ArtefactError (rows that differ, no keypoints), UsageError (model, inputs).
    """
    params = check(params)
    inputs = {"detections": as_artefact(detections, "detections")}
    for role, source in (("heatmaps", heatmaps), ("features", features)):
        if source is not None:
            inputs[role] = as_artefact(source, role)
    model, provenance = load(params, ckpt, resolve_device(run.device))
    if ckpt is not None:
        run.report.note(f"{Path(ckpt).name}: {model.name}")
    if model.remark:
        run.report.warn(model.remark)
    people = PersonLoader.for_model(model, inputs, provenance["sha256"], root)
    job = Job(
        stage="recover",
        kind="meshes",
        params=dataclasses.replace(params, body=_body_name(params.body)),
        inputs=inputs,
        model=provenance,
        columns=model.columns,
        group_attrs={group: model.group_attrs.get(group, {}) for group in ("smpl", "joints", "vertices")},
        batch_size=model.batch_size,
        part_rows=model.part_rows,
    )
    return run_rows(job, lambda: lambda rows: model(people(rows)), out, run)


def load(params: RecoverParams, ckpt: Path | None, device: str) -> tuple[PersonModel, dict[str, str]]:
    """The recoverer that `params` and the checkpoint ask for, and its provenance (name, SHA-256 of the weights,
    ...)."""
    checkpoint = read_checkpoint(ckpt) if ckpt is not None else None
    name = params.model or (None if checkpoint else next(iter(RECOVERERS)))
    loader = find_model(RECOVERERS, name, checkpoint, PersonModel)
    if params.gender != "neutral" and not params.body:
        raise UsageError(f"--gender {params.gender} goes with --body", "hmr body-model list")
    body = load_body(params.body, params.gender, device) if params.body else None
    model = load_model(loader, checkpoint, device, body)
    model.set_option("focal", params.focal, default="row")
    return model, model.provenance(checkpoint)


def _body_name(body: str | None) -> str | None:
    """The artefact's entry for the body: a name as typed; a file by its name and content, never by its folder."""
    if body is None or not (path := Path(body)).is_file():
        return body
    return f"{path.name} {sha256_of(path)[:16]}"
