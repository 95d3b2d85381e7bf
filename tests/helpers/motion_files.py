"""A small motion-capture file for the trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def motion_file(path: Path, n: int = 40) -> Path:
    """A motion file of five clips: CMU subjects 01, 08, 14, another CMU source and HDM05; poses tell the clip."""
    subjects, sources = ["cmu01", "cmu08", "cmu14", "cmu06", "hdm05_bd"], ["cmu-amc", "cmu-daz", "cmu-daz"]
    clip = np.repeat(np.arange(5), n)
    rng = np.random.default_rng(0)
    poses = 0.2 * rng.standard_normal((5 * n, 24, 3))
    poses[:, 23, 2] = clip
    np.savez(path, poses=poses, seq=clip, seq_subject=subjects, seq_source=[*sources, "cmu-expmap", "hdm05"])
    return path
