"""Stand-ins for the published PostoMETRO and FastMETRO checkpoints, written from their manifests."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import torch

from tests.helpers.fixtures import PARITY


def standin(name: str, out: Path) -> Path:
    """What `weights.py` writes of a manifest; a camera's scale that shows people, as a trained network's does."""
    listed = json.loads((PARITY / "postometro" / f"manifest_{name}.json").read_text())
    if "huge" in name:  # 2.6 GB are enough
        listed = {key: value for key, value in listed.items() if not key.startswith("extra_backbone.")}
    made = runpy.run_path(str(PARITY / "weights.py"))["state_dict"](listed)
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in made.items()}
    if "cam_predictor.bias" in tensors:
        tensors["cam_predictor.bias"][0] += 1
    torch.save({"state_dict": tensors}, out)
    return out
