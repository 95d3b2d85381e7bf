"""`hmr train embedded`: a short training lowers the loss, can be resumed, and its weights work in `hmr recover`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.errors import ArtefactError, UsageError
from stages.files.checkpoints import read_checkpoint
from stages.params import RecoverParams
from stages.recover import load
from stages.smpl.body import load_body
from stages.synthetic.mocap import load_poses
from stages.training import loop
from stages.training.embedded import EmbeddedTrainer, Params, run
from tests.helpers.cli import hmr
from tests.helpers.motion_files import motion_file

SMALL = ("--width", "96", "--blocks", "1", "--blocks", "1", "--batch", "256")


def test_a_short_training_lowers_the_loss_and_is_resumed(tmp_path: Path) -> None:
    poses, out = motion_file(tmp_path / "motion.npz", 200), tmp_path / "mine.safetensors"
    done = hmr("train", "embedded", "--poses", poses, "-o", out, *SMALL, "--samples", 40_960)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    first = read_checkpoint(out)
    assert float(first.metadata["last_loss"]) < 0.9 * float(first.metadata["first_loss"])
    assert first.metadata["people"] == "40960" and "CMU" in first.licence
    half = {name: tensor.clone() for name, tensor in first.tensors.items()}
    again = hmr("train", "embedded", "--poses", poses, "-o", out, *SMALL, "--samples", 46_080)
    assert again.returncode == 0 and "resumed: 0.04M people" in again.stderr
    second = read_checkpoint(out)
    assert second.metadata["people"] == "46080"
    assert any(not torch.equal(half[name], tensor) for name, tensor in second.tensors.items())
    model, origin = load(RecoverParams(), out, "cpu")
    assert model.name == "embedded" and origin["sha256"] == second.sha256

    with pytest.raises(ArtefactError, match="other settings"):
        run(poses, out, Params(samples=61_440, batch=512, width=96, blocks=(1,), seed=5))
    with pytest.raises(UsageError, match="nothing to train"):
        run(poses, out, Params(max_minutes=0))


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    bank = load_poses(motion_file(tmp_path / "motion.npz", 30))
    params = Params(samples=6 * 64, batch=64, width=32, blocks=(1, 1))
    whole, first = (EmbeddedTrainer(load_body("embedded"), bank, params) for _ in range(2))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    loop.save(first, tmp_path / "state")
    second = EmbeddedTrainer(load_body("embedded"), bank, params)
    loop.load(second, tmp_path / "state")
    for _ in range(3):
        second.step()
    assert second.steps == 6 and second.losses == whole.losses
    for name, value in whole.weights().items():
        assert torch.equal(value, second.weights()[name]), name
    (tmp_path / "state").write_bytes(b"junk")
    with pytest.raises(ArtefactError, match="not the state of a training"):
        loop.load(second, tmp_path / "state")
