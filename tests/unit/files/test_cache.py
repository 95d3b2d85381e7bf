"""The cache of fetched files: whole and right, or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from stages.errors import AssetError, MachineError, UsageError
from stages.files import cache as assets
from stages.files import fetching
from stages.files.folders import cache_dir

CONTENT = {"pose_detection.tflite": b"one" * 1000, "pose_landmark_full.tflite": b"two" * 1000}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows no index but a folder."""
    monkeypatch.setenv("HMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "links").mkdir()
    return tmp_path / "cache"


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, *, altered: bool = False) -> None:
    """A small wheel with the two files where mediapipe has them; the table expects CONTENT."""
    name = "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file, where in fetching.BLAZEPOSE.items():
            wheel.writestr(f"{where}/{file}", CONTENT[file] + (b"!" if altered else b""))
        info = "mediapipe-0.10.21.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-manylinux_2_28_x86_64\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in CONTENT.items()}
    small = dataclasses.replace(assets.ASSETS["blazepose"], files=hashes)
    monkeypatch.setitem(assets.ASSETS, "blazepose", small)


def test_fetched_files_are_the_ones_in_the_wheel(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "links", monkeypatch)
    assert assets.find("blazepose") is None
    folder = assets.get("blazepose")
    record = json.loads((folder / assets.RECORD).read_text())
    assert record == {"source": f"{fetching.WHEEL} by pip", "sha256": assets.ASSETS["blazepose"].files}
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != assets.RECORD} == CONTENT
    assert assets.find("blazepose") == folder
    assert [p.name for p in cache.iterdir()] == ["blazepose"]  # nothing temporary is left
    (tmp_path / "links" / next(p.name for p in (tmp_path / "links").iterdir())).unlink()
    assert assets.get("blazepose") == folder  # not asked for again


def test_an_altered_download_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "links", monkeypatch, altered=True)
    with pytest.raises(AssetError, match="SHA-256 differs"):
        assets.get("blazepose")
    assert assets.find("blazepose") is None
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_damaged_file_in_the_cache_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "links", monkeypatch)
    broken = assets.get("blazepose") / "pose_detection.tflite"
    broken.write_bytes(b"cut")
    assert (assets.get("blazepose") / "pose_detection.tflite").read_bytes() == CONTENT["pose_detection.tflite"]


def test_without_network_the_mend_is_named(cache: Path) -> None:
    with pytest.raises(AssetError) as caught:
        assets.get("blazepose")
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message and "Traceback" not in caught.value.message
    assert "hmr assets get blazepose" in caught.value.hint and str(cache) in caught.value.hint
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HMR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MachineError, match="cannot be written"):
        assets.get("blazepose")


def test_unknown_assets() -> None:
    with pytest.raises(UsageError, match="no asset 'blazeface'"):
        assets.get("blazeface")


def test_status_is_what_doctor_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = {name: (ready, hint) for name, ready, _, hint in assets.status()}
    assert before["blazepose"] == (False, "hmr assets get blazepose")
    publish(tmp_path / "links", monkeypatch)
    assets.get("blazepose")
    assert {name: ready for name, ready, *_ in assets.status()} == {
        "blazepose": True,
        "rtmpose": False,
        "vitpose": False,
    }


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HMR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "hmr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "hmr"
