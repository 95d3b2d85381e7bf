"""What joins commands: the whole chain, data sets by name, shards. Stages exchange files, or tables in memory, here.

Usage:

    from stages import run_chain

    run_chain(["photo.jpg"], Path("out"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import detect, evaluate, export, import_, recover, refine, synth, view
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.datasets import LAYOUTS
from stages.datasets.base import Dataset
from stages.datasets.licensed import open_licensed
from stages.datasets.synthetic import SynthData
from stages.engine import runner
from stages.engine.assembly import Finish
from stages.engine.job import RunOptions
from stages.errors import UsageError
from stages.files.folders import cache_dir
from stages.params import DetectParams, ExportParams, RecoverParams, RefineParams, SynthParams, ViewParams
from stages.synthetic.sets import SETS, VERSION

# Stages whose whole table is completed in a last pass, once every part is there.
FINISHERS: dict[str, Finish] = {
    "detect": detect.link_people,
    "evaluate": evaluate.summarise,
    **{f"import {name}": import_.link_people for name in ("coco", "openpose", "boxes")},
}


def run_chain(
    inputs: Sequence[str | Path],
    out: Path,
    run: RunOptions = RunOptions(),
    *,
    detections: Path | None = None,
    ckpt: Path | None = None,
    refined: bool | None = None,
    detect_params: DetectParams = DetectParams(),
    recover_params: RecoverParams = RecoverParams(),
    refine_params: RefineParams | None = None,
    view_params: ViewParams = ViewParams(side=True),
    export_params: ExportParams | None = ExportParams(),
) -> dict[str, Any]:
    """Images or video in; meshes, overlays, exports and report.html in the folder `out`. Called again, it resumes.

    detections: a detections file, instead of `inputs` · refined: None refines the embedded recoverer's meshes, whose
    errors the embedded prior was fitted to, and no others · refine_params: None takes the mode that the rows allow ·
    export_params: None exports nothing. Returns what was written, by name. Raises what the stages raise.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {}
    written["detections"] = detections or detect.run(inputs, out / "people.detections.h5", detect_params, run)
    written["meshes"] = result = recover.run(
        written["detections"], out / "people.meshes.h5", recover_params, run, ckpt=ckpt
    )
    if refined is None:
        refined = not (ckpt or recover_params.model)
    if refined:
        with open_artefact(written["detections"]) as table:
            settings = refine_params or RefineParams(mode=refine.mode_of(table))
        target = out / "people.refined.meshes.h5"
        written["refined"] = result = refine.run(result, written["detections"], target, settings, run)
    viewed = view.run(result, written["detections"], out, view_params, run)
    written |= {name: value for name, value in viewed.items() if name != "folder"}
    if export_params is not None:
        # Exports are not artefacts: they are written anew each time.
        exported = export.run(result, out / "models", export_params, dataclasses.replace(run, force=True))
        written["models"] = exported["out"]
    return written


def detect_in_memory(inputs: Sequence[str | Path], run: RunOptions = RunOptions()) -> Artefact:
    """The detections of images, without a file."""
    detections = detect.run(inputs, None, run=dataclasses.replace(run, shard=(0, 1), batch_size=None, strict=False))
    assert isinstance(detections, Artefact)
    return detections


def open_dataset(
    name: str, data: Path | None = None, run: RunOptions = RunOptions(), *, partial: bool = False
) -> Dataset:
    """The data set of that name, or of a *.detections.h5 that `hmr synth` wrote.

    data: the folder of a licensed data set, or one of its annotation files; a synthetic set is rendered into the cache
    on first use. partial: accept a licensed set that is incomplete; its scores are marked.
    Raises UsageError for an unknown name, AssetError for files that are missing or damaged, or rows that are missing.
    """
    if name.endswith(".h5"):
        return SynthData(name)
    if name in SETS:
        return SynthData(_synthetic_set(name, run))
    if name not in LAYOUTS:
        choices = ", ".join([*SETS, *LAYOUTS])
        raise UsageError(f"no data set {name!r}", f"choose one of {choices}, or give a file of hmr synth")
    return open_licensed(name, data, partial)


def recover_dataset(
    dataset: Dataset, run: RunOptions = RunOptions(), *, ckpt: Path | None = None, refined: bool = False
) -> Artefact:
    """The meshes of a data set's people in memory, refined on request.

    Raises UsageError where the embedded recoverer's body is not the truth's.
    """
    if ckpt is None and dataset.topology == "smpl":
        raise UsageError(
            f"the embedded recoverer poses the free body, the truth of {dataset.name} is SMPL's",
            "--ckpt or --meshes of SMPL bodies; without licensed files: hmr eval synth-oc",
        )
    whole = dataclasses.replace(run, shard=(0, 1), strict=False)
    meshes = recover.run(dataset.detections, None, RecoverParams(), whole, ckpt=ckpt)
    if refined:
        params = RefineParams(mode=refine.mode_of(dataset.detections))
        meshes = refine.run(meshes, dataset.detections, None, params, whole)
    assert isinstance(meshes, Artefact)  # out None: in memory
    return meshes


def merge(out: Path) -> Path:
    """Join the parts that the shards of `out` have written. Raises InputError without parts, ArtefactError."""
    return runner.merge(out, FINISHERS)


def _synthetic_set(name: str, run: RunOptions) -> Path:
    """A whole synthetic set in the cache, rendered now if it is not there (minutes on two cores)."""
    run = dataclasses.replace(run, shard=(0, 1), batch_size=None, force=False, fresh=False, dry_run=False)
    folder = cache_dir() / f"synth-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    return synth.run(name, folder / f"{name}.detections.h5", SynthParams(), run)
