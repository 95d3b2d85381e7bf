"""`hmr info`: what an artefact holds and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import Json
from hmr_cli._output import print_result

app = typer.Typer()


@app.command()
def info(file: Annotated[Path, typer.Argument(help="An artefact.", show_default=False)], as_json: Json = False) -> None:
    """What an artefact holds and how it was made: counts, columns, settings, inputs, model, failed rows.

    Examples:

        hmr info people.meshes.h5

        hmr info people.meshes.h5 --json | jq .params
    """
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.validate import summary

    with open_artefact(file) as artefact:
        facts = summary(artefact)
    print_result(facts if as_json else text(facts), as_json=as_json)


def text(facts: dict[str, Any]) -> str:
    """`facts` for people: one fact per line."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {k}: {v}" for k, v in value.items())]
        elif isinstance(value, list):
            lines += [f"{key}:", *(f"  {v}" for v in value)] if value else [f"{key}: none"]
        elif value not in ("", None):
            lines.append(f"{key}: {value}")
    return "\n".join(lines)
