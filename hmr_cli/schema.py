"""`hmr schema`: the documented columns of each kind of artefact."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hmr_cli._flags import Json
from hmr_cli._output import print_result

app = typer.Typer()


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="detections, heatmaps, features, meshes or scores.")] = "",
    as_json: Json = False,
) -> None:
    """The documented columns of each kind of artefact: name, type, shape, unit, meaning.

    Examples:

        hmr schema

        hmr schema detections

        hmr schema meshes --json | jq -r '.columns[].name'
    """
    from stages.artefacts.kinds import KINDS, SCHEMA
    from stages.artefacts.schema import describe

    if not kind:
        kinds: dict[str, Any] = {name: each.meaning for name, each in KINDS.items()}
        print_result({"schema": SCHEMA, "kinds": kinds} if as_json else kinds, as_json=as_json)
        return
    table = describe(kind)
    if as_json:
        print_result(table, as_json=True)
        return
    lines = [f"{table['kind']}, schema {table['schema']}: {table['meaning']}", "", "columns"]
    width = max(len(c["name"]) for c in table["columns"])
    for c in table["columns"]:
        shape = "(" + ", ".join(map(str, c["shape"])) + ")"
        unit = f" [{c['unit']}]" if c["unit"] else ""
        optional = " (optional)" if c["optional"] else ""
        lines.append(f"  {c['name']:{width}}  {c['dtype']:5}  {shape:14}  {c['meaning']}{unit}{optional}")
    lines += ["", "attributes of groups", *(f"  /{g}.{n}: {m}" for g, n, m in table["group_attrs"])]
    lines += ["", "attributes of the file", *(f"  {n}: {m}" for n, m in table["attrs"].items())]
    print_result("\n".join(lines), as_json=False)
