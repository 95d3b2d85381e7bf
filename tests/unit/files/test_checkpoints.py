"""Foreign, damaged and hostile weights files end with one line (AssetError); good ones give tensors by dotted name."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages.errors import AssetError
from stages.files.checkpoints import Checkpoint, check_keys, read_checkpoint, write_checkpoint
from stages.models import find_loader

TENSORS = {"module.a.weight": torch.arange(6.0).reshape(2, 3), "module.a.bias": torch.zeros(2)}


def test_endless_nesting_is_no_weights_file(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    with pytest.raises(AssetError) as caught:
        _ = read_checkpoint(tmp_path / "loop.pt").names
    assert len(caught.value.message.splitlines()) == 1


def test_torch_file_is_flattened_and_prefixes_come_off_on_request(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": TENSORS, "epoch": 3, "best": np.float64(0.5), "optimizer": {"lr": 0.1}}, tmp_path / "x.pth.tar"
    )
    checkpoint = read_checkpoint(tmp_path / "x.pth.tar")
    assert checkpoint.names == {f"state_dict.{n}" for n in TENSORS}
    assert checkpoint.metadata["epoch"] == "3"
    bare = checkpoint.without("state_dict.", "module.")
    assert torch.equal(bare["a.weight"], TENSORS["module.a.weight"])
    assert len(checkpoint.sha256) == 64


def test_legacy_torch_file_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "x.pth").names == set(TENSORS)


def test_safetensors_round_trip_keeps_the_header(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", TENSORS, {"licence": "CC0-1.0"})
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.licence == "CC0-1.0" and torch.equal(
        checkpoint.tensors["module.a.weight"], TENSORS["module.a.weight"]
    )
    assert os.listdir(tmp_path) == ["x.safetensors"]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HOSTILE_RAN",)


def hostile(path: Path) -> None:
    torch.save({"state_dict": TENSORS, "x": Payload()}, path)


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def cut_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def cut_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def cut_legacy(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:20_000])


BAD = {
    "web page": lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>"),
    "Git LFS": lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "empty": lambda p: p.write_bytes(b""),
    "zero bytes": lambda p: p.write_bytes(b"\0" * 4096),
    "cut": cut_zip,
    "cut or damaged": cut_safetensors,
    "is cut: its safetensors header": lambda p: p.write_bytes((1000).to_bytes(8, "little") + b'{"a":'),
    "cut or damaged,": cut_legacy,
    "nothing of it was run": hostile,
    "nothing of it was run\u200b": lambda p: p.write_bytes(pickle.dumps(Payload(), protocol=2)),
    "no tensors": lambda p: torch.save({"epoch": 3}, p),
    "without PyTorch weights": npz,
    "HDF5": lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\1" * 100),
    "no weights file": lambda p: p.write_bytes(b"hello there, this is text"),
    "archive": lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + b"\1" * 100),
    "folder": lambda p: p.mkdir(),
    "no checkpoint at": lambda p: None,
}


@pytest.mark.parametrize("words", BAD)
def test_bad_file_is_named_in_one_line(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    BAD[words](path)
    with pytest.raises(AssetError) as caught:
        read_checkpoint(path)
    assert words.strip("\u200b") in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint and "x.pth" in caught.value.message
    assert not (tmp_path / "HOSTILE_RAN").exists()


def test_configuration_object_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "cfg": zipfile.ZipInfo("x")}, tmp_path / "x.ckpt")
    with pytest.raises(AssetError, match=r"zipfile\.ZipInfo"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_damaged_anywhere_is_never_a_bug(tmp_path: Path) -> None:
    """Flipped bytes either still give tensors or end with AssetError, whatever they hit."""
    torch.save(TENSORS, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    for at in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 0xA5
        (tmp_path / "y.pth").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "y.pth")
        except AssetError as error:
            assert "\n" not in error.message


def test_keys_missing_unexpected_misshaped_and_nan() -> None:
    good = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    check_keys(good, {**good, "unused.x": torch.zeros(1)}, ignorable=("unused.",))
    with pytest.raises(AssetError, match=r"1 missing \(b\).*1 unexpected \(c\).*2 x 2 for 2 x 3"):
        check_keys(good, {"a": torch.zeros(2, 2), "c": torch.zeros(1)})
    for value in (float("nan"), float("inf")):
        with pytest.raises(AssetError, match="NaN or infinite weights: b"):
            check_keys(good, {**good, "b": torch.tensor([0.0, value])})


def test_two_different_copies_are_refused() -> None:
    checkpoint = Checkpoint(Path("x"), {"module.a": torch.zeros(2), "a": torch.ones(2)}, {})
    with pytest.raises(AssetError, match="twice"):
        checkpoint.without("module.")


def test_foreign_checkpoint_names_the_choices() -> None:
    with pytest.raises(AssetError, match="none of thing"):
        find_loader({"thing": f"{__name__}:Thing"}, Checkpoint(Path("x"), {"net.a": torch.zeros(1)}, {}))
    assert find_loader({"thing": f"{__name__}:Thing"}, Checkpoint(Path("x"), {"thing": torch.zeros(1)}, {})) is Thing


class Thing:
    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        return "thing" in names
