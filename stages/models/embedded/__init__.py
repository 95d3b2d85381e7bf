"""The embedded recoverer: keypoints in, SMPL parameters of the free body out, with pip alone."""

from stages.models.embedded.recoverer import EmbeddedRecoverer

__all__ = ["EmbeddedRecoverer"]
