"""Files that hmr uses but does not ship: where they are, which are missing and how to get them.

    assets.find("blazepose")   -> folder or None
    assets.get("blazepose")    -> folder, fetched when it is not there

One cache folder for all of them: $HMR_CACHE, else ~/.cache/hmr. A file stands under its final name only when it is
whole and its SHA-256 is the pinned one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from stages.errors import AssetError, MachineError, UsageError
from stages.files.atomic import replacing
from stages.files.folders import cache_dir
from stages.files.hashing import sha256_of


@dataclasses.dataclass(frozen=True)
class Asset:
    """A folder of the cache: its files (name -> SHA-256, '' where any content is accepted), use, licence, source."""

    name: str
    files: dict[str, str]
    used_by: str
    licence: str
    source: str
    hint: str
    fetch: Callable[[Asset, Path], None] | None = None


def find(name: str) -> Path | None:
    """The folder of an asset, or None while one of its files is missing. Raises UsageError for an unknown name."""
    asset, folder = _asset(name), cache_dir() / name
    return folder if all((folder / file).is_file() for file in asset.files) else None


def get(name: str, *, again: bool = False) -> Path:
    """The folder of an asset, fetched if needed (`again`: fetched anew). Several processes may do so at once.

    Raises AssetError when it is not available (no network, wrong checksum, by hand only), MachineError when the
    cache cannot be written.
    """
    asset, folder = _asset(name), cache_dir() / name
    if not again and find(name) and not _wrong(asset, folder):
        return folder
    if asset.fetch is None:
        raise AssetError(f"{name} has to be fetched by hand: {asset.source}", asset.hint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_dir()) as work:
            asset.fetch(asset, Path(work))
            if wrong := _wrong(asset, Path(work)):
                raise AssetError(
                    f"{name}: {wrong} is not the file that hmr knows (SHA-256 differs)",
                    "the download was altered on its way; try again, or from another network",
                )
            for file in asset.files:
                with replacing(folder / file, temporary=Path(work) / file):
                    pass
    except OSError as error:
        raise MachineError(
            f"{name}: the cache {cache_dir()} cannot be written: {error.strerror or error}",
            "set HMR_CACHE to a folder that you may write",
        ) from error
    return folder


def status() -> list[tuple[str, bool, str, str]]:
    """(name, ready, where, hint) of every asset, for `hmr doctor` and `hmr assets list`."""
    return [(a.name, find(a.name) is not None, str(cache_dir() / a.name), a.hint) for a in ASSETS.values()]


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UsageError(f"no asset {name!r}", f"there are {', '.join(ASSETS)}")
    return ASSETS[name]


def _wrong(asset: Asset, folder: Path) -> str:
    """The first file that is missing or has another checksum than the pinned one, or ''."""
    for file, digest in asset.files.items():
        path = folder / file
        if not path.is_file() or (digest and sha256_of(path) != digest):
            return file
    return ""


# The last wheel that contains both networks. It is unpacked, never installed, since it requires numpy 1.
WHEEL = "mediapipe==0.10.21"
WHEEL_FOLDERS = ("mediapipe/modules/pose_detection", "mediapipe/modules/pose_landmark")
ANY_MACHINE = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")


def _fetch_blazepose(asset: Asset, work: Path) -> None:
    """Both .tflite files out of the wheel, by pip's own download (so that its mirrors, proxies and log-ins work)."""
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    command += ["--no-deps", "--only-binary", ":all:", *ANY_MACHINE, "--dest", str(work), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"{asset.name}: pip did not finish in 15 minutes", "is the network up?") from error
    if done.returncode:
        raise AssetError(f"{asset.name}: {WHEEL} could not be downloaded: {_reason(done.stderr)}", _offline(asset))
    wheels = list(work.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            for folder in WHEEL_FOLDERS:
                for member in wheel.namelist():
                    name = member.rpartition("/")[2]
                    if member == f"{folder}/{name}" and name in asset.files:
                        with wheel.open(member) as source, (work / name).open("wb") as target:
                            shutil.copyfileobj(source, target)
                            target.flush()
                            os.fsync(target.fileno())
    except (zipfile.BadZipFile, IndexError) as error:
        raise AssetError(f"{asset.name}: pip's download is no wheel: {error}", "try again") from error


def _pip() -> list[str]:
    """How to call pip: the installed one, else the one that Python bundles for new environments (uv installs none)."""
    if importlib.util.find_spec("pip") is None:
        bundled = Path(os.__file__).parent / "ensurepip" / "_bundled"
        for wheel in sorted(bundled.glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    return [sys.executable, "-m", "pip"]


def _reason(stderr: str) -> str:
    """The line of pip's stderr that says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("Temporary failure in name resolution" in line or "Max retries" in line for line in lines):
        return "no network"
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    if any("from versions: none" in line for line in errors):
        return "the package index did not answer or does not have it"
    return (errors or lines or ["pip failed and printed nothing"])[0][:200]


def _offline(asset: Asset) -> str:
    return (
        f"with network: hmr assets get {asset.name}; or copy {' and '.join(asset.files)} from another machine into "
        f"{cache_dir() / asset.name}; or bring your own keypoints: hmr import --help"
    )


_ZOO = "https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/onnx_sdk/"
_POSE = "rtmpose-m_simcc-body7_pt-body7_420e-256x192-e48f03d0_20230504.zip"
ASSETS: dict[str, Asset] = {
    "blazepose": Asset(
        name="blazepose",
        files={
            "pose_detection.tflite": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
            "pose_landmark_full.tflite": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        },
        used_by="hmr detect --detector blazepose (the default)",
        licence="Apache-2.0",
        source=f"the wheel {WHEEL} of the Python package index (35 MB; 9 MB are kept)",
        hint="hmr assets get blazepose",
        fetch=_fetch_blazepose,
    ),
    "rtmpose": Asset(
        name="rtmpose",
        files={"detector.onnx": "", "pose.onnx": ""},
        used_by="hmr detect --detector rtmpose",
        licence="Apache-2.0",
        source=f"{_ZOO}yolox_m_8xb8-300e_humanart-c2c7a14a.zip and {_ZOO}{_POSE}",
        hint="put detector.onnx and pose.onnx there, or name their folder by --detector-path; see docs/detectors.md",
    ),
}
