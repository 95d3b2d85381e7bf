"""`hmr refine`: meshes + evidence -> better meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmr_cli._flags import stage_command
from stages.params import RefineParams

app = typer.Typer()
Meshes = Annotated[Path, typer.Argument(help="A *.meshes.h5 file with SMPL parameters.", show_default=False)]
Detections = Annotated[Path, typer.Option(help="The *.detections.h5 of the same rows.", show_default=False)]
Features = Annotated[Optional[Path], typer.Option(help="Image features, for published weights (hmr features).")]
Ckpt = Annotated[Optional[Path], typer.Option(help="ScoreHMR's model-100.pt or a pose prior; default: embedded.")]


@stage_command(app, RefineParams)
def refine(
    meshes: Meshes,
    *,
    detections: Detections,
    features: Features = None,
    ckpt: Ckpt = None,
    out: Path,
    params: RefineParams,
    run: Any,
) -> Any:
    """Pull every body onto its keypoints, its neighbours in time or the other views, and keep it plausible (ScoreHMR).

    Rows with too little evidence stay as they are and are marked in extra/refined.

    Examples:

        hmr refine people.meshes.h5 --detections people.detections.h5 -o refined.meshes.h5

        hmr refine take.meshes.h5 --detections take.detections.h5 --mode video --smooth 50 -o smooth.meshes.h5

        hmr refine rig.meshes.h5 --detections rig.detections.h5 --mode views --cameras rig.json -o better.meshes.h5

        hmr refine a.meshes.h5 --detections a.detections.h5 --features a.pare.h5 --ckpt model-100.pt -o b.meshes.h5
    """
    from stages import refine as stage

    return stage.run(meshes, detections, out, params, run, features=features, ckpt=ckpt)
