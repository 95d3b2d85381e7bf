"""detections (+ heatmaps, latents) -> features: what a network extracts from each person's crop.

DPMesh's single-step diffusion features (2048 x 8 x 8; float16, on request float32), or the image vector that ScoreHMR's
prior is conditioned on. The rows are those of the detections. `--model dpmesh-latents` keeps the Stable Diffusion
latent of each crop, from which another checkpoint or other keypoints on the same crops can start (half the work).

    hmr features photos.detections.h5 photos.heatmaps.h5 --ckpt 3dpw-pc_best_ckpt.pth.tar -o photos.features.h5
"""

from __future__ import annotations

from pathlib import Path

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import Job, RunOptions
from stages.engine.runner import run_rows
from stages.errors import UsageError
from stages.files.checkpoints import read_checkpoint
from stages.loaders.people import PersonLoader, as_artefact
from stages.models import find_model, load_model
from stages.models.base import PersonModel
from stages.models.tables import EXTRACTORS
from stages.params import FeaturesParams
from stages.params.rules import check

PART_ROWS = 64  # rows between two saves, unless the network says otherwise: extractors are slow


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
    root: where the images are, if not where detection found them. A person without a usable crop is a failed row.
    Raises AssetError for the checkpoint, ArtefactError for rows that differ, UsageError when nothing says which model.
    """
    params = check(params)
    inputs = {"detections": as_artefact(detections, "detections")}
    for role, source, kind in (("heatmaps", heatmaps, "heatmaps"), ("latents", latents, "features")):
        if source is not None:
            inputs[role] = as_artefact(source, kind)
    if not params.model and ckpt is None:
        raise UsageError("which extractor?", "give --ckpt FILE, or --model NAME")
    device = resolve_device(run.device)
    checkpoint = read_checkpoint(ckpt) if ckpt is not None else None
    loader = find_model(EXTRACTORS, params.model, checkpoint, PersonModel)
    model = load_model(loader, checkpoint, device, None)
    model.set_option("precision", params.precision, default="float16")
    provenance = model.provenance(checkpoint)
    people = PersonLoader.for_model(model, inputs, provenance["sha256"], root)
    job = Job(
        stage="features",
        kind="features",
        params=params,
        inputs=inputs,
        model=provenance,
        columns=model.columns,
        group_attrs={"features": {"extractor": model.name, **model.group_attrs.get("features", {})}},
        batch_size=model.batch_size,
        part_rows=model.part_rows or PART_ROWS,
    )
    return run_rows(job, lambda: lambda rows: model(people(rows)), out, run)
