"""Options of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    # Cases that were asked for by folder are run, the big ones too, unless -m says otherwise.
    given = [str(argument) for argument in config.invocation_params.args]
    if any(a.startswith("--fixtures") for a in given) and not any(a.startswith("-m") for a in given):
        config.option.markexpr = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest has a flag of this name that lists its own fixtures (still there as --funcargs); ours takes its place.
    own = parser.optparser._option_string_actions.pop("--fixtures")
    own.option_strings = [name for name in own.option_strings if name != "--fixtures"]
    default = str(SHARED / "parity")
    parser.addoption("--fixtures", default=default, help="folder with parity cases, in the format of ../shared/parity")
