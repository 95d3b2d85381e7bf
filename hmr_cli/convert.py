"""`hmr convert`: a published checkpoint to a compact safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmr_cli._flags import stage_command
from stages.params import ConvertParams

app = typer.Typer()


@stage_command(app, ConvertParams)
def convert(
    source: Annotated[Path, typer.Argument(help="The published file (.pth.tar, .ckpt, .pt, .safetensors).")],
    *,
    out: Path,
    params: ConvertParams,
    force: Annotated[bool, typer.Option("--force", help="Replace a file made otherwise.")] = False,
) -> Path:
    """A published checkpoint to a compact safetensors file that loads several times faster.

    Tensors that are not used are left out, and so are the SMPL arrays that published DPMesh files carry: they are under
    SMPL's licence (give a body model by --body afterwards). The header notes licence, source and its SHA-256.

    Examples:

        hmr convert 3dpw-pc_best_ckpt.pth.tar -o dpmesh.safetensors

        hmr convert 3dpw-pc_best_ckpt.pth.tar -o dpmesh.safetensors --dtype float16

        hmr convert 3dpw-pc_best_ckpt.pth.tar -o trainable.safetensors --no-fold
    """
    from stages import convert as stage

    return stage.convert(source, out, params, force=force)
