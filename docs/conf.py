"""The site of `make docs`: the pages of this folder, every command's help, and the docstrings of `stages`.

Help and API pages are written anew at each build, into docs/generated/ (not in git), so they cannot go out of date.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path.insert(0, str(ROOT))

project = "hmr"
author = "the authors of hmr"
copyright = "the authors of hmr, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "hmr"
exclude_patterns = ["examples"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's own text under every `forward`
default_role = "code"
# Links from the pages to files of the repository are for readers of the repository.
suppress_warnings = ["myst.xref_missing", "ref.python"]

ROOMS = sorted(path.parent.name for path in ROOT.glob("stages/*/__init__.py"))
PUBLIC = ("stages", "stages.pipeline", "stages.params", "stages.errors", "stages.models.base")
CONTRACTS = ("stages.models.detectors.base", "stages.datasets.base", "stages.formats.base", "stages.artefacts.kinds")


def help_of(words: tuple[str, ...]) -> str:
    """What `hmr WORDS --help` prints, 86 columns wide and without colours."""
    from hmr_cli.app import app, load_command

    os.environ |= {"COLUMNS": "86", "NO_COLOR": "1", "TERM": "dumb"}
    command: Any = load_command(words[0]) if words else app
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        if words:
            command.main([*words[1:], "--help"], prog_name=f"hmr {words[0]}", standalone_mode=False)
        else:
            command(["--help"], prog_name="hmr", standalone_mode=False)
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def command_pages() -> dict[str, str]:
    """One page per command, with its sub-commands, and their list."""
    from hmr_cli.app import COMMANDS, command_paths

    pages = {}
    for name in COMMANDS:
        parts = [f"# hmr {name}"]
        for words in command_paths():
            if words[:1] == (name,):
                heading = f"\n## hmr {' '.join(words)}\n" if len(words) > 1 else ""
                parts.append(f"{heading}\n```text\n{help_of(words)}\n```")
        pages[f"commands/{name}.md"] = "\n".join(parts) + "\n"
    toc = "\n".join(f"commands/{name}" for name in COMMANDS)
    start = f"# Commands\n\n```text\n{help_of(())}\n```\n"
    pages["commands.md"] = f"{start}\n```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{toc}\n```\n"
    return pages


def api_pages() -> dict[str, str]:
    """The public modules and the contracts, then one page per room."""
    pages = {"api/public.md": api_page("Public names", PUBLIC), "api/contracts.md": api_page("Contracts", CONTRACTS)}
    stages = ROOT / "stages"
    verbs = [f"stages.{p.stem}" for p in sorted(stages.glob("*.py"))]
    pages["api/commands.md"] = api_page("Stages", [v for v in verbs if v not in PUBLIC and "__" not in v])
    for room in ROOMS:
        files = sorted((stages / room).glob("**/*.py"))
        modules = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in files]
        rest = [m for m in dict.fromkeys(modules) if m not in (*PUBLIC, *CONTRACTS)]
        pages[f"api/{room}.md"] = api_page(f"stages.{room}", rest)
    toc = "\n".join(["api/public", "api/contracts", "api/commands", *(f"api/{room}" for room in ROOMS)])
    text = "Public are the first two pages; everything else may move from one version to the next."
    pages["api.md"] = f"# Python\n\n{text}\n\n```{{toctree}}\n:maxdepth: 2\n\n{toc}\n```\n"
    return pages


def api_page(title: str, modules: Any) -> str:
    parts = [f"# {title}\n"]
    for module in modules:
        options = ":members:\n:undoc-members:\n:show-inheritance:" if module != "stages" else ""
        parts.append(f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{indented(options)}\n```\n")
    return "\n".join(parts)


def indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())


def write_pages(*_: Any) -> None:
    """Write the generated pages; a page that has not changed keeps its time, so that Sphinx skips it."""
    pages = command_pages() | api_pages()
    for name, text in pages.items():
        path = GENERATED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in GENERATED.glob("**/*.md"):
        if path.relative_to(GENERATED).as_posix() not in pages:
            path.unlink()


def docstring_to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with `code` and indented or tabular parts; autodoc wants reStructuredText."""
    result: list[str] = []
    for literal, group in itertools.groupby(lines, lambda line: line.startswith(("    ", "|"))):
        text = list(group)
        result += (
            ["", "::", "", *(f"    {line}" for line in text), ""] if literal else escaped("\n".join(text)).split("\n")
        )
    lines[:] = result


def escaped(text: str) -> str:
    """Prose with `code` as literals and every other sign of the markup as itself."""
    parts = re.split(r"`+([^`]+)`+", text)  # prose, code, prose, ...
    prose = (re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2])
    code = (f"\\ ``{' '.join(part.split())}``\\ " for part in parts[1::2])
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(prose, code, fillvalue="")))


def setup(app: Any) -> None:
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", docstring_to_rst)
