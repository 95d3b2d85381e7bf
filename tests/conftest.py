"""Options of the whole suite."""

from __future__ import annotations

import pytest

from tests.helpers.fixtures import PARITY


def pytest_configure(config: pytest.Config) -> None:
    # Cases that were asked for by folder are run, the big ones too, unless -m says otherwise.
    given = [str(argument) for argument in config.invocation_params.args]
    if any(a.startswith("--fixtures") for a in given) and not any(a.startswith("-m") for a in given):
        config.option.markexpr = ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One closing line: how many tests were skipped, which, and why."""
    why: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        path, *test = report.nodeid.split("::", 1)
        name = "::".join([path.rpartition("/")[2], *test])
        why.setdefault(reason.removeprefix("Skipped: "), []).append(name)
    if why:
        parts = [f"{', '.join(sorted(tests))} ({reason})" for reason, tests in sorted(why.items())]
        terminalreporter.write_line(f"{sum(map(len, why.values()))} skipped: {'; '.join(parts)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    # pytest has a flag of this name that lists its own fixtures (still there as --funcargs); ours takes its place.
    own = parser.optparser._option_string_actions.pop("--fixtures")
    own.option_strings = [name for name in own.option_strings if name != "--fixtures"]
    said = "folder with parity cases, in the format of tests/fixtures/parity (the default)"
    parser.addoption("--fixtures", default=str(PARITY), help=said)
