"""`hmr eval`: errors against ground truth; `hmr eval compare`, `occlusion-map` and `table` beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from hmr_cli._flags import stage_command
from stages.errors import UsageError
from stages.params import EvaluateParams, RecoverParams


class ScoreByDefault(TyperGroup):
    """`hmr eval NAME` is `hmr eval score NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["score", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=ScoreByDefault, no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A data set, or a *.detections.h5 made by hmr synth.", show_default=False)]
Meshes = Annotated[Optional[Path], typer.Option(help="The *.meshes.h5 to score; without: recover now.")]
Ckpt = Annotated[Optional[Path], typer.Option(help="The recoverer's weights; without: the embedded recoverer.")]
Refine = Annotated[
    bool, typer.Option("--refine", help="Refine with the embedded pose prior before scoring: views, video or frame.")
]
Data = Annotated[Optional[Path], typer.Option(help="The folder of a licensed data set, or its annotation file.")]
Partial = Annotated[bool, typer.Option("--partial", help="Score a data set that is not whole; the scores say so.")]
Plot = Annotated[Optional[Path], typer.Option(help="Draw errors by joint and by occlusion into this .svg file.")]
Style = Annotated[str, typer.Option("--table", help="markdown or latex.")]


@app.callback()
def evaluate() -> None:
    """Errors against ground truth: MPJPE, PA-MPJPE, MPVE and more. `hmr eval NAME` is short for `hmr eval score NAME`.

    Examples:

        hmr eval synth-oc --refine

        hmr eval 3dpw-pc --data 3DPW/ --ckpt dpmesh.safetensors -o dpmesh.scores.h5

        hmr eval compare plain.scores.h5 refined.scores.h5
    """


@stage_command(app, EvaluateParams, name="score")
def score(
    name: Name,
    *,
    meshes: Meshes = None,
    ckpt: Ckpt = None,
    refine: Refine = False,
    data: Data = None,
    partial: Partial = False,
    style: Style = "markdown",
    plot: Plot = None,
    out: Path | None = None,
    params: EvaluateParams,
    run: Any,
) -> Any:
    """MPJPE, PA-MPJPE, MPVE and more, the papers' rows beside ours, the protocol in one line.

    Examples:

        hmr eval synth-oc

        hmr eval synth-oc --refine --table latex -o refined.scores.h5

        hmr eval bench/synth-pc.detections.h5 --meshes people.meshes.h5

        hmr eval 3dpw-pc --data 3DPW/ --ckpt dpmesh.safetensors --json

        hmr eval synth-oc --meshes people.meshes.h5 --plot errors.svg
    """
    from stages import evaluate as stage
    from stages.artefacts.hdf5 import open_artefact
    from stages.datasets.protocols import protocol_of
    from stages.evaluation import tables
    from stages.pipeline import open_dataset, recover_dataset

    check_style(style)
    check_target(plot, ".svg")
    if params.protocol:
        protocol_of(params.protocol)
    if meshes and (ckpt or refine):
        raise UsageError(
            f"--meshes is scored as it is; {'--ckpt' if ckpt else '--refine'} has nothing to do",
            "drop one, or make the meshes with hmr recover and hmr refine",
        )
    if meshes:
        open_artefact(meshes, "meshes").close()
    if run.shard[1] > 1 and out is None:
        raise UsageError("shards need a file to meet in", "give -o")
    if run.dry_run:
        steps = ["score"] if meshes else ["recover", *["refine"] * refine, "score"]
        run.report.note(f"would {' and '.join(steps)} the rows of {name}" + (f" into {out}" if out else ""))
        return out
    dataset = open_dataset(name, data, run, partial=partial)
    dataset.check(protocol_of(params.protocol or dataset.protocol))
    table = meshes or recover_dataset(dataset, run, ckpt=ckpt, refined=refine)
    scores = stage.run(table, dataset, out, params, run)
    if isinstance(scores, Path) and not scores.is_file():
        return scores  # the parts of one shard
    summary = stage.mean_rows(scores)
    row = {"method": _name(meshes or ckpt, dataset, refine), **summary}
    published = tables.published_rows(name)
    source = f"\npublished rows: {tables.source(name)}" if published else ""
    text = f"{tables.table([*published, row], style)}\n\n{counts(summary)}\n{summary['line']}{source}"
    if plot is not None:
        from stages.evaluation.plots import plot as draw

        plot.write_text(draw(scores))
    return Scores(row | {"published": published, "out": out, "plot": plot}, text)


def check_style(style: str) -> None:
    """Raise UsageError for an unknown table style."""
    if style not in ("markdown", "latex"):
        raise UsageError(f"--table {style}: no such style", "choose markdown or latex")


def check_target(path: Path | None, *kinds: str) -> None:
    """Raise UsageError for an image that could not be written."""
    if path is not None and path.suffix.lower() not in kinds:
        raise UsageError(f"{path}: no such kind of image", f"choose {' or '.join(kinds)}")
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}", "make it, or choose another folder")


def check_whole(run: Any) -> None:
    """Raise UsageError for --shard where nothing can be divided."""
    if run.shard[1] > 1:
        raise UsageError("this is made in one piece, without --shard", "hmr eval NAME -o FILE --shard I/N shares rows")


@stage_command(app, name="rows")
def rows(
    name: Annotated[str, typer.Argument(help="A licensed data set.", show_default=False)],
    *,
    data: Data = None,
    partial: Partial = False,
    out: Path,
    run: Any,
) -> Any:
    """The people of a data set as detections (boxes, the papers' 2D input, cameras), for stages one by one.

    Examples:

        hmr eval rows 3dpw-oc --data 3DPW/ -o 3dpw-oc.detections.h5
    """
    from stages.artefacts.kinds import required_columns
    from stages.datasets import LAYOUTS
    from stages.engine.job import Job
    from stages.engine.runner import run_whole
    from stages.pipeline import open_dataset

    if name not in LAYOUTS:
        raise UsageError(f"{name!r} is no licensed data set", "the synthetic sets: hmr synth NAME -o FILE")
    table = open_dataset(name, data, run, partial=partial).detections
    job = Job(
        stage="dataset",
        kind="detections",
        params=table.attrs["params"] | {"content": table.fingerprint},
        inputs={},
        columns=required_columns("detections"),
        group_attrs={"keypoints": table.group_attrs("keypoints")},
        attrs={"root": os.path.relpath(table.attrs["root"], out.absolute().parent)},
    )
    return run_whole(job, lambda: table, out, run)


class Scores(dict[str, Any]):
    """One object with --json, a table for people."""

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self.text = text

    def __str__(self) -> str:
        return self.text


def _name(source: Path | None, dataset: Any, refine: bool) -> str:
    from stages.refine import mode_of

    how = f" + refine, {mode_of(dataset.detections)}" if refine else ""
    return (source.name.split(".")[0] if source else "embedded") + how


def counts(summary: dict[str, Any]) -> str:
    """How many rows were scored and how many were not."""
    left = summary["rows"] - summary["scored"]
    return f"{summary['dataset']}: {summary['scored']} of {summary['rows']} rows scored" + (
        f", {left} left out ({summary['failed']} failed before)" if left else ""
    )


@stage_command(app, name="compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A *.scores.h5 file.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, of the same rows.", show_default=False)],
) -> Any:
    """Is the second better than the first? The difference of the means with a paired bootstrap interval (95 %).

    Examples:

        hmr eval compare plain.scores.h5 refined.scores.h5
    """
    from stages.evaluation.compare import compare as stage
    from stages.evaluation.tables import TITLES

    differences = stage(first, second)
    lines = [
        f"{TITLES[name]}: {row['a']:.2f} -> {row['b']:.2f}, {row['difference']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {row['rows']} rows"
        for name, row in differences.items()
    ]
    return Scores(differences, "\n".join(lines))


@stage_command(app, name="table")
def table(
    *,
    sets: Annotated[str, typer.Option(help="Which sets, or files of hmr synth, with commas; empty: all six.")] = "",
    ckpt: Ckpt = None,
    style: Style = "markdown",
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("tables"),
    run: Any,
) -> Any:
    """Recover, then refine, on every synthetic set: both rows of the table for each.

    Examples:

        hmr eval table -o tables/

        hmr eval table --sets synth-oc,synth-pc --table latex
    """
    from stages import evaluate as stage
    from stages.evaluation import tables
    from stages.pipeline import open_dataset, recover_dataset
    from stages.synthetic.sets import SETS

    check_style(style)
    check_whole(run)
    names = sets.split(",") if sets else list(SETS)
    for name in names:
        if name not in SETS and not Path(name).is_file():
            raise UsageError(f"no synthetic set {name!r}", f"choose of {', '.join(SETS)}, or files of hmr synth")
    if run.dry_run:
        run.report.note(f"would recover, refine and score {', '.join(names)} into {out}")
        return out
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        dataset = open_dataset(name, None, run)
        for refine in (False, True):
            stem = Path(name).name.removesuffix(".detections.h5")
            method = f"{stem}, {_name(ckpt, dataset, refine)}"
            target = out / f"{stem}{'-refined' if refine else ''}.scores.h5"
            meshes = recover_dataset(dataset, run, ckpt=ckpt, refined=refine)
            rows.append(
                {"method": method, **stage.mean_rows(stage.run(meshes, dataset, target, EvaluateParams(), run))}
            )
    text = tables.table(rows, style)
    (out / f"table.{'tex' if style == 'latex' else 'md'}").write_text(f"{text}\n")
    return Scores({"rows": rows, "out": out}, text)


@stage_command(app, name="occlusion-map")
def occlusion_map(
    name: Name,
    *,
    ckpt: Ckpt = None,
    data: Data = None,
    grid: Annotated[int, typer.Option(min=1, help="Positions along each side of the box.")] = 7,
    partial: Partial = False,
    size: Annotated[
        float, typer.Option(min=0, max=2, help="Side of the square, share of the box's longer side.")
    ] = 0.3,
    limit: Annotated[int, typer.Option(min=1, help="How many people, spread over the set.")] = 64,
    out: Annotated[Path, typer.Option("--out", "-o", help="The image to write; the numbers go beside it as .npz.")],
    run: Any,
) -> Any:
    """Where does hiding a part of the person hurt? A grey square slides over the box (PARE, PostoMETRO figure 4).

    Examples:

        hmr eval occlusion-map synth -o map.png

        hmr eval occlusion-map 3dpw-oc --data 3DPW/ --ckpt dpmesh.safetensors --limit 200 -o map.png
    """
    import numpy as np

    from stages.engine.device import resolve_device
    from stages.evaluation.occlusion_map import occlusion_map as stage
    from stages.evaluation.occlusion_map import to_image
    from stages.loaders.people import PersonLoader
    from stages.media.images import write_image
    from stages.pipeline import open_dataset
    from stages.recover import load
    from stages.smpl.body import load_body

    check_target(out, ".png", ".jpg", ".webp")
    check_whole(run)
    if run.dry_run:
        run.report.note(f"would hide parts of {limit} people of {name} at {grid} x {grid} positions, into {out}")
        return out
    dataset = open_dataset(name, data, run, partial=partial)
    model, _ = load(RecoverParams(), ckpt, resolve_device(run.device))
    people = PersonLoader(dataset.detections, uses=model.uses, needs_images=model.needs_images)
    rows = np.unique(np.linspace(0, dataset.detections.n_rows - 1, limit).astype(int))
    attrs = model.group_attrs.get("smpl") or model.group_attrs.get("vertices") or {}
    body = load_body(str(attrs.get("body_model", "embedded")).split(" ")[0])
    result = stage(model, people, dataset, rows, grid=grid, size=size, body=body)
    write_image(out, to_image(result))
    np.savez(out.with_suffix(".npz"), errors=result.errors, plain=result.plain, joints=np.array(result.joints))
    worst = np.nan_to_num(result.errors - result.plain[:, None, None]).mean((1, 2))
    return {
        "out": out,
        "rows": result.rows,
        "hurt_most": result.joints[int(worst.argmax())],
        "by_mm": float(worst.max()),
    }
