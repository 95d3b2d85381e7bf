"""Human mesh recovery from Python: what the command line does, stage by stage or as a whole chain.

    from pathlib import Path
    from stages import RunOptions, evaluate, open_artefact, open_dataset, recover, refine, run_chain, synth
    from stages.params import SynthParams

    # A rendered scene with exact truth. Images of your own: run_chain(["photo.jpg"], Path("out")).
    scene = synth.run("synth-pc", Path("scene.detections.h5"), SynthParams(pictures=1), RunOptions())

    # As `hmr run --detections scene.detections.h5 -o out`: meshes, overlays, report.html, out/models.
    written = run_chain([], Path("out"), detections=scene)
    with open_artefact(written["refined"]) as people:
        pose = people.read("smpl/body_pose")  # (R, 23, 3) axis-angle, rad
        transl = people.read("smpl/transl")  # (R, 3) m, camera coordinates of OpenCV

    # Stage by stage, in memory: the target is None.
    meshes = recover.run(scene, None)
    refined = refine.run(meshes, scene, None)
    scores = evaluate.run(refined, open_dataset(str(scene)), None)
    print(scores.attrs["summary"]["mpjpe"])  # mm

Public are the names below, the settings in `stages.params`, the errors in `stages.errors` and the contracts in
`stages.models.base`, `stages.models.detectors.base` and `stages.datasets.base`; everything else may move. Each name is
imported when it is first used, so `import stages` is cheap.

detect, heatmaps, features, recover, refine, evaluate, view, export, synth: modules of the stages; each has `run`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages import detect, evaluate, export, features, heatmaps, recover, refine, synth, view
    from stages.artefacts.hdf5 import open_artefact
    from stages.artefacts.table import Artefact, in_memory
    from stages.engine.job import RunOptions
    from stages.pipeline import detect_in_memory, merge, open_dataset, recover_dataset, run_chain

_HOMES = {
    "open_artefact": "artefacts.hdf5",
    "Artefact": "artefacts.table",
    "in_memory": "artefacts.table",
    "RunOptions": "engine.job",
    "detect_in_memory": "pipeline",
    "merge": "pipeline",
    "open_dataset": "pipeline",
    "recover_dataset": "pipeline",
    "run_chain": "pipeline",
}
_STAGES = ("detect", "heatmaps", "features", "recover", "refine", "evaluate", "view", "export", "synth")
__all__ = [
    "Artefact",
    "RunOptions",
    "detect",
    "detect_in_memory",
    "evaluate",
    "export",
    "features",
    "heatmaps",
    "in_memory",
    "merge",
    "open_artefact",
    "open_dataset",
    "recover",
    "recover_dataset",
    "refine",
    "run_chain",
    "synth",
    "view",
]


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"stages.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"stages.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'stages' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
