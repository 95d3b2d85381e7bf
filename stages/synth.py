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
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import Column
from stages.errors import UsageError
from stages.params import param
from stages.synthetic.sets import SETS, SIZE, VERSION, SynthSet

LEAST = 4  # keypoints that must be seen for a person to become a row


@dataclasses.dataclass(frozen=True)
class Params:
    """Which set, and how its keypoints are made."""

    noise: bool = param(True, "Disturb keypoints as detectors do; without it they are the truth.")
    pictures: int = param(0, "Only the first pictures of the set; 0 = all. Scores of a shortened set are marked.")
    poses: str = param("", "For training: a motion file (mocap_smpl24.npz) to draw poses from, not the benchmark's.")


COLUMNS = (
    Column("keypoints/xy", "f4", ("R", 17, 2), "px", "disturbed COCO keypoints"),
    Column("keypoints/score", "f4", ("R", 17), "", "0 = not given"),
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


def spec_of(name: str) -> SynthSet:
    """The set of that name. Raises UsageError, naming the sets there are."""
    if name not in SETS:
        raise UsageError(f"no synthetic set {name!r}", f"choose one of {', '.join(SETS)}")
    return SETS[name]


def run(name: str, out: Path, params: Params, run: Any) -> Path:
    """Make set `name`: artefact `out` (*.detections.h5), and pictures in a folder named by set and poses beside it."""
    from stages.engine.runner import Job, run_frames
    from stages.keypoints.joint_sets import get

    spec, settings = spec_of(name), dataclasses.asdict(params)
    if params.pictures < 0:
        raise UsageError(f"--pictures {params.pictures}: there cannot be fewer than none", "0 makes the whole set")
    count = min(params.pictures or spec.pictures, spec.pictures)
    if params.poses:
        if spec.frames > 1:
            raise UsageError(f"--poses draws single poses, {name} shows motion", "choose another set")
        from stages.synthetic.scenes import motion

        spec, count = dataclasses.replace(spec, motion=params.poses), params.pictures or spec.pictures
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
        columns=COLUMNS,
        group_attrs=groups,
        attrs={
            "root": ".",
            "benchmark": {"set": name, "version": VERSION, "whole": count == spec.pictures and not spec.motion},
        },
        batch_size=8,
    )
    # Pictures of training beside those of the benchmark would replace them.
    folder = Path(out).parent / (f"{name}-{settings['poses'][:8]}" if params.poses else name)
    return run_frames(job, count, lambda: _maker(spec, folder, params), out, run)  # type: ignore[return-value]


def _maker(spec: SynthSet, folder: Path, params: Params) -> Any:
    """frames -> (frame columns, row columns, columns), writing the pictures on the way."""
    import torch

    from stages.media.images import file_fingerprint, write_image
    from stages.smpl.body import load_body

    body = load_body("embedded")
    folder.mkdir(parents=True, exist_ok=True)

    def make(numbers: np.ndarray) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        people: list[dict[str, np.ndarray]] = []
        for number in numbers:
            with torch.no_grad():
                frame, rows, image = _picture(spec, int(number), body, params)
            path = folder / f"{number:05d}.jpg"
            write_image(path, image)
            frame |= {"name": f"{folder.name}/{path.name}", "file": file_fingerprint(path)}
            frames.append(frame)
            people.append(rows)
        stacked = {name: np.concatenate([p[name] for p in people]) for name in people[0]}
        rows = {"frame": stacked.pop("frame"), "box": stacked.pop("box"), "track": stacked.pop("track")}
        return {name: np.array([f[name] for f in frames]) for name in frames[0]}, rows, stacked

    return make


def _picture(
    spec: SynthSet, number: int, body: Any, params: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """One picture: its frame columns, its people's rows (truth and disturbed keypoints), RGB."""
    import torch

    from stages.geometry.cameras import project
    from stages.keypoints.noise import disturb
    from stages.synthetic.renderer import render
    from stages.synthetic.scenes import make_scene

    scene = make_scene(spec, number, body)
    # copies, which torch aligns: the last bit of a product can depend on it
    tensors = [torch.tensor(x) for x in (scene.global_orient, scene.body_pose, scene.betas, scene.transl)]
    vertices = body(*tensors).vertices
    points = body.regress(vertices, "coco17")
    picture = render(scene, body, vertices, points)
    K = torch.tensor(scene.K)
    truth, outline = project(points, K).numpy(), project(vertices, K).numpy()

    # Keyed apart from the scene's own numbers: other keypoints must not mean another picture.
    rng = np.random.Generator(np.random.Philox(key=scene.background, counter=[0, 0, 0, 1 + number]))
    inside = (truth >= 0).all(-1) & (truth <= np.array(SIZE) - 1).all(-1)
    given = inside & (picture.seen | (rng.random(inside.shape) < 0.5))
    score = np.where(picture.seen, rng.uniform(0.6, 1, inside.shape), rng.uniform(0.2, 0.6, inside.shape)) * given
    noisy = disturb(truth, given, rng, crowded=spec.crowded) if params.noise else truth
    box = np.concatenate([outline.min(1), outline.max(1)], 1).clip(0, np.tile(SIZE, 2) - 1)

    keep = picture.seen.sum(1) >= LEAST
    frame = {"size": SIZE, "K": scene.K, "K_source": 2, "time": scene.time, "view": scene.view, "source": -1}
    rows = {
        "frame": np.full(len(keep), number),
        "box": box,
        "track": np.arange(len(keep)) + 100 * (number // spec.frames) if spec.frames > 1 else np.full(len(keep), -1),
        "keypoints/xy": np.where(given[..., None], noisy, np.nan),
        "keypoints/score": score,
        "extra/global_orient": scene.global_orient,
        "extra/body_pose": scene.body_pose,
        "extra/betas": scene.betas,
        "extra/transl": scene.transl,
        "extra/keypoints": truth,
        "extra/seen": picture.seen,
        "extra/world_to_camera": np.repeat(scene.world_to_camera[None], len(keep), 0),
    }
    return frame, {name: values[keep] for name, values in rows.items()}, picture.image


def draw(name: str, number: int) -> np.ndarray:
    """Picture `number` of a set alone, RGB uint8."""
    import torch

    from stages.smpl.body import load_body

    with torch.no_grad():
        return _picture(spec_of(name), number, load_body("embedded"), Params())[2]
