"""Ctrl-C and SIGTERM: the first lets the current part finish, the second stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interruptible(report: Any) -> Iterator[list[int]]:
    """Within the block the first Ctrl-C or SIGTERM only appends its exit code to the list; the second stops at once."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _: Any) -> None:
        stopped.append(128 + number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        report.note("finishing this part; once more stops at once (nothing finished is lost)")

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
