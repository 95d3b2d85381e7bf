"""Data sets by name: what is read from where. One file per data set; none is imported before it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import AssetError, UsageError

if TYPE_CHECKING:
    from stages.datasets.base import Dataset

# name -> module of stages/datasets that reads the original layout
LAYOUTS = {
    "3dpw": "threedpw",
    "3dpw-oc": "threedpw",
    "3dpw-pc": "threedpw",
    "3dpw-crowd": "threedpw",
    "3doh": "threedoh",
    "panoptic-haggling": "panoptic",
    "panoptic-mafia": "panoptic",
    "panoptic-ultimatum": "panoptic",
    "panoptic-pizza": "panoptic",
    "emdb": "emdb",
    "h36m": "h36m",
    "h36m-p2": "h36m",
    "h36m-multiview": "h36m",
    "mannequin": "prohmr_npz",
    "ochuman": "ochuman_crowdpose",
    "crowdpose": "ochuman_crowdpose",
}


def open_licensed(name: str, data: Path | None, partial: bool = False) -> Dataset:
    """A data set in its original layout, or in the annotation files of the reference programs where they are.

    data: its folder, or one of its annotation files. Raises UsageError without one, AssetError for missing files.
    """
    import importlib

    from stages.datasets import prohmr_npz, threedpw_json
    from stages.datasets.annotations import AnnotatedData
    from stages.datasets.files import contents

    if data is None:
        raise UsageError(f"{name} is licensed data that hmr does not carry", "--data FOLDER says where it is")
    if not data.exists():
        raise AssetError(f"{data}: no such file or folder", "--data FOLDER says where the data set is")
    given = data if data.is_file() else None
    if name in threedpw_json.FILES and (path := given or threedpw_json.file_of(name, data)) and path.suffix == ".json":
        with contents(path, threedpw_json.SOURCE):
            return AnnotatedData(threedpw_json.read(name, path, partial), data)
    if name in prohmr_npz.FILES:
        # 3DPW's files are ScoreHMR's protocol; beside the original ones they are used only when named.
        path = given or (None if name == "3dpw" and _has_poses(data) else prohmr_npz.file_of(name, data))
        if path is not None:
            with contents(path, prohmr_npz.SOURCE):
                return AnnotatedData(prohmr_npz.read(name, path, partial), data)
        if name == "mannequin":
            raise AssetError(
                f"{data / prohmr_npz.FILES[name][0]}: no such file", prohmr_npz.SOURCE.hint(prohmr_npz.FILES[name][0])
            )
    module = importlib.import_module(f"stages.datasets.{LAYOUTS[name]}")
    return AnnotatedData(module.read(name, data, partial), data)


def _has_poses(data: Path) -> bool:
    return any((data / sub / "sequenceFiles").is_dir() for sub in ("", "3DPW"))
