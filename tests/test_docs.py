"""The pages are true as far as a program can tell: every command line in them is one that hmr accepts, every link
leads somewhere, every page is in the site, and what the site is built of can be made."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_cli.app import COMMANDS, load_command
from stages.artefacts.hdf5 import open_artefact
from tests.helpers import fixtures
from tests.helpers.cli import hmr

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for p in ROOT.glob("docs/**/*.md") if "generated" not in p.parts),
        *ROOT.glob("stages/data/*.md"),
    ]
)
EXAMPLES = ROOT / "docs" / "examples"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def command_lines(text: str) -> list[str]:
    """Lines of code blocks, and code in the text, that begin with hmr; without comments, one per command."""
    blocks = re.findall(r"```(?:sh|bash|text)?\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (.*)$", text, re.M) + re.findall(
        r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    found = []
    for line in lines:
        for part in re.split(r"&&|\|", re.sub(r"\s#.*", "", line)):
            words = re.sub(r"^(\s*[A-Z_]+=\S+\s+)+", "", part).strip()
            if words.startswith("hmr ") and not re.search(r"[{<(…]|\.\.\.|[A-Z]{4,}\s[A-Z]|KIND|COMMAND", words):
                found.append(words)
    return found


def options_of(command: Any) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_one_that_hmr_accepts(page: Path) -> None:
    for line in command_lines(page.read_text()):
        words = shlex.split(line)[1:]
        if words[0] in ("--help", "--version"):
            continue
        assert words[0] in COMMANDS, f"{line}: no such command"
        command = load_command(words[0])
        children = getattr(command, "commands", {})
        if children and words[1:] and words[1] in children:
            command = children[words[1]]
        elif children and words[0] == "eval":
            command = children["score"]  # hmr eval NAME
        wrong = [w for w in words[1:] if re.match(r"--?[a-z]", w) and w.split("=")[0] not in options_of(command)]
        assert not wrong, f"{line}: no option {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            if "generated" in path.parts:
                continue
            assert path.exists(), f"{target}: not there"
            assert not anchor or anchor in anchors(path), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_no_page_holds_the_leftovers_of_a_merge() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("stages/data/*.md")]
    leftover = re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE)
    assert pages and not [page.name for page in pages if leftover.search(page.read_text())]


def test_contributing_and_design_name_what_is_there() -> None:
    """The ten places of CONTRIBUTING, and the files and folders of the design's tree."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    places = re.findall(r"`([\w/]+\.py)`", contributing)
    assert len(places) > 15
    for place in places:
        assert (ROOT / "stages" / place).exists() or (ROOT / place).exists(), f"CONTRIBUTING: no {place}"
    questions = contributing.partition("## Ten places to find")[2].partition("\n## ")[0]
    assert questions.count("? | ") == 10
    tree = (ROOT / "docs" / "design.md").read_text().partition("## 2. The tree")[2].partition("## 3.")[0]
    for line in re.findall(r"^  ([a-z]+)/ +(.*)$", tree, re.M):
        folder, names = ROOT / "stages" / line[0], re.sub(r"\(.*?\)", "", line[1])
        assert folder.is_dir(), f"design: no stages/{line[0]}"
        for name in re.findall(r"(?:^|, )([a-z_0-9]+)(?=[,;:]|$)", names.partition(":")[0]):
            assert (folder / f"{name}.py").exists() or (folder / name).is_dir(), f"design: no {line[0]}/{name}"
    verbs = set(re.findall(r"(\w+)\.py", tree.partition("  detect.py")[2].partition("\n")[0])) | {"detect"}
    beside = {"__init__", "params", "errors", "pipeline"}
    assert verbs == {p.stem for p in (ROOT / "stages").glob("*.py")} - beside


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"^[\w/]+$", (ROOT / "docs" / "index.md").read_text(), re.M))
    pages = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in PAGES if p.is_relative_to(ROOT / "docs")}
    assert pages - {"index"} <= listed
    assert listed - pages == {"generated/commands", "generated/api"}


def test_help_and_api_pages_can_be_made() -> None:
    """docs/conf.py without Sphinx: a page per command, with every option, and every module once."""
    config = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    pages = config["command_pages"]() | config["api_pages"]()
    assert {f"commands/{name}.md" for name in COMMANDS} <= set(pages)
    assert "--max-gap" in pages["commands/refine.md"] and "hmr eval compare" in pages["commands/eval.md"]
    documented = re.findall(r"automodule:: (\S+)", "".join(pages.values()))
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in ROOT.glob("stages/**/*.py")
    ]
    assert sorted(documented) == sorted(modules)
    escaped = config["escaped"]("one `a_b` is *not* `c` |x|")
    assert escaped == r"one \ ``a_b``\  is \*not\* \ ``c``\  \|x\|"


def test_the_example_detector_runs(tmp_path: Path) -> None:
    """docs/examples/detector.py, as its first lines say."""
    out = tmp_path / "people.detections.h5"
    photo = fixtures.PHOTOS / "free" / "000000000785.jpg"
    path = {"PYTHONPATH": f"{ROOT}:{EXAMPLES}"}
    done = hmr("detect", photo, "--detector", "detector:WholeImage", "-o", out, **path)
    assert done.returncode == 0, done.stderr
    with open_artefact(out) as people:
        width, height = people.frames["size"][0]
        assert people.n_rows == 1 and people.attrs["model"]["name"] == "whole-image"
        np.testing.assert_allclose(people.rows["box"], [[0, 0, width - 1, height - 1]])
        np.testing.assert_allclose(
            people.read("keypoints/xy")[0, 0], [0.5 * (width - 1), 0.1 * (height - 1)], rtol=1e-5
        )


def test_examples_are_short_and_lead_to_the_contract() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60
        check = subprocess.run([sys.executable, "-m", "py_compile", path], capture_output=True, text=True)
        assert check.returncode == 0, check.stderr
