"""`hmr assets`: fetch and list the files that hmr can use but does not carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmr_cli._flags import Json, Quiet
from hmr_cli._output import make_report, print_result

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="See hmr assets list.", show_default=False)]
Again = Annotated[bool, typer.Option("--again", help="Fetch it anew.")]
From = Annotated[Optional[Path], typer.Option("--from", help="A folder that has the files, instead of the network.")]


@app.callback()
def cache() -> None:
    """The files that hmr can use but does not carry: detectors' weights.

    Examples:

        hmr assets list

        hmr assets get vitpose
    """


@app.command(name="list")
def list_(as_json: Json = False, quiet: Quiet = False) -> None:
    """What there is, whether it is here, its licence and how to get it.

    Examples:

        hmr assets list

        hmr assets list --json | jq '.assets[] | select(.ready | not)'
    """
    from stages.files import cache
    from stages.files.folders import cache_dir

    table = [
        {
            "name": name,
            "ready": ready,
            "where": where,
            "used_by": cache.ASSETS[name].used_by,
            "licence": cache.ASSETS[name].licence,
            "source": cache.ASSETS[name].source,
            "hint": "" if ready else hint,
        }
        for name, ready, where, hint in cache.status()
    ]
    if as_json:
        print_result({"cache": str(cache_dir()), "assets": table}, as_json=True)
        return
    for row in table:
        print(f"{row['name']}: {'ready' if row['ready'] else 'missing'}, {row['licence']}, for {row['used_by']}")
        print(f"  {row['where']}" if row["ready"] else f"  {row['hint']}")


@app.command()
def get(name: Name, again: Again = False, source: From = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Fetch an asset into the cache, check it, print its folder.

    Proxies are taken from the environment (HTTPS_PROXY). Files whose SHA-256 is not known to hmr are opened and tried
    out; fetched.json beside them says where they came from.

    Examples:

        hmr assets get vitpose

        hmr assets get rtmpose --from /media/stick/rtmpose

        HMR_CACHE=/data/hmr hmr assets get vitpose
    """
    from stages.files import cache
    from stages.models.detectors.choice import try_out

    with make_report(quiet=quiet) as report:
        folder: Any = cache.get(
            name,
            again=again,
            source=source,
            check=lambda work: try_out(name, work),
            tell=lambda what: report.note(f"fetching {what}"),
        )
    print_result({"name": name, "out": str(folder)} if as_json else folder, as_json=as_json)
