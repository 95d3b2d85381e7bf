"""Files that hmr uses but does not ship: where they are, which are missing and how to get them.

    cache.find("blazepose")   -> folder or None
    cache.get("blazepose")    -> folder, fetched when it is not there

One cache folder for all of them: $HMR_CACHE, else ~/.cache/hmr. A file stands under its final name only when it is
whole and checked. `fetched.json` beside the files says where they came from and their SHA-256.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from stages.errors import AssetError, MachineError, UsageError
from stages.files import fetching
from stages.files.atomic import replacing, write_bytes
from stages.files.folders import cache_dir
from stages.files.hashing import sha256_of

RECORD = "fetched.json"


@dataclasses.dataclass(frozen=True)
class Asset:
    """A folder of the cache: its files (name -> SHA-256, '' where none is known), use, licence, source.

    What has no SHA-256 here is checked by what opens it; the observed one is recorded.
    """

    name: str
    files: dict[str, str]
    used_by: str
    licence: str
    source: str
    hint: str
    fetch: Callable[[Path, Path | None, fetching.Tell], str]


def find(name: str) -> Path | None:
    """The folder of an asset, or None while one of its files is missing. Raises UsageError for an unknown name."""
    asset, folder = _asset(name), cache_dir() / name
    return folder if all((folder / file).is_file() for file in asset.files) else None


def get(
    name: str,
    *,
    again: bool = False,
    source: Path | None = None,
    check: Callable[[Path], None] = lambda folder: None,
    tell: fetching.Tell = lambda text: None,
) -> Path:
    """The folder of an asset, fetched if needed (`again`: fetched anew). Several processes may do so at once.

    source: a folder that has the files, instead of the network. check: raises AssetError unless a folder's files are
    what they should be; asked before they are placed. Raises AssetError when the asset is not available (no network,
    wrong content), MachineError when the cache cannot be written.
    """
    asset, folder = _asset(name), cache_dir() / name
    if not again and source is None and find(name) and not _wrong(asset, folder):
        return folder
    if source is not None and not source.is_dir():
        raise UsageError(f"--from {source}: no such folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_dir()) as temporary:
            work = Path(temporary)
            origin = asset.fetch(work, source, tell)
            if wrong := _wrong(asset, work):
                raise AssetError(
                    f"{name}: {wrong} is not the file that hmr knows (SHA-256 differs)",
                    "the download was altered on its way; try again, or from another network",
                )
            check(work)
            record = {"source": origin, "sha256": {file: sha256_of(work / file) for file in asset.files}}
            for file in asset.files:
                (folder / file).parent.mkdir(exist_ok=True)
                with replacing(folder / file, temporary=work / file):
                    pass
            write_bytes(folder / RECORD, json.dumps(record, indent=1).encode())
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


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="blazepose",
            files={
                "pose_detection.tflite": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
                "pose_landmark_full.tflite": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
            },
            used_by="hmr detect --detector blazepose",
            licence="Apache-2.0",
            source=f"the wheel {fetching.WHEEL} of the Python package index (35 MB; 9 MB are kept)",
            hint="hmr assets get blazepose",
            fetch=fetching.blazepose,
        ),
        Asset(
            name="rtmpose",
            files=dict.fromkeys(fetching.RTMPOSE, ""),
            used_by="hmr detect --detector rtmpose (crowds, without a GPU)",
            licence="Apache-2.0",
            source=" and ".join(fetching.ZOO + archive for archive in fetching.RTMPOSE.values()),
            hint="hmr assets get rtmpose",
            fetch=fetching.rtmpose,
        ),
        Asset(
            name="vitpose",
            files={f"{part}/{file}": "" for part in fetching.HUB for file in fetching.HUB_FILES},
            used_by="hmr detect --detector vitpose (crowds, on a GPU)",
            licence="Apache-2.0",
            source=f"{' and '.join(fetching.HUB.values())} of the Hugging Face hub (510 MB)",
            hint="hmr assets get vitpose",
            fetch=fetching.vitpose,
        ),
    )
}
