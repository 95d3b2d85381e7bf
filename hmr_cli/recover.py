"""`hmr recover`: detections (+ heatmaps, features), or images, -> meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmr_cli._flags import stage_command
from stages.errors import UsageError
from stages.params import RecoverParams

app = typer.Typer()
Inputs = Annotated[
    list[str],
    typer.Argument(help="One *.detections.h5 file; or photos, folders, video: people are detected on the way."),
]
Ckpt = Annotated[Optional[Path], typer.Option(help="The recoverer's weights; without: the embedded recoverer.")]
Heatmaps = Annotated[Optional[Path], typer.Option(help="*.heatmaps.h5 of the same people, instead of computing them.")]
Features = Annotated[Optional[Path], typer.Option(help="*.features.h5 of the same people: no image is opened.")]
Root = Annotated[Optional[Path], typer.Option(help="The folder with the images, if it moved.")]


@stage_command(app, RecoverParams)
def recover(
    inputs: Inputs,
    *,
    out: Path,
    params: RecoverParams,
    run: Any,
    ckpt: Ckpt = None,
    heatmaps: Heatmaps = None,
    features: Features = None,
    root: Root = None,
) -> Any:
    """A body for every person: SMPL parameters, or vertices where the network predicts them.

    Examples:

        hmr recover photos.detections.h5 -o photos.meshes.h5

        hmr recover photo.jpg -o photo.meshes.h5

        hmr recover photos.detections.h5 --ckpt dpmesh.safetensors --heatmaps photos.heatmaps.h5 -o photos.meshes.h5

        hmr recover photos.detections.h5 --model mypackage.mymodule:MyRecoverer -o photos.meshes.h5
    """
    from stages import recover as stage

    table: Any = Path(inputs[0])
    if len(inputs) > 1 or table.suffix != ".h5":
        if unusable := [name for name, value in (("heatmaps", heatmaps), ("features", features)) if value]:
            raise UsageError(
                f"--{unusable[0]} goes with a detections file", "hmr detect PHOTOS -o photos.detections.h5"
            )
        from stages.pipeline import detect_in_memory

        table = detect_in_memory(inputs, run)
    return stage.run(table, out, params, run, ckpt=ckpt, heatmaps=heatmaps, features=features, root=root)
