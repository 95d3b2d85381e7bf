"""`hmr`: one subcommand per stage, each in the file of its name, imported only when it is called.

`hmr --help` must answer in under 0.3 s, so the list of commands is data here and no stage is imported to print it.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from stages.errors import UsageError

STAGES, LOOK, FILES, SETUP = "The pipeline", "Look, export, train", "Artefacts", "This machine"

# command -> (panel of the help page, one line); its module is hmr_cli.<command with _ for ->.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": (STAGES, "The whole chain in one process: photos or video in, meshes, overlays, GLB and a report out."),
    "detect": (STAGES, "People in photos and video: boxes, 2D keypoints, scores, tracks, cameras."),
    "track": (STAGES, "Who is the same person over time, for detections that do not say."),
    "heatmaps": (STAGES, "One stack of Gaussian keypoint heatmaps per person."),
    "features": (STAGES, "DPMesh's diffusion features, or the image vector that ScoreHMR is conditioned on."),
    "recover": (STAGES, "SMPL bodies (or vertices) from keypoints, crops or features."),
    "refine": (STAGES, "ScoreHMR: align bodies with keypoints, several views or time."),
    "eval": (STAGES, "MPJPE, PA-MPJPE, MPVE and more on a data set or a synthetic benchmark."),
    "view": (LOOK, "Overlays, side views, turning views, an HTML report."),
    "export": (LOOK, "npz (AMASS layout), OBJ, GLB with a skinned skeleton."),
    "synth": (LOOK, "Synthetic scenes with exact ground truth."),
    "train": (LOOK, "Train the embedded recoverer and the other networks."),
    "import": (FILES, "Boxes, keypoints and bodies made by other tools."),
    "merge": (FILES, "Join the parts that shards have written."),
    "check": (FILES, "Is this artefact whole and valid?"),
    "info": (FILES, "What an artefact holds and how it was made."),
    "schema": (FILES, "The documented columns of each kind of artefact."),
    "checkpoint": (FILES, "What a checkpoint file contains and what it lacks."),
    "convert": (FILES, "A published checkpoint to a compact safetensors file."),
    "body-model": (SETUP, "Add, list and export body models (SMPL files, the embedded body)."),
    "assets": (SETUP, "Fetch and list the files hmr can use."),
    "doctor": (SETUP, "What works on this machine, what is missing, and the fix."),
}


class LazyGroup(TyperGroup):
    """Lists COMMANDS without importing them; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        panel, help = COMMANDS[cmd_name]
        return TyperCommand(cmd_name, help=help, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            command = load_command(args[0])
            return args[0], command, args[1:]
        if args and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise UsageError(f"no command {args[0]!r}", f"did you mean {near[0]}?" if near else "see hmr --help")
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """The Typer command of `name`, from its module's `app`."""
    module = importlib.import_module(f"hmr_cli.{'import_' if name == 'import' else name.replace('-', '_')}")
    module.app._add_completion = False  # `hmr` itself offers it, once
    command = typer.main.get_command(module.app)
    command.name = name
    return command


def command_paths() -> list[tuple[str, ...]]:
    """The words of every command and sub-command after `hmr`, () for `hmr` itself."""
    paths: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        paths.append((name,))
        paths += [(name, child) for child in getattr(load_command(name), "commands", {})]
    return paths


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode="markdown")


def _version(asked: bool) -> None:
    if asked:
        from stages.files.package import installed_version

        typer.echo(installed_version())
        raise typer.Exit


@app.callback()
def hmr(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Human mesh recovery that stays right when people are occluded or crowded.

    Every stage reads and writes an HDF5 artefact, can be resumed and swapped.
    stdout carries results, stderr is for people. `--debug` anywhere shows tracebacks.

    Start: `hmr run photo.jpg -o out/` · then: `hmr doctor`
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run the command, turn known failures into one line and an exit code."""
    from hmr_cli._errors import run_and_exit

    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    run_and_exit(lambda: call([a for a in args if a != "--debug"]), debug=debug)


def call(args: list[str]) -> Any:
    """Run one command. Raises UsageError for an empty argument, which Path would silently turn into the folder "."."""
    for before, arg in zip(["", *args], args, strict=False):
        if not arg and not before.startswith("-"):
            raise UsageError("an argument is empty", "is a variable of the shell not set?")
    if not args or args[0] not in COMMANDS:
        return app(args, prog_name="hmr", standalone_mode=False)
    # Straight to the command, not through its groups, for whose own options Typer imports pydantic (0.1 s).
    words, command = 1, load_command(args[0])
    while args[words:] and args[words] in getattr(command, "commands", {}):
        words, command = words + 1, command.commands[args[words]]
    return command(args[words:], prog_name=" ".join(["hmr", *args[:words]]), standalone_mode=False)


if __name__ == "__main__":
    main()
