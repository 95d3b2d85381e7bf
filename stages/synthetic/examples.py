"""Images of a synthetic set with their rows: truth, visibility, and keypoints as a detector would give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import UsageError
from stages.params import SynthParams
from stages.synthetic.sets import SETS, SIZE, SynthSet

MIN_VISIBLE = 4  # keypoints that must be seen for a person to become a row


def spec_of(name: str) -> SynthSet:
    """The set of that name. Raises UsageError, naming the sets there are."""
    if name not in SETS:
        raise UsageError(f"no synthetic set {name!r}", f"choose one of {', '.join(SETS)}")
    return SETS[name]


def example_maker(spec: SynthSet, folder: Path, params: SynthParams) -> Any:
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
                frame, rows, image = make_example(spec, int(number), body, params)
            path = folder / f"{number:05d}.jpg"
            write_image(path, image)
            frame |= {"name": f"{folder.name}/{path.name}", "file": file_fingerprint(path)}
            frames.append(frame)
            people.append(rows)
        stacked = {name: np.concatenate([p[name] for p in people]) for name in people[0]}
        rows = {"frame": stacked.pop("frame"), "box": stacked.pop("box"), "track": stacked.pop("track")}
        return {name: np.array([f[name] for f in frames]) for name in frames[0]}, rows, stacked

    return make


def make_example(
    spec: SynthSet, number: int, body: Any, params: SynthParams
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """One image: its frame columns, its people's rows (truth and disturbed keypoints), RGB."""
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
    rendered = render(scene, body, vertices, points)
    K = torch.tensor(scene.K)
    truth, outline = project(points, K).numpy(), project(vertices, K).numpy()

    # Keyed apart from the scene's own numbers: other keypoints must not mean another image.
    rng = np.random.Generator(np.random.Philox(key=scene.background, counter=[0, 0, 0, 1 + number]))
    inside = (truth >= 0).all(-1) & (truth <= np.array(SIZE) - 1).all(-1)
    valid = inside & (rendered.visible | (rng.random(inside.shape) < 0.5))
    score = np.where(rendered.visible, rng.uniform(0.6, 1, inside.shape), rng.uniform(0.2, 0.6, inside.shape)) * valid
    noisy = disturb(truth, valid, rng, crowded=spec.crowded) if params.noise else truth
    box = np.concatenate([outline.min(1), outline.max(1)], 1).clip(0, np.tile(SIZE, 2) - 1)

    keep = rendered.visible.sum(1) >= MIN_VISIBLE
    frame = {"size": SIZE, "K": scene.K, "K_source": 2, "time": scene.time, "view": scene.view, "source": -1}
    rows = {
        "frame": np.full(len(keep), number),
        "box": box,
        "track": np.arange(len(keep)) + 100 * (number // spec.frames) if spec.frames > 1 else np.full(len(keep), -1),
        "keypoints/xy": np.where(valid[..., None], noisy, np.nan),
        "keypoints/score": score,
        "extra/global_orient": scene.global_orient,
        "extra/body_pose": scene.body_pose,
        "extra/betas": scene.betas,
        "extra/transl": scene.transl,
        "extra/keypoints": truth,
        "extra/seen": rendered.visible,
        "extra/world_to_camera": np.repeat(scene.world_to_camera[None], len(keep), 0),
    }
    return frame, {name: values[keep] for name, values in rows.items()}, rendered.image


def draw_example(name: str, number: int) -> np.ndarray:
    """Picture `number` of a set alone, RGB uint8."""
    import torch

    from stages.smpl.body import load_body

    with torch.no_grad():
        return make_example(spec_of(name), number, load_body("embedded"), SynthParams())[2]
