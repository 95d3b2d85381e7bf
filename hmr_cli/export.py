"""`hmr export`: bodies for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import ExportParams

app = typer.Typer()


@stage_command(app, ExportParams)
def export(
    meshes: Annotated[Path, typer.Argument(help="A *.meshes.h5 file.", show_default=False)],
    *,
    out: Path,
    params: ExportParams,
    run: Any,
) -> Any:
    """npz (AMASS layout), OBJ, and GLB with a skinned skeleton per person, animated for videos.

    -o names a folder, or one file ending in .glb, .npz or .obj where one file comes of it. GLB opens in Blender: y up,
    metres, the photo's camera at the origin. npz: z up, x right, y away from the camera; see docs/export.md.

    Examples:

        hmr export photos.meshes.h5 -o models/ --format glb,npz

        hmr export photo.meshes.h5 -o photo.glb

        hmr export walk.meshes.h5 -o walk.glb --bind t
    """
    from stages import export as stage

    written = stage.run(meshes, out, params, run)
    return {key: len(value) if isinstance(value, list) else value for key, value in written.items() if value != ""}
