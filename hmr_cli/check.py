"""`hmr check`: is this artefact whole and valid?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._errors import say
from hmr_cli._flags import Json, Quiet
from hmr_cli._output import print_result

app = typer.Typer()


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Artefacts.", show_default=False)],
    same_rows: Annotated[bool, typer.Option("--same-rows", help="Also: do all have the same rows?")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is this artefact whole and valid? Reads every byte; exit code 3 and one sentence if not.

    Examples:

        hmr check people.meshes.h5

        hmr check --same-rows people.detections.h5 people.heatmaps.h5

        hmr check --json *.h5 | jq '.files[] | select(.ok | not)'
    """
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.validate import check
    from stages.engine.provenance import check_rows_agree
    from stages.errors import InputError

    results: list[dict[str, Any]] = []
    for path in files:
        try:
            with open_artefact(path) as artefact:
                check(artefact)
                results.append({"file": str(path), "ok": True, "kind": artefact.kind, "rows": artefact.n_rows})
        except InputError as error:
            results.append({"file": str(path), "ok": False, "error": error.message, "hint": error.hint})
    bad = [f for f in results if not f["ok"]]
    if same_rows and not bad:
        check_rows_agree({str(path): open_artefact(path) for path in files})
    if as_json:
        print_result({"ok": not bad, "files": results}, as_json=True)
    elif not quiet:
        for each in results:
            if each["ok"]:
                print_result(f"{each['file']}: ok, {each['rows']} rows of {each['kind']}", as_json=False)
    for each in bad:
        say(f"hmr: {each['error']}" + (f" -> {each['hint']}" if each["hint"] else ""))
    if bad:
        raise typer.Exit(InputError.exit_code)
