"""Keypoints as BODY_25."""

from __future__ import annotations

import numpy as np

from stages.keypoints import joint_sets
from stages.keypoints.body25 import to_body25


def test_joints_are_taken_by_name_and_none_is_derived() -> None:
    keypoints = np.ones((2, 5, 3), np.float32)
    keypoints[1, 0, 0] = np.nan
    keypoints[1, 3, 2] = -1
    out = to_body25(keypoints, ("left_knee", "pelvis", "left_index", "left_shoulder", "right_shoulder"))
    names, visible = joint_sets.SETS["body25"], out[..., 2] > 0
    assert {names[k] for k in np.flatnonzero(visible[0])} == {"mid_hip", "left_knee", "left_shoulder", "right_shoulder"}
    assert {names[k] for k in np.flatnonzero(visible[1])} == {"mid_hip", "right_shoulder"}
    assert np.isfinite(out).all() and out[..., 2].min() == 0 and out.dtype == np.float32
