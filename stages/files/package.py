"""The installed distribution. On the package index `hmr` is another program, hence its longer name; commands and
imports are `hmr` and `stages`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "hmr-toolchain"


def installed_version() -> str:
    """The version of hmr, "unknown" where its files are used without being installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
