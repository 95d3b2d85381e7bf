"""`hmr eval`: errors against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli.options import stage_command
from stages.evaluate import Params

app = typer.Typer()


@stage_command(app, Params)
def evaluate(
    dataset: Annotated[str, typer.Argument(help="A data set's name, or a *.detections.h5 made by hmr synth.")],
    *,
    meshes: Annotated[Path, typer.Option(help="The *.meshes.h5 to score.", show_default=False)],
    out: Path,
    params: Params,
    run: Any,
) -> Any:
    """MPJPE, PA-MPJPE, MPVE and more, with the protocol in one line.

    Examples:

        hmr eval bench/synth-oc.detections.h5 --meshes people.meshes.h5 -o people.scores.h5
    """
    from stages import evaluate as stage
    from stages.datasets.synth import SynthData

    out = stage.run(meshes, SynthData(dataset), out, params, run)
    return {"out": out, **stage.mean_rows(out)}
