"""`hmr merge`: join the parts that shards have written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmr_cli._flags import Json
from hmr_cli._output import print_result

app = typer.Typer()


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="The target that the shards were given with -o.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Join the parts that shards have written into the one artefact.

    Examples:

        hmr recover people.detections.h5 -o people.meshes.h5 --shard 0/2

        hmr recover people.detections.h5 -o people.meshes.h5 --shard 1/2

        hmr merge people.meshes.h5
    """
    from stages.pipeline import merge

    print_result(merge(out), as_json=as_json)
