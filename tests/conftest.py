"""Options of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest has a flag of this name that lists its own fixtures (still there as --funcargs); ours takes its place.
    own = parser.optparser._option_string_actions.pop("--fixtures")
    own.option_strings = [name for name in own.option_strings if name != "--fixtures"]
    default = str(SHARED / "parity")
    parser.addoption("--fixtures", default=default, help="folder with parity cases, in the format of ../shared/parity")
