"""`hmr assets`: fetch and list the files that hmr can use but does not carry."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hmr_cli.options import Json, Quiet
from hmr_cli.report import print_result

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="See hmr assets list.", show_default=False)]
Again = Annotated[bool, typer.Option("--again", help="Fetch it anew.")]


@app.callback()
def assets() -> None:
    """The files that hmr can use but does not carry: detectors' weights.

    Examples:

        hmr assets list

        hmr assets get blazepose
    """


@app.command(name="list")
def list_(as_json: Json = False, quiet: Quiet = False) -> None:
    """What there is, whether it is here, its licence and how to get it.

    Examples:

        hmr assets list

        hmr assets list --json | jq '.assets[] | select(.ready | not)'
    """
    from stages import assets

    table = [
        {
            "name": name,
            "ready": ready,
            "where": where,
            "used_by": assets.ASSETS[name].used_by,
            "licence": assets.ASSETS[name].licence,
            "source": assets.ASSETS[name].source,
            "mend": "" if ready else mend,
        }
        for name, ready, where, mend in assets.status()
    ]
    if as_json:
        print_result({"cache": str(assets.cache_dir()), "assets": table}, as_json=True)
        return
    for row in table:
        print(f"{row['name']}: {'ready' if row['ready'] else 'missing'}, {row['licence']}, for {row['used_by']}")
        print(f"  {row['where']}" if row["ready"] else f"  {row['mend']}")


@app.command()
def get(name: Name, again: Again = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Fetch an asset into the cache, check it, print its folder. The only command that downloads a detector by itself.

    Examples:

        hmr assets get blazepose

        HMR_CACHE=/data/hmr hmr assets get blazepose
    """
    from stages import assets

    folder: Any = assets.get(name, again=again)
    print_result({"name": name, "out": str(folder)} if as_json else folder, as_json=as_json)
