"""The loop of every training: step after step, a state beside the target, Ctrl-C; the same command resumes.

A `Trainer` is what is trained. `StepTrainer` is for trainings of a fixed number of steps on examples, `TimedTrainer`
for those that run for a given time.
"""

from __future__ import annotations

import abc
import hashlib
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.engine.interrupts import interruptible
from stages.engine.job import SILENT, ProgressReport
from stages.errors import ArtefactError, Interrupted, UsageError
from stages.files.atomic import disk_errors, replacing
from stages.files.hashing import sha256_of
from stages.params import TrainStepsParams
from stages.params.stored import to_json

SAVE_SECONDS = 60
WARM_UP = 200  # steps in which the learning rate of a TimedTrainer rises


class Trainer(abc.ABC):
    """What is trained. `done` counts up to `total`; `unit` is what the progress bar shows."""

    unit: str
    total: int
    losses: list[float]
    optimiser: torch.optim.Optimizer

    @property
    @abc.abstractmethod
    def done(self) -> int: ...

    @abc.abstractmethod
    def step(self) -> float:
        """One step; its loss."""

    @abc.abstractmethod
    def status(self) -> str:
        """One line on the progress of the training."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Of all that a state must agree on to be continued: settings, data, sizes, and the files it started from."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes; tensors, numbers, lists and dictionaries."""

    @abc.abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate


class StepTrainer(Trainer):
    """A training of `params.steps` steps on `examples` (a length, a fingerprint).

    A step's random numbers follow from the seed and the step's number alone, so a training that was stopped and
    resumed is the same training. initial_files: the checkpoints that `network` started from; a state is not continued
    with others.
    """

    unit = "steps"

    def __init__(
        self, network: nn.Module, examples: Any, params: TrainStepsParams, initial_files: Iterable[Path] = ()
    ) -> None:
        self.network, self.examples, self.params = network, examples, params
        self.total = params.steps
        self.device = str(next(network.parameters()).device)
        self.losses = []
        self.origin = " ".join(sha256_of(file) for path in initial_files for file in weight_files(path))

    @property
    def done(self) -> int:
        return len(self.losses)

    def status(self) -> str:
        return f"step {self.done}" + (f", loss {np.mean(self.losses[-50:]):.4g}" if self.losses else "")

    def draw(self) -> tuple[np.random.Generator, np.ndarray]:
        """The random numbers of this step (torch is seeded too), and which examples it takes (batch,)."""
        rng = np.random.default_rng([self.params.seed, self.done])
        torch.manual_seed(int(rng.integers(2**62)))
        return rng, rng.integers(0, len(self.examples), self.params.batch)

    def fingerprint(self) -> str:
        sizes = {name: tuple(t.shape) for name, t in self.network.state_dict().items()}
        text = f"{to_json(self.params)} {self.examples.fingerprint} {sorted(sizes.items())}{self.origin}"
        return hashlib.sha256(text.encode()).hexdigest()

    def loss_range(self) -> str:
        """Mean loss of the first and last 50 steps, for the header of what is written."""
        return f"{np.mean(self.losses[:50]):.4g} to {np.mean(self.losses[-50:]):.4g}"


class TimedTrainer(Trainer):
    """A training that ends after a given time, or at a count of its own. `seconds`: trained so far, `steps`: as many.

    Its people are drawn from `generator`; the learning rate rises, then falls along a cosine.
    """

    unit, total = "permille", 1000
    params: Any
    generator: torch.Generator

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self.losses = []

    @abc.abstractmethod
    def progress(self) -> float:
        """0 at the start, 1 at the end."""

    @abc.abstractmethod
    def update(self) -> float:
        """One step of the optimiser at the current learning rate; its loss."""

    @property
    def done(self) -> int:
        return min(self.total, int(self.total * self.progress()))

    def learning_rate(self) -> float:
        falling = 1 + math.cos(math.pi * min(1.0, self.progress()))
        return self.params.rate * min(1.0, (self.steps + 1) / WARM_UP) * 0.5 * falling

    def step(self) -> float:
        begin = time.monotonic()
        self.set_learning_rate(self.learning_rate())
        loss = self.update()
        self.seconds += time.monotonic() - begin
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.steps, self.seconds, self.losses = state["steps"], state["seconds"], state["losses"]


def weight_files(path: Path) -> list[Path]:
    """The file, or the weights in a folder of diffusers."""
    return sorted(path.rglob("diffusion_pytorch_model*")) if path.is_dir() else [path]


def state_file(out: Path) -> Path:
    """Where the state of a training that writes `out` is kept."""
    return out.with_name(out.name + ".state")


def train(trainer: Trainer, path: Path, report: ProgressReport = SILENT) -> None:
    """All remaining steps, after those of the state `path` if there is one. The state is saved every minute, when
    stopped and at the end.

    Raises Interrupted (after Ctrl-C or SIGTERM), ArtefactError (the state belongs to another training), UsageError when
    the loss is not finite; the state is then the last one that was saved.
    """
    with disk_errors(path):  # now, and not after hours
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        load(trainer, path)
        report.note(f"resumed: {trainer.status()}")
    report.start("training", trainer.total, unit=trainer.unit, done=trainer.done)
    saved = time.monotonic()
    with interruptible(report) as stopped:
        while (before := trainer.done) < trainer.total and not stopped:
            loss = trainer.step()
            if not math.isfinite(loss):
                raise UsageError(f"the loss is not finite any more: {trainer.status()}", "give a lower --rate")
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
    """The whole state, replaced at once. Raises MachineError when it cannot be written."""
    # One name for every process: a run that is killed while it saves leaves one file at most.
    with disk_errors(path), replacing(path, temporary=path.with_name(path.name + ".part")) as temporary:
        torch.save({"fingerprint": trainer.fingerprint(), **trainer.state()}, temporary)


def load(trainer: Trainer, path: Path) -> None:
    """Continue a saved state. Raises ArtefactError when it is none, or belongs to other settings, data or files."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fingerprint = state.pop("fingerprint")
    except Exception as error:  # torch fails in many ways on other files, and advises to load them unsafely
        raise ArtefactError(f"{path} is not the state of a training", "delete it to start again") from error
    if fingerprint != trainer.fingerprint():
        raise ArtefactError(
            f"{path} was made with other settings or data", "use the same again, or delete it to start again"
        )
    trainer.restore(state)
