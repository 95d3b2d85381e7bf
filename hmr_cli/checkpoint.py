"""`hmr checkpoint`: what a checkpoint file contains and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command

app = typer.Typer()


@stage_command(app)
def checkpoint(path: Annotated[Path, typer.Argument(help="A weights file.", show_default=False)]) -> dict[str, Any]:
    """What a checkpoint file contains: its system, its parts, its licence, and why it could not be used.

    Nothing in the file is run. Exit code 4 when the file is damaged or refused; a whole file of an unknown or unfitting
    network is described, with the reason under "problem".

    Examples:

        hmr checkpoint 3dpw-pc_best_ckpt.pth.tar

        hmr checkpoint dpmesh.safetensors --json
    """
    from stages.convert import describe

    return describe(path)
