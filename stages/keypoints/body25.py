"""Keypoints of any joint set as OpenPose's BODY_25, the set that refiners read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.keypoints import joint_sets


def to_body25(keypoints: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Keypoints (n, J, 3) x, y, confidence of the joints `names` -> (n, 25, 3), by name.

    A joint that is absent or not finite becomes 0, 0, 0. None is derived from others: without a neck in `names`, the
    neck is not visible. Negative confidences become 0.
    """
    out = joint_sets.convert(keypoints, names, "body25", derive=False)
    out[~np.isfinite(out).all(-1)] = 0
    out[..., 2] = np.maximum(out[..., 2], 0)
    return out
