"""`hmr doctor`: what works on this machine."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from hmr_cli._flags import Json, Quiet
from hmr_cli._output import print_result

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """What works on this machine, what is missing, and how to fix it.

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
    width = max(len(check.name) for check in checks)
    for check in checks:  # plain lines: a table would cut paths
        mark = "ok" if check.ready else "!!" if check.required else "--"
        print(f"{mark} {check.name:{width}}  {check.found} (for {check.needed_for})")
        if check.hint:
            print(f"   {'':{width}}  -> {check.hint}")
    if not quiet:
        print("hmr run works here." if main_job else "hmr run does not work here yet: fix the lines with !!")
