"""From exception to one line, a hint and the exit code (docs/design.md, section 7)."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from stages.errors import HmrError, MachineError


def known(error: BaseException) -> HmrError | None:
    """The hmr error that `error` amounts to, or None for a bug."""
    if isinstance(error, HmrError):
        return error
    if isinstance(error, PermissionError):  # reading or writing, who knows
        return MachineError(f"no permission: {error.filename}", "choose another place with -o")
    if isinstance(error, OSError):
        from stages.files.atomic import DISK

        if error.errno in DISK:
            hint = "make room or choose another place with -o; the same command resumes"
            return MachineError(f"{DISK[error.errno]}: {error.filename or 'while writing'}", hint)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MachineError("out of memory", "use a smaller --batch-size; the same command resumes")
    return None


def say(text: str) -> None:
    """One line on stderr, which may be closed or not speak UTF-8."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        sys.stderr.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stderr.flush()


def open_streams() -> None:
    """Make stdin, stdout and stderr usable whatever the shell did with them.

    A closed one becomes /dev/null, also as a file descriptor: else the next file to be opened would get its number, and
    a library that prints would write into it. Characters that the terminal cannot show become "?".
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            if stream.errors != "surrogateescape":
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def close_streams() -> None:
    """Write out what is buffered; what nobody takes is dropped, or Python would end with 120 and a complaint."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run_and_exit(command: Callable[[], Any], *, debug: bool) -> NoReturn:
    """Run `command` and leave the process with the design's exit code."""
    code = 0
    open_streams()
    try:
        result = command()
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:  # `hmr ... | head`: the reader left, which is no failure
        pass
    except KeyboardInterrupt:
        say("interrupted; the same command resumes")
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # how rich says that the reader left
            code = 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = explain(error)
    close_streams()
    sys.exit(code)


def explain(error: Exception) -> int:
    """Print what went wrong in one line and return the exit code."""
    failure = known(error)
    if failure is not None:
        say(
            f"hmr: {' '.join(failure.message.split())}"
            + (f" -> {' '.join(failure.hint.split())}" if failure.hint else "")
        )
        return failure.exit_code
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # Typer's usage errors
        if type(error).__name__ == "NoArgsIsHelpError":  # the help page is printed, there is nothing to add
            return 2
        say(f"hmr: {' '.join(error.format_message().split())} -> see hmr {command_path(error)}--help")
        return 2
    if type(error).__name__ in ("Exit", "Abort"):
        return int(getattr(error, "exit_code", 1))
    text = " ".join(str(error).split())[:300]
    say(f"hmr: a bug in hmr: {type(error).__name__}: {text} -> run again with --debug and report it")
    return 1


def command_path(error: Exception) -> str:
    """The words between `hmr` and the option that was wrong, for the hint."""
    context = getattr(error, "ctx", None)
    words = getattr(context, "command_path", "hmr").split()[1:]
    return "".join(f"{word} " for word in words)
