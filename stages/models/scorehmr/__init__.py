"""ScoreHMR: refinement of SMPL estimates by a diffusion prior under keypoints, time and views."""

from stages.models.scorehmr.refiner import Evidence, Result, ScoreHmrRefiner, Settings

__all__ = ["Evidence", "Result", "ScoreHmrRefiner", "Settings"]
