"""ScoreHMR: refinement of SMPL estimates by a diffusion prior under keypoints, time and views."""

from stages.models.scorehmr.refiner import ScoreHmrRefiner

__all__ = ["ScoreHmrRefiner"]
