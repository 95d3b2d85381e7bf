"""`hmr track`: detections -> detections with tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import TrackParams

app = typer.Typer()
Detections = Annotated[Path, typer.Argument(help="A *.detections.h5 file.", show_default=False)]


@stage_command(app, TrackParams)
def track(detections: Detections, *, out: Path, params: TrackParams, run: Any) -> Any:
    """Who is the same person over time, for detections of a video or of numbered images that do not say.

    `hmr detect` and `hmr import` do this by themselves for videos. Rows stay as they are, and in their order.

    Examples:

        hmr track walk.detections.h5 -o tracked.detections.h5

        hmr track frames.detections.h5 --fps 30 -o tracked.detections.h5

        hmr track walk.detections.h5 --replace --max-gap 1 -o tracked.detections.h5

        hmr track take.detections.h5 --views --cameras rig.json -o people.detections.h5
    """
    from stages import track as stage

    return stage.run(detections, out, params, run)
