"""People with known bodies: as images with meshes, as keypoints with true joints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.artefacts.table import Artefact, in_memory
from stages.geometry import cameras
from stages.geometry.cameras import default_K, project
from stages.geometry.rotations import about, axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.media.images import file_fingerprint, write_image
from stages.smpl.body import load_body

SIZE = (320, 240)


def images_with_people(folder: Path, n: int, frames: int = 1, seed: int = 0, **frame: Any) -> tuple[Artefact, Artefact]:
    """Meshes and detections of n random people in each image; the images are noise in `folder`."""
    rng = np.random.default_rng(seed)
    body = load_body()
    names = [f"shots/picture {k}.png" for k in range(frames)]
    (folder / "shots").mkdir(parents=True, exist_ok=True)
    for name in names:
        write_image(folder / name, rng.integers(0, 90, (SIZE[1], SIZE[0], 3)).astype(np.uint8))
    K = np.repeat(default_K(np.array([SIZE], float)), frames, 0)
    total = n * frames
    smpl = {
        "global_orient": np.tile([np.pi, 0, 0], (total, 1)) + rng.normal(0, 0.2, (total, 3)),
        "body_pose": rng.normal(0, 0.15, (total, 23, 3)),
        "betas": rng.normal(0, 0.5, (total, 10)),
        "transl": np.stack(
            [np.tile(np.linspace(-0.6, 0.6, n) if n > 1 else [0.0] * n, frames), np.zeros(total), np.full(total, 4.0)],
            1,
        ),
    }
    smpl = {k: v.astype(np.float32) for k, v in smpl.items()}
    with torch.no_grad():
        made = body(**{k: torch.from_numpy(v) for k, v in smpl.items()})
        coco = body.regress(made.vertices, "coco17").numpy()
    frame_of = np.repeat(np.arange(frames), n)
    xy = project(coco.astype(float), K[frame_of])
    flat = project(made.vertices.numpy().astype(float), K[frame_of])
    box = np.concatenate([flat.min(1), flat.max(1)], 1) if total else np.zeros((0, 4))
    table = {
        "frames": {
            "name": names,
            "size": np.tile(SIZE, (frames, 1)),
            "K": K,
            "file": [file_fingerprint(folder / name) for name in names],
            **frame,
        },
        "rows": {"frame": frame_of, "box": box, "score": np.full(total, 0.9)},
        "attrs": {"root": str(folder)},
    }
    columns = {f"smpl/{k}": v for k, v in smpl.items()}
    columns |= {"joints/xyz": made.joints.numpy(), "joints/confidence": np.full((total, 24), 0.75)}
    attrs: dict[str, Any] = {
        "smpl": {"body_model": "embedded", "gender": "neutral"},
        "joints": {"joints": list(joint_sets.SETS["smpl24"])},
    }
    meshes = in_memory("meshes", columns=columns, group_attrs=attrs, **table)
    keypoints = {"joints": list(joint_sets.SETS["coco17"]), "joint_set": "coco17", "score_definition": "test"}
    detections = in_memory(
        "detections",
        columns={"keypoints/xy": xy, "keypoints/score": np.full((total, 17), 0.8)},
        group_attrs={"keypoints": keypoints},
        **table,
    )
    return meshes, detections


SMPL = joint_sets.get("smpl24")
POSITION = np.array([0.2, 0.1, 4.0])


def standing_people(
    n: int, joint_set: str = "coco17", seed: int = 0, position: np.ndarray = POSITION
) -> tuple[np.ndarray, np.ndarray]:
    """Standing people, arms down, turned and bent a little: keypoints (n, J, 3) px, true joints (n, 24, 3)."""
    draw = torch.Generator().manual_seed(seed)
    pose = 0.12 * torch.randn(n, 24, 3, generator=draw)
    pose[:, SMPL.index("left_shoulder"), 2] -= 1.2
    pose[:, SMPL.index("right_shoulder"), 2] += 1.2
    rotation = axis_angle_to_matrix(pose)
    facing = about("y", 0.5 * torch.randn(n, generator=draw))
    rotation[:, 0] = torch.diag(torch.tensor([1.0, -1, -1])) @ facing @ rotation[:, 0]
    body, betas = load_body("embedded"), torch.zeros(n, 10)
    transl = torch.tensor(position, dtype=torch.float32).expand(n, 3)
    points = body.joints(rotation, betas, transl, joint_set)
    K = cameras.default_K(torch.tensor([[640.0, 480.0]]).expand(n, 2))
    xy = cameras.project(points, K)
    keypoints = torch.cat([xy, torch.ones(n, xy.shape[1], 1)], -1)
    return keypoints.numpy(), body.joints(rotation, betas, transl, "smpl24").numpy()
