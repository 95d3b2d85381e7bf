"""`hmr features`: detections (+ heatmaps, latents) -> features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import FeaturesParams

app = typer.Typer()
Detections = Annotated[Path, typer.Argument(help="A *.detections.h5 file.", show_default=False)]
Heatmaps = Annotated[Path | None, typer.Argument(help="Its *.heatmaps.h5; computed on the way without.")]
Ckpt = Annotated[Path | None, typer.Option(help="The extractor's weights (.pth.tar, .ckpt, .safetensors).")]
Latents = Annotated[Path | None, typer.Option(help="Features made by --model dpmesh-latents: skips half the work.")]
Root = Annotated[Path | None, typer.Option(help="The folder with the images, if it moved.")]


@stage_command(app, FeaturesParams)
def features(
    detections: Detections,
    heatmaps: Heatmaps = None,
    *,
    out: Path,
    params: FeaturesParams,
    run: Any,
    ckpt: Ckpt = None,
    latents: Latents = None,
    root: Root = None,
) -> Any:
    """DPMesh's diffusion features, or the image vector that ScoreHMR is conditioned on.

    Examples:

        hmr features photos.detections.h5 photos.heatmaps.h5 --ckpt 3dpw-pc_best_ckpt.pth.tar -o photos.features.h5

        hmr features photos.detections.h5 --ckpt dpmesh.safetensors --model dpmesh-latents -o photos.latents.h5

        hmr features photos.detections.h5 --ckpt dpmesh2.safetensors --latents photos.latents.h5 -o again.features.h5
    """
    from stages import features as stage

    return stage.run(detections, out, params, run, ckpt=ckpt, heatmaps=heatmaps, latents=latents, root=root)
