"""Files that are whole or not there: the one way a file is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stages.files.atomic import replacing, write_bytes
from stages.files.checkpoints import write_checkpoint
from stages.media.images import write_image
from stages.media.video import write_video


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old" and temporary.parent == tmp_path
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_synced_before_the_rename_when_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b))[1])
    write_bytes(tmp_path / "a", b"x", durable=durable)
    assert steps == (["fsync", "replace"] if durable else ["replace"])


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.safetensors"])
def test_writers_keep_the_old_file_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torch

    path = tmp_path / name
    path.write_bytes(b"old")
    rgb = np.zeros((16, 16, 3), np.uint8)
    write = {
        "a.png": lambda: write_image(path, rgb),
        "a.mp4": lambda: write_video(path, [rgb]),
        "a.safetensors": lambda: write_checkpoint(path, {"x": torch.zeros(1)}, {}),
    }[name]

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(Exception, match="No space left"):
        patch.setattr(os, "replace", full)
        write()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]
    write()
    assert path.read_bytes() != b"old" and os.listdir(tmp_path) == [name]
