"""DPMesh (CVPR 2024): diffusion features and a transformer regressor. Importing this is cheap; loading a checkpoint
imports diffusers."""

from stages.models.dpmesh.rows import DPMeshExtractor, DPMeshLatents, DPMeshRecoverer

__all__ = ["DPMeshExtractor", "DPMeshLatents", "DPMeshRecoverer"]
