"""The loop that all trainings share: what is resumed, what is refused, and when it stops."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from stages.errors import ArtefactError, UsageError
from stages.params import TrainStepsParams
from stages.training import loop
from stages.training.loop import StepTrainer, state_file, train


class Scripted(StepTrainer):
    """Its losses are a list."""

    def __init__(self, script: list[float], files: list[Path] | None = None) -> None:
        examples = SimpleNamespace(fingerprint="examples")
        super().__init__(nn.Linear(1, 1), examples, TrainStepsParams(steps=4), files or [])
        self.script = script

    def step(self) -> float:
        self.losses.append(self.script[self.done])
        return self.losses[-1]

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_every_training_stops_at_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    path = state_file(tmp_path / "new" / "x.safetensors")
    with pytest.raises(UsageError, match="not finite any more: step 3") as error:
        train(Scripted([3.0, 2.0, bad, 1.0]), path)
    assert "--rate" in error.value.hint and not path.exists()
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)  # after every step
    with pytest.raises(UsageError):
        train(Scripted([3.0, 2.0, bad, 1.0]), path)
    assert torch.load(path, weights_only=True)["losses"] == [3.0, 2.0]  # the last good state stays


def test_a_state_is_continued_with_the_files_it_started_from_and_no_others(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        file.write_text(file.name)
    path = tmp_path / "x.state"
    half = Scripted([3.0, 2.0, 1.0, 0.0], files[:1])
    half.step()
    loop.save(half, path)
    for other in (files[1:], files, []):
        with pytest.raises(ArtefactError, match="other settings or data"):
            train(Scripted([9.0] * 4, other), path)
    resumed = Scripted([9.0, 2.0, 1.0, 0.0], files[:1])
    train(resumed, path)
    assert resumed.losses == [3.0, 2.0, 1.0, 0.0]


def test_the_weights_of_a_diffusers_folder_count(tmp_path: Path) -> None:
    for part, text in (("unet", "a"), ("vae", "b")):
        (tmp_path / "sd" / part).mkdir(parents=True)
        (tmp_path / "sd" / part / "diffusion_pytorch_model.safetensors").write_text(text)
    (tmp_path / "sd" / "README.md").write_text("any")
    one = Scripted([], [tmp_path / "sd"]).origin
    assert len(one.split()) == 2
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").write_text("c")
    assert Scripted([], [tmp_path / "sd"]).origin != one
