"""The errors that people can cause or fix. Each is one line (what, where) and a hint (how to fix it).

`exit_code` is the process's exit code; the command line prints `message` and `hint` and nothing else.
Anything that is not one of these is a bug in hmr (exit code 1).
"""

from __future__ import annotations


class HmrError(Exception):
    """A known failure. `message` says what and where in one line, `hint` how to fix it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HmrError):
    """Wrong or conflicting arguments, known before anything is loaded."""

    exit_code = 2


class InputError(HmrError):
    """An image, video, table or argument's content cannot be used."""

    exit_code = 3


class ArtefactError(InputError):
    """An artefact is damaged, of the wrong kind, or does not match the others."""


class AssetError(HmrError):
    """A body model, checkpoint or data set is missing, damaged, foreign or refused."""

    exit_code = 4


class MachineError(HmrError):
    """No such device, no memory, no disk, no permission."""

    exit_code = 5


class RowsFailed(HmrError):
    """Some rows failed and --strict was given."""

    exit_code = 6


class Interrupted(HmrError):
    """Ctrl-C (130) or SIGTERM (143): whole parts are kept, the same command resumes."""

    exit_code = 130

    def __init__(self, message: str, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
