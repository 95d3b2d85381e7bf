"""DPMesh (CVPR 2024): diffusion features and a transformer regressor. Importing this is cheap; loading a checkpoint
imports diffusers."""

from stages.models.dpmesh.extractors import DPMeshExtractor, DPMeshLatents
from stages.models.dpmesh.recoverer import DPMeshRecoverer

__all__ = ["DPMeshExtractor", "DPMeshLatents", "DPMeshRecoverer"]
