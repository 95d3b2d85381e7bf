"""A stand-in DPMesh checkpoint and detections of test photos, made once per session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers import fixtures

PHOTOS = fixtures.PHOTOS / "free"
USED = ("000000214753.jpg",)
RULES = [
    ("module.backbone.unet.unet.", "module.backbone.sd_model."),
    ("module.backbone.encoder_vq.", "module.backbone.sd_model.first_stage_model."),
]


def tensors() -> dict[str, torch.Tensor]:
    """manifest_small.json filled: 84 million numbers."""
    recorded = fixtures.Fixtures("dpmesh")
    filled = recorded.weights.state_dict(recorded.index("manifest_small.json"))
    made = {n: torch.from_numpy(np.array(a)) for n, a in filled.items()}
    # A body whose skinning weights sum to one and whose joints stay near the body, so that results are finite.
    weights = made["module.human_model_layer.th_weights"].abs()
    made["module.human_model_layer.th_weights"] = weights / weights.sum(1, keepdim=True)
    return made


def with_aliases(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return made | {
        alias + n.removeprefix(name): t for alias, name in RULES for n, t in made.items() if n.startswith(name)
    }


def photos(folder: Path, used: tuple[str, ...] = USED) -> Path:
    """A detections file with the people of these photos: of one with two."""
    from stages.engine.job import RunOptions
    from stages.formats.coco import read_coco
    from stages.import_ import run
    from stages.params import ImportParams

    known = json.loads((PHOTOS / "person_keypoints.json").read_text())
    known["images"] = [i for i in known["images"] if i["file_name"] in used]
    ids = {i["id"] for i in known["images"]}
    known["annotations"] = [a for a in known["annotations"] if a["image_id"] in ids and a["num_keypoints"]]
    (folder / "people.json").write_text(json.dumps(known))
    params = ImportParams()
    out = folder / "people.detections.h5"
    run(read_coco(folder / "people.json", PHOTOS, params), PHOTOS, out, params, RunOptions())
    return out


def people(path: Path, rows: Any = None) -> Any:
    """People of a detections file, with their pictures."""
    from stages.artefacts.hdf5 import open_artefact
    from stages.loaders.people import PersonLoader

    table = open_artefact(path)
    return PersonLoader(table, root=PHOTOS)(np.arange(table.n_rows) if rows is None else np.asarray(rows))
