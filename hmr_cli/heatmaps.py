"""`hmr heatmaps`: detections -> heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import HeatmapsParams

app = typer.Typer()
Detections = Annotated[Path, typer.Argument(help="A *.detections.h5 file.", show_default=False)]


@stage_command(app, HeatmapsParams)
def heatmaps(detections: Detections, *, out: Path, params: HeatmapsParams, run: Any) -> Any:
    """One stack of Gaussian keypoint heatmaps per person, as DPMesh's ControlNet wants them.

    Examples:

        hmr heatmaps photos.detections.h5 -o photos.heatmaps.h5

        hmr heatmaps photos.detections.h5 -o photos.heatmaps.h5 --shard 0/2

        hmr heatmaps photos.detections.h5 -o wide.heatmaps.h5 --joint-set coco17 --size 64 --sigma 3
    """
    from stages import heatmaps as stage

    return stage.run(detections, out, params, run)
