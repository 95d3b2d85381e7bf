"""Assets over HTTP, from a hub, through a proxy and from a folder: placed when they are what they should be."""

from __future__ import annotations

import functools
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from stages.errors import AssetError, UsageError
from stages.files import cache, fetching
from tests.helpers.cli import hmr


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMR_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "cache"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; as a proxy, "GET http://host/path" is answered with the same file."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Handler.seen.append(self.path)
        self.path = "/" + self.path.rpartition("/")[2]
        super().do_GET()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.seen = []
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{served.server_port}/"
    served.shutdown()
    served.server_close()


def publish(folder: Path) -> dict[str, bytes]:
    """The authors' archives, each with one end2end.onnx below a folder."""
    content = {name: f"onnx of {name}".encode() * 99 for name in fetching.RTMPOSE}
    for name, archive in fetching.RTMPOSE.items():
        with zipfile.ZipFile(folder / archive, "w") as opened:
            opened.writestr("20230831/some_model/end2end.onnx", content[name])
            opened.writestr("20230831/some_model/pipeline.json", "{}")
    return content


def test_rtmpose_over_http(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    content, said = publish(server[0]), []
    monkeypatch.setattr(fetching, "ZOO", server[1])
    folder = cache.get("rtmpose", tell=said.append)
    assert {p.name: p.read_bytes() for p in folder.glob("*.onnx")} == content
    record = json.loads((folder / cache.RECORD).read_text())
    assert record["source"] == server[1] and {len(digest) for digest in record["sha256"].values()} == {64}
    assert len(said) == 2 and all(server[1] in line and "MB" in line for line in said)
    assert [p.name for p in cache_folder.iterdir()] == ["rtmpose"] and cache.find("rtmpose") == folder


def test_rtmpose_behind_a_proxy(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server[0])
    monkeypatch.setattr(fetching, "ZOO", "http://models.invalid/")
    monkeypatch.setenv("http_proxy", server[1])
    assert cache.get("rtmpose").name == "rtmpose"
    assert Handler.seen == [f"http://models.invalid/{archive}" for archive in fetching.RTMPOSE.values()]


@pytest.mark.parametrize("fault", ["absent", "no zip", "two networks", "refused"])
def test_what_is_wrong_is_not_placed(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache_folder: Path, fault: str
) -> None:
    publish(server[0])
    monkeypatch.setattr(fetching, "ZOO", server[1] if fault != "refused" else "http://127.0.0.1:9/")
    archive = server[0] / fetching.RTMPOSE["pose.onnx"]
    if fault == "absent":
        archive.unlink()
    if fault == "no zip":
        archive.write_bytes(b"<!DOCTYPE html>")
    if fault == "two networks":
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("other.onnx", b"x")
    with pytest.raises(AssetError) as caught:
        cache.get("rtmpose")
    assert caught.value.hint and "\n" not in caught.value.message
    if fault in ("absent", "refused"):
        assert "--from" in caught.value.hint
    assert cache.find("rtmpose") is None and not [p for p in cache_folder.rglob("*") if p.is_file()]


def test_what_the_check_refuses_is_not_placed(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server[0])
    monkeypatch.setattr(fetching, "ZOO", server[1])

    def refuse(folder: Path) -> None:
        assert sorted(p.name for p in folder.glob("*.onnx")) == sorted(fetching.RTMPOSE)
        raise AssetError("no network in it")

    with pytest.raises(AssetError, match="no network in it"):
        cache.get("rtmpose", check=refuse)
    assert cache.find("rtmpose") is None


def test_rtmpose_from_a_folder(tmp_path: Path) -> None:
    """With the archives, or with the files of another machine's cache."""
    stick = tmp_path / "stick"
    stick.mkdir()
    content = publish(stick)
    folder = cache.get("rtmpose", source=stick)
    assert {p.name: p.read_bytes() for p in folder.glob("*.onnx")} == content
    (tmp_path / "other").mkdir()
    for name in content:
        (tmp_path / "other" / name).write_bytes(b"newer")
    assert (cache.get("rtmpose", source=tmp_path / "other") / "pose.onnx").read_bytes() == b"newer"
    with pytest.raises(AssetError, match=r"holds neither detector\.onnx nor yolox"):
        cache.get("rtmpose", source=tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        cache.get("rtmpose", source=tmp_path / "nowhere")
    assert (folder / "pose.onnx").read_bytes() == b"newer"  # what is there stays


def test_blazepose_from_a_folder_is_still_checked(tmp_path: Path) -> None:
    for name in fetching.BLAZEPOSE:
        (tmp_path / name).write_bytes(b"altered")
    with pytest.raises(AssetError, match="SHA-256 differs"):
        cache.get("blazepose", source=tmp_path)


@pytest.mark.parametrize("names", [("detector", "pose"), ("rtdetr_r50vd_coco_o365", "vitpose-base-simple")])
def test_vitpose_from_a_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        for file in fetching.HUB_FILES:
            (tmp_path / name / file).write_text(f"{name} {file}")
    folder = cache.get("vitpose", source=tmp_path)
    assert (folder / "pose" / "config.json").read_text() == f"{names[1]} config.json"
    assert cache.find("vitpose") == folder
    (tmp_path / names[1] / "model.safetensors").unlink()
    with pytest.raises(AssetError, match="does not hold") as caught:
        cache.get("vitpose", source=tmp_path)
    assert fetching.HUB["pose"] in caught.value.hint


def test_vitpose_from_the_hub_takes_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched is the commit that was asked for, named in the record."""
    import huggingface_hub

    asked = []

    class Api:
        def model_info(self, name: str) -> object:
            return type("Info", (), {"sha": f"commit-of-{name.rpartition('/')[2]}"})

    def snapshot(name: str, *, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
        asked.append((name, revision))
        local_dir.mkdir(parents=True)
        for file in allow_patterns:
            (local_dir / file).write_text(file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    record = json.loads((cache.get("vitpose") / cache.RECORD).read_text())
    assert asked == [(name, f"commit-of-{name.rpartition('/')[2]}") for name in fetching.HUB.values()]
    assert record["source"] == ", ".join(f"{name}@{commit}" for name, commit in asked)

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AssetError, match="no route to host") as caught:
        cache.get("vitpose", again=True)
    assert "--from" in caught.value.hint and "and more" not in caught.value.message


def test_the_command_tries_out_what_it_placed(tmp_path: Path) -> None:
    """`hmr assets get --from`: files that cannot be opened are refused with exit 4, and not placed."""
    pytest.importorskip("onnxruntime")
    for name in fetching.RTMPOSE:
        (tmp_path / name).write_bytes(b"<!DOCTYPE html>")
    done = hmr("assets", "get", "rtmpose", "--from", tmp_path, HMR_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 4 and "cannot be loaded" in done.stderr and done.stdout == ""
    assert not (tmp_path / "cache" / "rtmpose" / "pose.onnx").exists()


def test_a_short_answer_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reply(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {"Content-Length": "10"}

    monkeypatch.setattr(fetching.urllib.request.OpenerDirector, "open", lambda *_, **__: Reply(b"12345"))
    with pytest.raises(AssetError, match="5 of 10 bytes"):
        fetching.download("http://x.invalid/a.zip", tmp_path / "a.zip", lambda text: None)
