"""The loop of every training: step after step, a state beside the target, Ctrl-C; the same command resumes."""

from __future__ import annotations

import abc
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stages.engine.interrupts import interruptible
from stages.engine.job import SILENT
from stages.errors import ArtefactError, Interrupted
from stages.files.atomic import disk_errors, replacing

SAVE_SECONDS = 60


class Trainer(Protocol):
    """What is trained. `done` counts up to `total`; the unit is what the progress bar shows."""

    unit: str

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    def step(self) -> Any:
        """One step."""

    def status(self) -> str:
        """One line on how the training stands."""

    def fingerprint(self) -> str:
        """Of all that a state must agree on to be continued: settings, data, sizes."""

    def state(self) -> dict[str, Any]:
        """All that changes; tensors, numbers, lists and dictionaries."""

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""


class BySteps:
    """Counting of a training of `params.steps` steps, whose `losses` are one a step."""

    unit = "steps"
    params: Any
    losses: list[float]

    @property
    def done(self) -> int:
        """Steps."""
        return len(self.losses)

    @property
    def total(self) -> int:
        """Steps."""
        return int(self.params.steps)

    def status(self) -> str:
        """One line on how the training stands."""
        return f"step {self.done}" + (f", loss {np.mean(self.losses[-50:]):.4g}" if self.losses else "")


class ByProgress(abc.ABC):
    """Counting of a training that goes by time, or by some number of its own."""

    unit = "permille"
    total = 1000

    @abc.abstractmethod
    def progress(self) -> float:
        """0 at the start, 1 when done."""

    @property
    def done(self) -> int:
        """Of 1000."""
        return min(1000, int(1000 * self.progress()))


def train(trainer: Trainer, path: Path, report: Any = SILENT) -> None:
    """All steps that are left, after those of the state `path` if there is one. The state is saved every minute, when
    stopped and at the end. Raises Interrupted (after Ctrl-C or SIGTERM), ArtefactError (the state is another's)."""
    with disk_errors(path):  # now, and not after hours
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        load(trainer, path)
        report.note(f"resumed: {trainer.status()}")
    report.start("training", trainer.total, unit=trainer.unit, done=trainer.done)
    saved = time.monotonic()
    with interruptible(report) as stopped:
        while (before := trainer.done) < trainer.total and not stopped:
            trainer.step()
            report.advance(trainer.done - before)
            if time.monotonic() - saved > SAVE_SECONDS:
                save(trainer, path)
                report.note(trainer.status())
                saved = time.monotonic()
        save(trainer, path)
    if trainer.done < trainer.total:
        raise Interrupted(f"stopped: {trainer.status()}", "the same command resumes", stopped[0])
    report.finish()


def save(trainer: Trainer, path: Path) -> None:
    """The whole state, replaced at once. Raises MachineError when the disk does not take it."""
    # One name for every process: a run that is killed while it saves leaves one file at most.
    with disk_errors(path), replacing(path, temporary=path.with_name(path.name + ".part")) as temporary:
        torch.save({"fingerprint": trainer.fingerprint(), **trainer.state()}, temporary)


def load(trainer: Trainer, path: Path) -> None:
    """Continue a saved state. Raises ArtefactError when it is none or was made with other settings or data."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state.pop("fingerprint")
    except Exception as error:
        raise ArtefactError(f"{path} is no state of a training: {error}", "delete it to start again") from error
    if found != trainer.fingerprint():
        raise ArtefactError(
            f"{path} was made with other settings or data", "use them again, or delete it to start again"
        )
    trainer.restore(state)
