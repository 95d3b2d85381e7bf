"""`hmr doctor`: what works on this machine."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from hmr_cli.options import Json, Quiet
from hmr_cli.report import print_result

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """What works on this machine, what is missing, and the mend for each.

    Examples:

        hmr doctor

        hmr doctor --json | jq '.checks[] | select(.ready | not)'
    """
    from stages.doctor import run

    checks = run()
    main_job = all(check.ready for check in checks if check.required)
    if as_json:
        result: dict[str, Any] = {"ready": main_job, "checks": [dataclasses.asdict(check) for check in checks]}
        print_result(result, as_json=True)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "what", "found", "needed for", "mend", box=None)
    for check in checks:
        mark = "[green]ok[/]" if check.ready else "[red]--[/]" if check.required else "[yellow]--[/]"
        table.add_row(mark, *map(escape, (check.name, check.found, check.needed_for, check.mend)))
    console = Console(highlight=False)
    console.print(table)
    if not quiet:
        console.print("hmr run works here." if main_job else "hmr run does not work here yet: mend the red lines.")
