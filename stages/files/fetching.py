"""How each asset's files are obtained: by pip, over HTTP, from the Hugging Face hub, or from a folder of the user's.

A function of this module puts the files into a working folder, in the layout of the cache, and returns where they came
from; `cache.get` checks and places them. pip, urllib and the hub's client take proxies from the environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.errors import AssetError
from stages.files.folders import cache_dir

Tell = Callable[[str], None]

# The last wheel that contains both networks. It is unpacked, never installed, since it requires numpy 1.
WHEEL = "mediapipe==0.10.21"
BLAZEPOSE = {
    "pose_detection.tflite": "mediapipe/modules/pose_detection",
    "pose_landmark_full.tflite": "mediapipe/modules/pose_landmark",
}
ANY_MACHINE = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")

ZOO = "https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/onnx_sdk/"
RTMPOSE = {  # our name -> the archive with one .onnx in it
    "detector.onnx": "yolox_m_8xb8-300e_humanart-c2c7a14a.zip",
    "pose.onnx": "rtmpose-m_simcc-body7_pt-body7_420e-256x192-e48f03d0_20230504.zip",
}

HUB = {"detector": "PekingU/rtdetr_r50vd_coco_o365", "pose": "usyd-community/vitpose-base-simple"}
HUB_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def blazepose(work: Path, source: Path | None, tell: Tell) -> str:
    """Both .tflite files, from a folder with them or with the wheel, else out of the wheel by pip's own download."""
    if source is not None and all((source / name).is_file() for name in BLAZEPOSE):
        return _copy(source, dict(zip(BLAZEPOSE, BLAZEPOSE, strict=True)), work)
    wheels = sorted((source or work).glob("mediapipe-*.whl"))
    if source is None:
        tell(f"{WHEEL} by pip")
        _pip_download(work)
        wheels = list(work.glob("*.whl"))
    if not wheels:
        raise AssetError(
            f"{source} holds neither {' and '.join(BLAZEPOSE)} nor the wheel {WHEEL}", "pip download --no-deps " + WHEEL
        )
    try:
        with zipfile.ZipFile(wheels[-1]) as wheel:
            for name, folder in BLAZEPOSE.items():
                _extract(wheel, f"{folder}/{name}", work / name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AssetError(f"blazepose: {wheels[-1].name} is no wheel of mediapipe: {error}", "try again") from error
    return f"{WHEEL} by pip" if source is None else str(wheels[-1])


def rtmpose(work: Path, source: Path | None, tell: Tell) -> str:
    """Both .onnx files, from a folder with them or with the authors' archives, else the archives over HTTP."""
    if source is not None and all((source / name).is_file() for name in RTMPOSE):
        return _copy(source, dict(zip(RTMPOSE, RTMPOSE, strict=True)), work)
    for name, archive in RTMPOSE.items():
        path = source / archive if source is not None else work / archive
        if source is None:
            download(ZOO + archive, path, tell)
        elif not path.is_file():
            raise AssetError(f"{source} holds neither {name} nor {archive}", f"download {ZOO}{archive}")
        try:
            with zipfile.ZipFile(path) as opened:
                members = [member for member in opened.namelist() if member.endswith(".onnx")]
                if len(members) != 1:
                    raise AssetError(f"{path.name} holds {len(members)} .onnx files, not one", "download it again")
                _extract(opened, members[0], work / name)
        except zipfile.BadZipFile as error:
            raise AssetError(f"{path.name} is no whole zip: {error}", "download it again") from error
    return ZOO if source is None else str(source)


def vitpose(work: Path, source: Path | None, tell: Tell) -> str:
    """RT-DETR's and ViTPose's folders, from a folder with detector/ and pose/, else from the Hugging Face hub."""
    if source is not None:
        for part, name in HUB.items():
            places = (source / part, source / name.rpartition("/")[2])
            folder = next((p for p in places if all((p / file).is_file() for file in HUB_FILES)), None)
            if folder is None:
                raise AssetError(
                    f"{source / part} does not hold {', '.join(HUB_FILES)}",
                    f"hf download {name} --local-dir {places[0]}",
                )
            _copy(folder, {file: f"{part}/{file}" for file in HUB_FILES}, work)
        return str(source)
    import huggingface_hub

    commits = []
    for part, name in HUB.items():
        tell(f"{name} from the Hugging Face hub")
        try:
            commit = huggingface_hub.HfApi().model_info(name).sha
            huggingface_hub.snapshot_download(
                name, revision=commit, allow_patterns=list(HUB_FILES), local_dir=work / part
            )
        except Exception as error:  # the hub's client has no common base class for "no network"
            raise AssetError(
                f"vitpose: {name} could not be downloaded: {first_line(error)}", offline("vitpose")
            ) from error
        commits.append(f"{name}@{commit}")
    return ", ".join(commits)


def download(url: str, target: Path, tell: Tell) -> None:
    """One file over HTTP, whole or not at all. Raises AssetError, with the reason and a way without network."""
    name = url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "hmr"}), timeout=60) as reply:
            size = int(reply.headers.get("Content-Length") or 0)
            tell(f"{url} ({size / 1e6:.0f} MB)")
            with target.open("wb") as file:
                shutil.copyfileobj(reply, file, 1 << 20)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise AssetError(f"{name} could not be downloaded: {first_line(reason)}", offline("rtmpose")) from error
    if size and target.stat().st_size != size:
        raise AssetError(f"{name}: {target.stat().st_size} of {size} bytes arrived", "try again")


def offline(name: str) -> str:
    """What to do without network."""
    return (
        f"with network: hmr assets get {name}; without: hmr assets get {name} --from FOLDER, with the files of another "
        f"machine (there: {cache_dir() / name}); or bring your own keypoints: hmr import --help"
    )


def first_line(error: object) -> str:
    """The first line of an error's text, at most 200 characters; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _copy(source: Path, names: dict[str, str], work: Path) -> str:
    for name, target in names.items():
        try:
            opened = (source / name).open("rb")
        except OSError as error:
            raise AssetError(f"{source / name} cannot be read: {error.strerror}") from error
        (work / target).parent.mkdir(parents=True, exist_ok=True)
        with opened, (work / target).open("wb") as file:
            shutil.copyfileobj(opened, file, 1 << 20)
    return str(source)


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _pip_download(work: Path) -> None:
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    command += ["--no-deps", "--only-binary", ":all:", *ANY_MACHINE, "--dest", str(work), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise AssetError("blazepose: pip did not finish in 15 minutes", "is the network up?") from error
    if done.returncode:
        reason = _reason(done.stderr.splitlines())
        raise AssetError(f"blazepose: {WHEEL} could not be downloaded: {reason}", offline("blazepose"))


def _pip() -> list[str]:
    """How to call pip: the installed one, else the one that Python bundles for new environments (uv installs none)."""
    if importlib.util.find_spec("pip") is None:
        bundled = Path(os.__file__).parent / "ensurepip" / "_bundled"
        for wheel in sorted(bundled.glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    return [sys.executable, "-m", "pip"]


def _reason(stderr: Iterable[str]) -> str:
    """The line of pip's stderr that says why."""
    lines = [line.strip() for line in stderr if line.strip()]
    if any("Temporary failure in name resolution" in line or "Max retries" in line for line in lines):
        return "no network"
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    if any("from versions: none" in line for line in errors):
        return "the package index did not answer or does not have it"
    return (errors or lines or ["pip failed and printed nothing"])[0][:200]
