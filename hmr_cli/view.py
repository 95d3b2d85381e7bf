"""`hmr view`: overlays, side views and an HTML report, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import ViewParams

app = typer.Typer()
Table = Annotated[Path, typer.Argument(help="A *.meshes.h5 or *.detections.h5 file.", show_default=False)]
Detections = Annotated[
    Path | None, typer.Option(help="The detections of the meshes: keypoints, scores, how well they fit.")
]
Attention = Annotated[
    Path | None, typer.Option(help="A DPMesh checkpoint: draw where each joint acts in the crop, nothing else.")
]


@stage_command(app, ViewParams)
def view(
    table: Table, *, detections: Detections = None, attention: Attention = None, out: Path, params: ViewParams, run: Any
) -> Any:
    """Overlays, side views, turning views, videos and an HTML report. Needs no display.

    -o names a folder, or a file that ends in .html for the report alone. A video becomes an overlay video.

    Examples:

        hmr view photos.meshes.h5 --detections photos.detections.h5 -o pictures/

        hmr view photos.meshes.h5 -o pictures/ --side --turn

        hmr view photos.detections.h5 -o keypoints.html --style skeleton

        hmr view talk.meshes.h5 -o talk/ --opacity 0.8

        hmr view photos.detections.h5 --attention dpmesh.safetensors -o attention/
    """
    if attention is not None:
        from stages.visualization import attention as maps

        files = maps.run(detections or table, out, attention, root=params.root or None, run=run)
        return {"folder": str(out), "pictures": len(files)}
    from stages import view as stage

    written = stage.run_files(table, detections, out, params, run)
    return {key: len(value) if isinstance(value, list) else value for key, value in written.items()}
