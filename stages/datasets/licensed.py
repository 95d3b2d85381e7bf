"""Licensed data sets, in their original layout or in the annotation files of the reference programs."""

from __future__ import annotations

import importlib
from pathlib import Path

from stages.datasets import LAYOUTS, prohmr_npz, threedpw_json
from stages.datasets.annotations import AnnotatedData
from stages.datasets.files import contents
from stages.errors import AssetError, UsageError


def open_licensed(name: str, data: Path | None, partial: bool = False) -> AnnotatedData:
    """The data set `name` of LAYOUTS. data: its folder, or one of its annotation files · partial: it may be incomplete.

    Raises UsageError without `data`, AssetError for missing or damaged files.
    """
    if data is None:
        raise UsageError(f"{name} is licensed data that hmr does not carry", "--data FOLDER says where it is")
    if not data.exists():
        raise AssetError(f"{data}: no such file or folder", "--data FOLDER says where the data set is")
    file = data if data.is_file() else None
    if name in threedpw_json.FILES and (path := file or threedpw_json.file_of(name, data)) and path.suffix == ".json":
        with contents(path, threedpw_json.SOURCE):
            return AnnotatedData(threedpw_json.read(name, path, partial), data)
    if name in prohmr_npz.FILES:
        # 3DPW's files are ScoreHMR's protocol; beside the original ones they are used only when named.
        path = file or (None if name == "3dpw" and _has_poses(data) else prohmr_npz.file_of(name, data))
        if path is not None:
            with contents(path, prohmr_npz.SOURCE):
                return AnnotatedData(prohmr_npz.read(name, path, partial), data)
        if name == "mannequin":
            first = prohmr_npz.FILES[name][0]
            raise AssetError(f"{data / first}: no such file", prohmr_npz.SOURCE.hint(first))
    # The name of the module stands in LAYOUTS, so only the reader that is needed is imported.
    reader = importlib.import_module(f"stages.datasets.{LAYOUTS[name]}")
    return AnnotatedData(reader.read(name, data, partial), data)


def _has_poses(data: Path) -> bool:
    """Whether 3DPW's own files are there."""
    return any((data / sub / "sequenceFiles").is_dir() for sub in ("", "3DPW"))
