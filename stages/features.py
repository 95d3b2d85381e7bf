"""detections (+ heatmaps, latents) -> features: what a network saw in each person's crop.

DPMesh's single-step diffusion features (2048 x 8 x 8; float16, on request float32), or the image vector that ScoreHMR's
prior is conditioned on. The rows are those of the detections. `--model dpmesh-latents` keeps the Stable Diffusion
latent of each crop, from which another checkpoint or other keypoints on the same crops can start (half the work).

    hmr features photos.detections.h5 photos.heatmaps.h5 --ckpt 3dpw-pc_best_ckpt.pth.tar -o photos.features.h5
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
from stages.errors import UsageError
from stages.files.checkpoints import Checkpoint, read_checkpoint, usable
from stages.loaders.people import PersonLoader, as_artefact, check_given, model_record, set_option
from stages.models import find, find_loader
from stages.models.base import PersonModel
from stages.models.tables import EXTRACTORS
from stages.params import FeaturesParams, check


def run(
    detections: Path | Artefact,
    out: Path | None,
    params: FeaturesParams = FeaturesParams(),
    run: RunOptions = RunOptions(),
    *,
    ckpt: Path | None = None,
    heatmaps: Path | Artefact | None = None,
    latents: Path | Artefact | None = None,
    root: Path | None = None,
) -> Path | Artefact:
    """Write the features of all rows to `out` (None: in memory).

    ckpt: the extractor's weights · heatmaps, latents: artefacts of the same rows, used instead of being computed ·
    root: where the pictures are, if not where detection found them. A person without a usable crop is a failed row.
    Raises AssetError for the checkpoint, ArtefactError for rows that differ, UsageError when nothing says which model.
    """
    params = check(params)
    inputs = {"detections": as_artefact(detections, "detections")}
    for role, given, kind in (("heatmaps", heatmaps, "heatmaps"), ("latents", latents, "features")):
        if given is not None:
            inputs[role] = as_artefact(given, kind)
    device = resolve_device(run.device)
    checkpoint = read_checkpoint(ckpt) if ckpt is not None else None
    loader: Any = loader_of(params.model, checkpoint)
    with usable(ckpt or "the extractor"):
        model: PersonModel = loader.load(checkpoint, device=device, body=None)
    set_option(model, "precision", params.precision, ("float16", "float32"))
    sha256 = checkpoint.sha256 if checkpoint else ""
    people = PersonLoader.of(model, inputs, root)
    check_given(model, inputs, sha256)
    job = Job(
        stage="features",
        kind="features",
        params=params,
        inputs=inputs,
        model=model_record(model, sha256),
        columns=model.columns,
        group_attrs={"features": {"extractor": model.name, **model.group_attrs.get("features", {})}},
        batch_size=model.batch_size,
        part_rows=getattr(model, "part_rows", 64),
    )
    return run_rows(job, lambda: compute(people, model), out, run)


def loader_of(model: str | None, checkpoint: Checkpoint | None) -> Any:
    """The class named by `model`, or the one that recognises the checkpoint."""
    if model:
        return find(EXTRACTORS, model)
    if checkpoint is None:
        raise UsageError("which extractor?", "give --ckpt FILE, or --model NAME")
    return find_loader(EXTRACTORS, checkpoint)


def compute(people: PersonLoader, model: PersonModel) -> Callable[[np.ndarray], dict[str, Any]]:
    """The function rows -> columns."""
    return lambda rows: model(people(rows))
