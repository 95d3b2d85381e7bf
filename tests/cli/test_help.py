"""Help of every command and sub-command: complete, and without anything heavy in memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from hmr_cli.app import COMMANDS, command_paths
from stages import params
from stages.params import rules
from stages.params.rules import setting
from tests.helpers.cli import hmr

HEAVY = ("torch", "numpy", "h5py", "cv2", "scipy", "PIL", "av", "diffusers", "transformers", "safetensors")
PROBE = """
import contextlib, io, json, sys
from hmr_cli.app import call, command_paths
pages = {}
for words in command_paths():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        call([*words, "--help"])
    pages[" ".join(words)] = [out.getvalue(), [m for m in sys.argv[1:] if m in sys.modules]]
print(json.dumps(pages))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[str, list[str]]]:
    """Every page of help, with the heavy modules that were loaded once it was printed."""
    done = subprocess.run([sys.executable, "-c", PROBE, *HEAVY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_and_sub_command_is_asked() -> None:
    paths = set(command_paths())
    assert {(name,) for name in COMMANDS} | {()} <= paths
    assert {("import", "coco"), ("eval", "compare"), ("train", "dpmesh"), ("body-model", "add")} <= paths
    assert len(paths) == len(command_paths()) > 40


def test_no_page_imports_anything_heavy(pages: dict[str, tuple[str, list[str]]]) -> None:
    for words, (text, loaded) in pages.items():
        assert f"Usage: hmr {words}".strip() in " ".join(text.split()), words
        assert not loaded, f"hmr {words} --help imports {', '.join(loaded)}"


def test_help_shows_choices_units_ranges_and_defaults() -> None:
    """Square brackets are markup for rich: unescaped, `[px]` vanishes from the page."""
    text = " ".join(hmr("view", "--help", COLUMNS="300").stdout.split())
    assert "[mesh | skeleton | both] [default: mesh]" in text
    assert "[px, 64 or more] [default: 1600]" in text
    assert "[from 0 to 1] [default: 1.0]" in text and "[default: --no-side]" in text


@pytest.mark.parametrize("name", [n for n in dir(params) if n.endswith("Params")])
def test_every_setting_has_a_sentence_of_help_and_a_default_that_passes(name: str) -> None:
    cls = getattr(params, name)
    assert rules.check(cls()) == cls()
    for field in dataclasses.fields(cls):
        help = setting(field).help
        assert help.endswith(".") and (help[0] in "-0123456789" or help[0].isupper() or help.startswith(VALUES)), help


# Values and formats that keep their case at the beginning of a sentence.
VALUES = ("auto,", "mmpose:", "embedded,", "dpmesh,", "glb,", "npz:")
