"""One spelling of the shared flags on every stage, and Params fields as flags.

    @stage_command(app, Params)
    def detect(inputs: Inputs, *, out: Path, params: Params, run: Run) -> Path | dict: ...

`out`, `params`, `run` and `report` are not typed on the command line: the decorator replaces `out` by -o, `params` by
one flag per field of Params (plus --params-from), `run` by --device, --batch-size, ... and hands in `report`, which
progress and messages go to. What the function returns is the result: a path is printed, a dictionary too with --json.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union

import typer

from hmr_cli._output import make_report, print_result, with_counts
from stages.errors import HmrError, InputError, UsageError
from stages.params.rules import check, setting
from stages.params.stored import from_json, members

Inputs = Annotated[
    list[str], typer.Argument(help="Photos, folders, globs, videos, or - to read names from stdin.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]

RUN_FLAGS: dict[str, tuple[Any, Any]] = {
    "device": (Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")], "auto"),
    "batch_size": (Annotated[int | None, typer.Option(help="Rows at a time; the result does not depend on it.")], None),
    "workers": (Annotated[int, typer.Option(help="Threads that read images; 0 reads in the main thread.")], 2),
    "shard": (
        Annotated[str, typer.Option(help="i/n: this process does part i (0 to n-1) of n; then `hmr merge`.")],
        "0/1",
    ),
    "fresh": (
        Annotated[bool, typer.Option("--fresh", help="Discard unfinished parts made with other settings.")],
        False,
    ),
    "force": (
        Annotated[bool, typer.Option("--force", help="Replace a finished target made with other settings.")],
        False,
    ),
    "strict": (Annotated[bool, typer.Option("--strict", help="Exit 6 when any row failed.")], False),
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")], False),
}
OUT = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)]
OPTIONAL_OUT = Annotated[Union[Path, None], typer.Option("--out", "-o", help="The file to write; none without.")]
PANEL = "Shared by every stage"


def stage_command(app: typer.Typer, params_class: type | None = None, **command: Any) -> Callable[..., Any]:
    """Register a function as the command of a stage (see the module docstring)."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        declared = inspect.signature(function, eval_str=True).parameters
        signature = [p for name, p in declared.items() if name not in ("out", "params", "run", "report")]
        if "out" in declared:
            optional = declared["out"].default is None
            signature.append(_keyword("out", OPTIONAL_OUT if optional else OUT, declared["out"].default))
        fields = dataclasses.fields(params_class) if params_class and "params" in declared else ()
        hints = typing.get_type_hints(params_class) if params_class else {}
        signature += [_keyword(f.name, _flag(f, hints[f.name]), None) for f in fields]
        if fields:
            text = "Take the settings of this artefact (or JSON file); flags win."
            source = Annotated[Path | None, typer.Option(help=text, rich_help_panel=PANEL)]
            signature.append(_keyword("params_from", source, None))
        if "run" in declared:
            signature += [_keyword(name, _panel(kind), default) for name, (kind, default) in RUN_FLAGS.items()]
        signature += [_keyword("as_json", _panel(Json), False), _keyword("quiet", _panel(Quiet), False)]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            as_json, quiet = kwargs.pop("as_json"), kwargs.pop("quiet")
            with make_report(quiet=quiet) as report:
                if "report" in declared:
                    kwargs["report"] = report
                if "run" in declared:
                    kwargs["run"] = _run({name: kwargs.pop(name) for name in RUN_FLAGS}, report)
                if fields:
                    assert params_class
                    values = {f.name: kwargs.pop(f.name) for f in fields}
                    kwargs["params"] = _params(params_class, values, kwargs.pop("params_from"))
                result = function(*args, **kwargs)
            print_result(with_counts(result) if as_json else result, as_json=as_json)

        call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature}
        del call.__wrapped__  # or Typer would read the original's annotations
        return app.command(**command)(call)

    return register


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _panel(annotated: Any) -> Any:
    kind, option = typing.get_args(annotated)
    option.rich_help_panel = PANEL
    return Annotated[kind, option]


def _flag(field: dataclasses.Field[Any], kind: Any) -> Any:
    """The option for one Params field. The flag's own default is None: only what was typed overrides --params-from."""
    (bare,) = members(kind)
    if typing.get_origin(bare) is tuple:
        bare = list[typing.get_args(bare)[0]]  # type: ignore[misc]
    rules = setting(field)
    notes = [rules.values, _default(field)]
    help = " ".join([rules.help, *(f"\\[{note}]" for note in notes if note)])  # the backslash: rich would eat [px]
    return Annotated[Union[bare, None], typer.Option(help=help, show_default=False)]


def _default(field: dataclasses.Field[Any]) -> str:
    """The default as one would type it, '' for none."""
    value = field.default
    if isinstance(value, bool):
        return f"default: {'--' if value else '--no-'}{field.name.replace('_', '-')}"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return "" if value is None else f"default: {value}"


def _params(params_class: type, values: dict[str, Any], source: Path | None) -> Any:
    base = params_class()
    if source:
        try:
            base = from_json(params_class, _stored_params(source))
        except HmrError as error:
            if str(source) not in error.message:
                error.message = f"--params-from {source}: {error.message}"
            raise
    typed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v not in (None, [])}
    return check(dataclasses.replace(base, **typed))


def _stored_params(source: Path) -> str:
    import json

    if source.suffix == ".json":
        try:
            return source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--params-from {source}: {getattr(error, 'strerror', None) or 'not text'}") from error
    from stages.artefacts.hdf5 import open_artefact

    with open_artefact(source) as artefact:
        stored = artefact.attrs.get("params") or {}
    return stored if isinstance(stored, str) else json.dumps(stored)


def _run(flags: dict[str, Any], report: Any) -> Any:
    from stages.engine.job import RunOptions

    index, slash, count = flags["shard"].partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(
            f"--shard {flags['shard']}: not i/n with i from 0 to n-1", "for three processes: 0/3, 1/3 and 2/3"
        )
    if flags["batch_size"] is not None and flags["batch_size"] < 1:
        raise UsageError(f"--batch-size {flags['batch_size']}: must be 1 or more")
    if flags["workers"] < 0:
        raise UsageError(f"--workers {flags['workers']}: must be 0 or more")
    return RunOptions(**(flags | {"shard": (int(index), int(count)), "report": report}))
