"""Synthetic scenes with exact ground truth: pictures, keypoints from a stated error model, and the truth itself.

    hmr synth synth-oc -o bench/synth-oc.detections.h5

Writes one detections artefact, and its pictures in a folder beside it. Keypoints come from the error model of
stages/keypoints/noise.py, not from a detector, so that results depend on the recoverer alone: joints outside the
picture or hidden deeper than 14 cm are given half of the time, all are disturbed, scores are drawn higher for what can
be seen. The columns of group `extra` are the truth, which `hmr eval` reads. A picture depends on the set's version and
its number alone: the same bytes on every machine with the same libraries.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from stages.artefacts.kinds import Column, required_columns
from stages.errors import UsageError
from stages.params import SynthParams
from stages.params.rules import check
from stages.synthetic.examples import example_maker, spec_of
from stages.synthetic.sets import VERSION

TRUTH = (
    Column("extra/global_orient", "f4", ("R", 3), "rad", "truth: root, camera frame"),
    Column("extra/body_pose", "f4", ("R", 23, 3), "rad", "truth"),
    Column("extra/betas", "f4", ("R", 10), "", "truth"),
    Column("extra/transl", "f4", ("R", 3), "m", "truth, camera frame"),
    Column("extra/keypoints", "f4", ("R", 17, 2), "px", "truth"),
    Column("extra/seen", "u1", ("R", 17), "", "1 = the keypoint can be seen in the picture"),
    Column("extra/world_to_camera", "f4", ("R", 4, 4), "m", "truth: where the camera was"),
)
GROUP_ATTRS = {
    "keypoints": {"joint_set": "coco17", "score_definition": "drawn: 0.6 to 1 seen, 0.2 to 0.6 hidden, 0 not given"},
    "extra": {"body_model": "embedded"},
}


def run(name: str, out: Path, params: SynthParams, run: Any) -> Path:
    """Make set `name`: artefact `out` (*.detections.h5), and images in a folder named by set and poses beside it."""
    from stages.engine.job import Job
    from stages.engine.runner import run_frames
    from stages.keypoints.joint_sets import get
    from stages.params.stored import to_json

    params = check(params)
    spec, settings = spec_of(name), json.loads(to_json(params))
    count = min(params.pictures or spec.images, spec.images)
    if params.poses:
        if spec.frames > 1:
            raise UsageError(f"--poses draws single poses, {name} shows motion", "choose another set")
        from stages.synthetic.scenes import motion

        spec, count = dataclasses.replace(spec, motion=params.poses), params.pictures or spec.images
        settings["poses"] = motion(params.poses).sha256
    else:
        del settings["poses"]
    groups: dict[str, dict[str, Any]] = {
        "keypoints": {"joints": list(get("coco17")), **GROUP_ATTRS["keypoints"]},
        "extra": GROUP_ATTRS["extra"],
    }
    job = Job(
        stage="synth",
        kind="detections",
        params={"set": name, "version": VERSION, **settings},
        inputs={},
        columns=(*required_columns("detections"), *TRUTH),
        group_attrs=groups,
        attrs={
            "root": ".",
            "benchmark": {"set": name, "version": VERSION, "whole": count == spec.images and not spec.motion},
        },
        batch_size=8,
    )
    # Images of training beside those of the benchmark would replace them.
    folder = Path(out).parent / (f"{name}-{settings['poses'][:8]}" if params.poses else name)
    return run_frames(job, count, lambda: example_maker(spec, folder, params), out, run)  # type: ignore[return-value]
