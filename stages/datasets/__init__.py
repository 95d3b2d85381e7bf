"""Data sets by name: what is read from where. One file per data set; none is imported before it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.errors import UsageError
from stages.synth.sets import SETS


def open_dataset(name: str, data: Path | None = None, run: Any = None) -> Any:
    """The data set of that name (stages.datasets.truth.Dataset), or of a *.detections.h5 made by `hmr synth`.

    data: the folder where a licensed data set lies; the synthetic sets are built into the cache when first asked for.
    Raises UsageError for an unknown name, AssetError for files that are missing or damaged.
    """
    from stages.datasets.synth import SynthData

    if name.endswith(".h5"):
        return SynthData(name)
    if name in SETS:
        return SynthData(built(name, run))
    raise UsageError(f"no data set {name!r}", f"choose one of {', '.join(names())}, or give a file made by hmr synth")


def names() -> list[str]:
    """Every data set that `hmr eval` knows."""
    return [*SETS]


def built(name: str, run: Any = None) -> Path:
    """A whole synthetic set in the cache, made now if it is not there (minutes on two cores)."""
    import dataclasses

    from stages.assets import cache_dir
    from stages.progress import Run
    from stages.synth import build
    from stages.synth.sets import VERSION

    run = dataclasses.replace(run or Run(), shard=(0, 1), batch_size=None, force=False, fresh=False, dry_run=False)
    folder = cache_dir() / f"synth-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    return build.run(name, folder / f"{name}.detections.h5", build.Params(), run)
