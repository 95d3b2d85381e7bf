"""detections (+ heatmaps, features) -> meshes: a body for every person.

The recoverer is the embedded one (keypoints alone, no checkpoint), or the one that `--ckpt` is for, or `--model`; what
it uses and is not given, it computes. Pictures are opened only when it needs them.

    hmr recover photos.detections.h5 -o photos.meshes.h5
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint, usable
from stages.files.hashing import sha256_of
from stages.loaders.people import PersonLoader, as_artefact, check_given, model_record, set_option
from stages.models import find, find_loader
from stages.models.base import PersonModel
from stages.models.tables import RECOVERERS
from stages.params import RecoverParams, check
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
    root: where the pictures are, if not where detection found them. A person who cannot be recovered is a failed row.
    Raises AssetError (checkpoint, body), ArtefactError (rows that differ, no keypoints), UsageError (model, inputs).
    """
    params = check(params)
    inputs = {"detections": as_artefact(detections, "detections")}
    for role, given in (("heatmaps", heatmaps), ("features", features)):
        if given is not None:
            inputs[role] = as_artefact(given, role)
    model, sha256 = load(params, ckpt, resolve_device(run.device))
    if ckpt is not None:
        run.report.note(f"{Path(ckpt).name}: {model.name}")
    if remark := getattr(model, "remark", ""):
        run.report.warn(remark)
    people = PersonLoader.of(model, inputs, root)
    check_given(model, inputs, sha256)
    job = Job(
        stage="recover",
        kind="meshes",
        params=dataclasses.replace(params, body=_body_name(params.body)),
        inputs=inputs,
        model=model_record(model, sha256),
        columns=model.columns,
        group_attrs={
            "smpl": model.group_attrs.get("smpl", {}),
            "joints": model.group_attrs.get("joints", {}),
            "vertices": model.group_attrs.get("vertices", {}),
        },
        batch_size=model.batch_size,
        part_rows=getattr(model, "part_rows", None),
    )
    return run_rows(job, lambda: lambda rows: model(people(rows)), out, run)


def load(params: RecoverParams, ckpt: Path | None, device: str) -> tuple[PersonModel, str]:
    """The recoverer that `params` and the checkpoint ask for, and the SHA-256 of its weights ('' if it has none)."""
    checkpoint = read_checkpoint(ckpt) if ckpt is not None else None
    loader = loader_of(params.model, checkpoint)
    if params.gender != "neutral" and not params.body:
        raise UsageError(f"--gender {params.gender} goes with --body", "hmr body-model list")
    body = load_body(params.body, params.gender, device) if params.body else None
    with usable(ckpt or "the recoverer"):
        model = loader.load(checkpoint, device=device, body=body)
    lacking = [name for name in (*PersonModel.__annotations__, "needs_images", "__call__") if not hasattr(model, name)]
    if lacking:
        raise UsageError(
            f"{params.model} is no recoverer: it lacks {', '.join(sorted(lacking))}", "see stages/models/__init__.py"
        )
    set_option(model, "focal", params.focal, ("row", "first"))
    return model, checkpoint.sha256 if checkpoint else str(getattr(model, "sha256", ""))


def loader_of(model: str | None, checkpoint: Checkpoint | None) -> Any:
    """The class named by `model`, else the one that recognises the checkpoint, else the embedded recoverer's."""
    if model:
        loader = find(RECOVERERS, model)
    else:
        loader = find(RECOVERERS, next(iter(RECOVERERS))) if checkpoint is None else find_loader(RECOVERERS, checkpoint)
    if not hasattr(loader, "load"):
        raise UsageError(f"{model} cannot be loaded", "it needs a class method load(checkpoint, *, device, body)")
    return loader


def _body_name(body: str | None) -> str | None:
    """What the artefact says of the body: a name as typed, a file by its own name and content, never by its folder."""
    if body is None or not (path := Path(body)).is_file():
        return body
    return f"{path.name} {sha256_of(path)[:16]}"
