"""`hmr run`: the whole chain in one process. The composition is in stages/pipeline.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmr_cli._flags import stage_command
from stages.errors import UsageError
from stages.params import DetectParams, ExportParams, RecoverParams, ViewParams

app = typer.Typer()
Pictures = Annotated[
    Optional[list[str]], typer.Argument(help="Photos, folders, globs, videos, or - to read names from stdin.")
]
Detections = Annotated[Optional[Path], typer.Option(help="People that are detected already; then nothing is detected.")]
Detector = Annotated[str, typer.Option(help="As in hmr detect.")]
Focal = Annotated[Optional[float], typer.Option(help="Focal length of all images in px; default: EXIF or a guess.")]
Model = Annotated[Optional[str], typer.Option(help="As in hmr recover.")]
Ckpt = Annotated[Optional[Path], typer.Option(help="The recoverer's weights; without: the embedded recoverer.")]
# The embedded prior knows how the embedded recoverer errs; other estimates are left as they are unless asked for.
Refine = Annotated[
    Optional[bool], typer.Option(help="Refine with the pose prior. \\[default: what the embedded recoverer gives]")
]
Turn = Annotated[bool, typer.Option("--turn", help="Also short videos that walk round the people.")]
Formats = Annotated[str, typer.Option(help="What to export: glb, npz, obj, several with commas, or none.")]


@stage_command(app)
def run_chain(
    inputs: Pictures = None,
    *,
    detections: Detections = None,
    detector: Detector = "auto",
    focal: Focal = None,
    model: Model = None,
    ckpt: Ckpt = None,
    refine: Refine = None,
    turn: Turn = False,
    export: Formats = "glb",
    out: Path,
    run: Any,
) -> dict[str, Any]:
    """Photos or video in; meshes, overlays, GLB and a report out. -o names the folder to write.

    The same command again resumes; stages that are up to date are not computed again. After an update of hmr, or with
    other settings, --force redoes the folder.

    Examples:

        hmr run photo.jpg -o out/

        hmr run match.mp4 -o match/ --detector vitpose --device cuda

        hmr run photos/ -o out/ --ckpt dpmesh.safetensors --refine

        hmr run --detections imported.detections.h5 -o out/ --export glb,npz
    """
    if run.shard != (0, 1):
        raise UsageError("hmr run is one process", "shard the stages: hmr detect --shard 0/2 ... , hmr merge")
    if (detections is None) == (not inputs):
        raise UsageError("give images, or --detections", "hmr run photo.jpg -o out/")
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file, a folder is needed")
    from stages.pipeline import run_chain as chain

    return chain(
        inputs or [],
        out,
        run,
        detections=detections,
        ckpt=ckpt,
        refined=refine,
        detect_params=DetectParams(detector=detector, focal=focal),
        recover_params=RecoverParams(model=model),
        view_params=ViewParams(turn=turn, side=True),
        export_params=None if export == "none" else ExportParams(format=export),
    )
