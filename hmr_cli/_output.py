"""What people see while work goes on (stderr), and how results are printed (stdout).

A terminal gets a bar with a rate; a log file gets a plain line every ten seconds; --quiet gets nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hmr_cli._errors import say

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class ConsoleReport:
    """Progress for a log file: plain lines. Also the base of the other two."""

    def start(self, title: str, total: int | None = None, *, unit: str = "rows", done: int = 0) -> None:
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, done, done
        self.started = self.line_at = time.monotonic()
        if done:
            self.note(f"{title}: resuming, {done} {unit} are there already")

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.line_at >= LINE_EVERY:
            self.line_at = now
            self.note(self.line(now))

    def line(self, now: float) -> str:
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        of = f"/{self.total}" if self.total is not None else ""
        return f"{self.title}: {self.done}{of} {self.unit}, {rate:.1f} {self.unit}/s"

    def finish(self) -> None:
        if self.done > self.first:
            self.note(self.line(time.monotonic()))

    def note(self, text: str) -> None:
        say(text)

    def warn(self, text: str) -> None:
        say(f"warning: {text}")

    def close(self) -> None:
        pass


class QuietReport(ConsoleReport):
    """--quiet."""

    def note(self, text: str) -> None:
        pass

    warn = note


class BarReport(ConsoleReport):
    """A terminal: one rich progress bar with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar: Any = None

    def start(self, title: str, total: int | None = None, *, unit: str = "rows", done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().start(title, total, unit=unit, done=done)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, transient=True)
        with contextlib.suppress(OSError, ValueError):
            self.bar.start()
        self.task = self.bar.add_task(title, total=total, completed=done, rate="")

    def advance(self, n: int) -> None:
        self.done += n
        rate = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        self.bar.update(self.task, advance=n, rate=f"{rate:.1f} {self.unit}/s")

    def finish(self) -> None:
        self.close()
        super().finish()

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone: the work goes on
            self.console.print(text, style=style, markup=False, highlight=False)

    def close(self) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.stop()
            self.bar = None


@contextlib.contextmanager
def make_report(*, quiet: bool) -> Iterator[ConsoleReport]:
    """The reporter for this process's stderr."""
    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # stderr closed
        terminal = False
    report = QuietReport() if quiet else BarReport() if terminal else ConsoleReport()
    try:
        yield report
    finally:
        report.close()


def print_result(result: Any, *, as_json: bool) -> None:
    """A path or a text is printed as it is; with --json everything becomes one JSON object."""
    if result is None:
        return
    if as_json:
        print(_one_json(result if isinstance(result, Mapping) else {"out": result}))
    elif type(result) is dict:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    elif isinstance(result, Path) and hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(str(result).encode("utf-8", "surrogateescape") + b"\n")
    else:
        print(result)


def _one_json(value: Mapping[str, Any]) -> str:
    """JSON as people like to read it, in escapes where stdout cannot carry that."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    return text


def with_counts(result: Any) -> Any:
    """For --json: counts of rows, frames and tracks beside the path of an artefact (a path, or {"out": path})."""
    out = result.get("out") if isinstance(result, Mapping) else result
    if not isinstance(out, Path) or out.suffix != ".h5" or not out.is_file():
        return result
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.kinds import FAILED
    from stages.loaders.tracks import counted, takes

    with open_artefact(out) as artefact:
        counts = {
            "rows": artefact.n_rows,
            "failed": int((artefact.rows["status"] == FAILED).sum()),
            "frames": artefact.n_frames,
            "frames_failed": int((artefact.frames["status"] == FAILED).sum()),
        }
        if (takes(artefact.frames) >= 0).any():
            people = counted(artefact)
            counts |= {"tracks": people.tracks, "rows_in_tracks": people.joined}
        if artefact.has("extra/refined"):
            from stages.refinement.counts import counts as of_refined

            counts |= of_refined(artefact)
    return {**(result if isinstance(result, Mapping) else {"out": result}), **counts}
