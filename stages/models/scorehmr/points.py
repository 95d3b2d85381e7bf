"""The 25 points that ScoreHMR's keypoint loss reads, in OpenPose BODY_25 order."""

from __future__ import annotations

# SMPL's topology only: nose, right and left eye, right and left ear, left big and small toe and heel, the same right.
OPENPOSE25_VERTICES = [332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787]
# For each point the joint (below 24) or 24 + place in the list above. Neck, hips and mid-hip are SMPL's own joints.
OPENPOSE25_MIX = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34]
