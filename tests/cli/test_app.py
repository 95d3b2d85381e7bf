"""The command line as a whole: quick, lazy, one line per mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hmr_cli.app import COMMANDS, load_command
from stages.files.package import DISTRIBUTION
from tests.helpers.cli import hmr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_page_of_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is printed: groups, their commands and single commands; an example begins with the command itself."""
    command = load_command(name)
    children = getattr(command, "commands", {})
    assert "install_completion" not in {p.name for p in command.params}
    for words, args in ((f"hmr {name}", []), *((f"hmr {name} {child}", [child]) for child in children)):
        command.main([*args, "--help"], prog_name=f"hmr {name}", standalone_mode=False)
        usage, _, rest = capsys.readouterr().out.partition("Examples:")
        assert "Usage: hmr" in usage and words.removesuffix(" score") in rest, f"{words}: no example in its help"
        before = usage.split("Usage:")[1].splitlines()[1:]
        assert any(line.strip() for line in before), f"{words}: no description"


@pytest.mark.parametrize("args", [[], ["import"], ["eval"]])
def test_a_command_that_is_not_finished_prints_its_help_and_nothing_else(args: list[str]) -> None:
    done = hmr(*args)
    assert done.returncode == 2 and "Usage: hmr" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["detet"], "did you mean detect"),
        (["detect", "--shard", "4/3", "x.jpg", "-o", "y.h5"], "--shard 4/3"),
        (["detect", "--batch-size", "0", "x.jpg", "-o", "y.h5"], "--batch-size 0"),
        (["recover", "--bach-size", "4", "x.h5", "-o", "y.h5"], "--batch-size"),
        (["recover", "x.h5"], "--out"),
        (["recover", "", "-o", "y.h5"], "an argument is empty"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(args: list[str], says: str) -> None:
    done = hmr(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_nobody_is_told_to_install_another_program() -> None:
    """On the package index `hmr` is somebody else's: every hint, page and comment names hmr-toolchain."""
    root = Path(__file__).parents[2]
    files = [root / "README.md", root / "pyproject.toml", root / "CONTRIBUTING.md", root / "Makefile"]
    for folder in ("stages", "hmr_cli", "docs"):
        files += [p for p in root.glob(f"{folder}/**/*") if p.suffix in (".py", ".md", ".toml", ".json")]
    wrong = re.compile(r"""(?<![\w.-])hmr\[\w|install ["'`]?hmr(?![\w-])|version\(["']hmr["']\)""")
    found = [f"{p.relative_to(root)}: {m.group()}" for p in files for m in wrong.finditer(p.read_text())]
    assert not found
    assert 'name = "hmr-toolchain"' in (root / "pyproject.toml").read_text() and DISTRIBUTION == "hmr-toolchain"
