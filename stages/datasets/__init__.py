"""Data sets by name: what is read from where. One file per data set; none is imported before it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.errors import AssetError, UsageError
from stages.params import SynthParams
from stages.synthetic.sets import SETS

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
    "mannequin": "prohmr",
    "ochuman": "labelled",
    "crowdpose": "labelled",
}


def open_dataset(name: str, data: Path | None = None, run: Any = None, *, partial: bool = False) -> Any:
    """The data set of that name (stages.datasets.base.Dataset), or of a *.detections.h5 made by `hmr synth`.

    data: the folder where a licensed data set lies, or one of its annotation files; the synthetic sets are built into
    the cache when first asked for. partial: accept a licensed set that is not whole; scores are marked.
    Raises UsageError for an unknown name, AssetError for files that are missing or damaged, or rows that are missing.
    """
    from stages.datasets.synthetic import SynthData

    if name.endswith(".h5"):
        return SynthData(name)
    if name in SETS:
        return SynthData(built(name, run))
    if name not in LAYOUTS:
        raise UsageError(
            f"no data set {name!r}", f"choose one of {', '.join(names())}, or give a file made by hmr synth"
        )
    return _licensed(name, data, partial)


def names() -> list[str]:
    """Every data set that `hmr eval` knows."""
    return [*SETS, *LAYOUTS]


def _licensed(name: str, data: Path | None, partial: bool) -> Any:
    """Annotation files of the reference programs where they are, else the original layout."""
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


def built(name: str, run: Any = None) -> Path:
    """A whole synthetic set in the cache, made now if it is not there (minutes on two cores)."""
    import dataclasses

    from stages import synth
    from stages.engine.job import RunOptions
    from stages.files.cache import cache_dir
    from stages.synthetic.sets import VERSION

    run = dataclasses.replace(
        run or RunOptions(), shard=(0, 1), batch_size=None, force=False, fresh=False, dry_run=False
    )
    folder = cache_dir() / f"synth-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    return synth.run(name, folder / f"{name}.detections.h5", SynthParams(), run)
