"""Body files: the embedded default, our own .npz, and SMPL's own files, which are read without running what is in them.

A body file is arrays: v_template (V, 3), shapedirs (V, 3, B), posedirs (V, 3, 207) or absent, J_regressor (24, V), weights
(V, 24), kintree_table (2, 24), f (F, 3); ours add landmarks, vertex_ids and `about`, a JSON of name, topology, gender, licence, source.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError
from stages.human.body import Body

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "body.npz"


def read_body(name_or_path: str, gender: str = "neutral") -> Body:
    """The body behind "embedded" or a file."""
    path = EMBEDDED if name_or_path == "embedded" else Path(name_or_path)
    if not path.exists():
        raise AssetError(f"body model {name_or_path}: no such file", "hmr body-model list shows what is there")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return build(arrays)


def build(arrays: dict[str, Any]) -> Body:
    about = json.loads(str(arrays["about"]))
    return Body.from_arrays(
        arrays["v_template"],
        arrays["shapedirs"],
        arrays.get("posedirs"),
        arrays["J_regressor"],
        arrays["weights"],
        [-1, *arrays["kintree_table"][0, 1:].tolist()],
        arrays["f"],
        name=about["name"],
        topology=about["topology"],
        gender=about["gender"],
        licence=about["licence"],
        landmarks=dict(zip(arrays["landmark_names"].tolist(), arrays["landmarks"], strict=True)),
        vertex_ids=dict(zip(arrays["vertex_id_names"].tolist(), arrays["vertex_ids"].tolist(), strict=True)),
    )
