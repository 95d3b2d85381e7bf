"""ScoreHMR: refinement of SMPL estimates by a diffusion prior under keypoints, time and views."""

from stages.models.scorehmr.refiner import EstimateBatch, RefinedBatch, ScoreHmrRefiner, ScoreHmrSettings

__all__ = ["EstimateBatch", "RefinedBatch", "ScoreHmrRefiner", "ScoreHmrSettings"]
