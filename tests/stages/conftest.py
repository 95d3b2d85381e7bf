"""A stand-in DPMesh checkpoint, made once per session: 84 million numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import dpmesh_standin as standin


@pytest.fixture(scope="session")
def dpmesh_tensors() -> dict[str, torch.Tensor]:
    """The tensors of manifest_small.json under their published names."""
    return standin.tensors()


@pytest.fixture(scope="session")
def dpmesh_checkpoint(dpmesh_tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' form: flat, `module.`, every alias, one storage."""
    path = tmp_path_factory.mktemp("dpmesh") / "best_ckpt.pth.tar"
    torch.save(standin.with_aliases(dpmesh_tensors), path)
    return path
