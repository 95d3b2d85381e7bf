"""Cameras and imperfect keypoints for training people: what a detector would have said about a body in space.

Batch last, as in models/embedded/kinematics.py. A view is the virtual camera that looks at the middle of the observed
keypoints (models/embedded/view.py), so the network never sees where in the picture a person stands.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Generator, Tensor

from stages.geometry.cameras import look_at
from stages.models.embedded.kinematics import Skeleton, axis_angle_to_matrix, matmul3, rotate
from stages.models.embedded.virtual_camera import features
from stages.synthetic.mocap import COCO, COCO_FLIP, Augment, PoseBank

CROP = 256 / 1.2  # pixels along the longer side of the box of all keypoints in a 256 crop with a margin of 1.2
MIN_KEYPOINTS = 5  # keypoints

# Standard deviations of COCO's annotators relative to the root of the person's area (the OKS constants).
SIGMAS = torch.tensor([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclasses.dataclass(frozen=True)
class Camera:
    """World to camera: yaw even, pitch (looking down) and roll normal in degrees, distance in metres (log-)even."""

    pitch: tuple[float, float] = (7.0, 14.0)
    roll: float = 5.0
    distance: tuple[float, float] = (2.0, 12.0)
    even: bool = False
    broad: float = 0.0  # probability of pitch + 25 and roll + 20 degrees more spread; a fifth of those any orientation


@dataclasses.dataclass(frozen=True)
class Corruption:
    """What is wrong with the keypoints. Probabilities, and pixels of a 256 crop."""

    clean: float = 0.2
    gauss: float = 0.60  # normal noise of 0 to `pixels` per axis; the rest DPMesh's noise
    pixels: float = 5.5
    told: float = 0.5  # confidence falls with the error; else it says nothing
    scattered: float = 0.30  # single keypoints missing
    grouped: float = 0.30  # limbs, halves or a side of a line missing
    focal: float = 0.3  # probability that the focal length is a guess, wrong by 30 %


EXACT = Corruption(clean=1, gauss=0, pixels=0, told=0, scattered=0, grouped=0, focal=0)


@dataclasses.dataclass
class KeypointBatch:
    """n people in the virtual camera: inputs (n, F), rotation (3, 3, 24, n), betas (10, n), joints (3, 24, n) and
    points (3, 17, n) from the pelvis, pelvis (3, n), half (n,) tangent units, image (2, 17, n) true keypoints."""

    inputs: Tensor
    seen: Tensor
    observed: Tensor
    rotation: Tensor
    betas: Tensor
    joints: Tensor
    points: Tensor
    pelvis: Tensor
    half: Tensor
    image: Tensor


def draw_batch(
    n: int,
    bank: PoseBank,
    skeleton: Skeleton,
    generator: Generator,
    *,
    augment: Augment = Augment(),
    camera: Camera = Camera(distance=(1.5, 12.0), broad=0.15),
    defects: Corruption = Corruption(),
) -> KeypointBatch:
    """n people with everything drawn at random: pose, betas, camera, noise and missing keypoints."""
    with generator.device:  # every tensor below is made there
        betas = torch.randn(10, n, generator=generator)
        rotation = axis_angle_to_matrix(bank.draw(n, generator, augment).permute(2, 1, 0).contiguous())
        rotation[:, :, 0] = matmul3(draw_rotation(n, camera, generator), rotation[:, :, 0])
        joints, points = skeleton(rotation, betas)
        near, far = camera.distance
        u = torch.rand(n, generator=generator)
        depth = near + (far - near) * u if camera.even else near * (far / near) ** u
        depth = torch.maximum(depth, 0.4 - points[2].amin(0))  # nobody stands inside the camera
        middle = (points[:2].amax(1) + points[:2].amin(1)) / 2
        pelvis = torch.cat([-middle + 0.1 * torch.randn(2, n, generator=generator), depth[None]])
        image, confidence = disturb(project(points, pelvis), rotation, generator, defects)

        turn, half, normal = look_at(image, confidence)
        rotation[:, :, 0] = matmul3(turn, rotation[:, :, 0])
        joints, points = (rotate(turn[:, :, None], x) for x in (joints, points))
        pelvis = rotate(turn, pelvis)
        guess = torch.rand(n, generator=generator) < defects.focal
        told = half * torch.exp(0.3 * torch.randn(n, generator=generator) * guess)
        return KeypointBatch(
            inputs=features(normal, confidence, told),
            seen=confidence > 0,
            observed=normal,
            rotation=rotation,
            betas=betas,
            joints=joints,
            points=points,
            pelvis=pelvis,
            half=half,
            image=project(points, pelvis) / half,
        )


def project(points: Tensor, pelvis: Tensor) -> Tensor:
    """points (3, J, n) from the pelvis (3, n) -> (2, J, n), tangents of the angles to the optical axis."""
    z = (points[2] + pelvis[2]).clamp(min=0.1)
    return (points[:2] + pelvis[:2, None]) / z


def draw_rotation(n: int, camera: Camera, generator: Generator) -> Tensor:
    """World (y up) to camera (y down, z forward): (3, 3, n)."""
    angle = torch.randn(2, n, generator=generator)
    wide = torch.rand(n, generator=generator) < camera.broad
    pitch = torch.deg2rad(camera.pitch[0] + (camera.pitch[1] + 25.0 * wide) * angle[0])
    roll = torch.deg2rad((camera.roll + 20.0 * wide) * angle[1])
    yaw = torch.rand(n, generator=generator) * 2 * math.pi
    zero = torch.zeros(n)
    turn = axis_angle_to_matrix(torch.stack([zero, yaw, zero]))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0])).unsqueeze(-1).expand(3, 3, n)
    # Looking down by `pitch` turns the person's top towards the camera.
    world = matmul3(axis_angle_to_matrix(torch.stack([pitch, zero, zero])), matmul3(flip, turn))
    world = matmul3(axis_angle_to_matrix(torch.stack([zero, zero, roll])), world)
    if camera.broad:
        any_way = torch.nn.functional.normalize(torch.randn(4, n, generator=generator), dim=0)
        free = axis_angle_to_matrix(
            2 * torch.atan2(any_way[1:].norm(dim=0), any_way[0]) * torch.nn.functional.normalize(any_way[1:], dim=0)
        )
        lost = wide & (torch.rand(n, generator=generator) < 0.2)
        world = torch.where(lost, free, world)
    return world


def disturb(image: Tensor, rotation: Tensor, generator: Generator, defects: Corruption) -> tuple[Tensor, Tensor]:
    """Keypoints as a detector gives them: image (2, 17, n) -> disturbed (2, 17, n), confidence (17, n), 0 = missing."""
    n = image.shape[-1]
    side = (image.amax(1) - image.amin(1)).amax(0)
    pixel = side / CROP
    kind = torch.rand(n, generator=generator)
    sigma = torch.rand(n, generator=generator) * defects.pixels * (kind > defects.clean)
    noise = sigma * torch.randn(2, 17, n, generator=generator)
    detector = (kind > defects.clean + defects.gauss).nonzero()[:, 0]
    if len(detector):
        noise[:, :, detector] = posefix(image[:, :, detector] / pixel[detector], generator)
    error = noise.square().sum(0).sqrt()
    told = torch.rand(n, generator=generator) < defects.told
    spread = torch.exp(0.5 * torch.randn(17, n, generator=generator))
    honest = torch.exp(-error / 12 * spread).clamp(0.06, 1) * (0.75 + 0.25 * torch.rand(n, generator=generator))
    flat = 1 - 0.4 * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.4) * (
        defects.told > 0
    )
    confidence = torch.where(told, honest, flat.expand(17, n))
    return image + noise * pixel, confidence * ~hidden(image, rotation, generator, defects)


def posefix(image: Tensor, generator: Generator) -> Tensor:
    """Displacements (2, 17, n) in pixels of the crop, after PoseFix (Moon et al. 2019), as DPMesh trains.

    `jitter` about the place, `miss` further off, `inversion` about the mirrored keypoint; swaps need two people. The
    exact, slower model for pictures of several people is stages/keypoints/noise.py.
    """
    n = image.shape[-1]
    size = (image.amax(1) - image.amin(1)).clamp(min=20.0).prod(0)

    def radius(similarity: float) -> Tensor:
        return (-2 * size * (2 * SIGMAS.to(image.device)[:, None]) ** 2 * math.log(similarity)).sqrt()

    def ring(inner: Tensor | float, outer: Tensor) -> Tensor:
        u, angle = torch.rand(2, 17, n, generator=generator)
        return (inner + (outer - inner) * u) * torch.stack([(2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()])

    d85, d50, d10 = radius(0.85), radius(0.5), radius(0.1)
    head = torch.arange(17) < 5
    upper = (torch.arange(17) >= 5) & (torch.arange(17) < 11)
    jitter = torch.where(head | upper, 0.15, 0.10)
    jitter[[0, 11, 12]] = torch.tensor([0.10, 0.20, 0.20])
    miss = torch.where(head, 0.02, 0.08)
    inversion = torch.where(head, 0.01, torch.where(upper, 0.03, 0.06))
    kind = torch.rand(17, n, generator=generator)
    a, b, c = (x[:, None] for x in (inversion, inversion + miss, inversion + miss + jitter))
    out = ring(0.0, d85)
    out = torch.where((kind >= b) & (kind < c), ring(d85, d50), out)
    out = torch.where((kind >= a) & (kind < b), ring(d50, d10), out)
    swapped = image[:, COCO_FLIP] - image + ring(0.0, d50)
    return torch.where(kind < a, swapped, out)


_GROUPS = (
    ("nose", "eye", "ear"),
    ("left_wrist",),
    ("right_wrist",),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow", "right_wrist"),
    ("ankle",),
    ("ankle", "knee"),
    ("ankle", "knee", "hip"),
    ("left_ankle", "left_knee"),
    ("right_ankle", "right_knee"),
    ("ear",),
    ("hip",),
)


def hidden(image: Tensor, rotation: Tensor, generator: Generator, defects: Corruption) -> Tensor:
    """Which are missing (17, n): scattered ones, whole limbs, everything beyond a line, the far side of the head."""
    n = image.shape[-1]
    out = torch.zeros(17, n, dtype=torch.bool)
    if not defects.scattered + defects.grouped:
        return out
    kind = torch.rand(n, generator=generator)
    rate = 0.05 + 0.55 * torch.rand(n, generator=generator)
    out |= (torch.rand(17, n, generator=generator) < rate) & (kind < defects.scattered)

    grouped = (kind >= defects.scattered) & (kind < defects.scattered + defects.grouped)
    table = torch.tensor([[any(name.endswith(part) for part in group) for name in COCO] for group in _GROUPS])
    for share in (1.0, 0.5):
        pick = table[torch.randint(len(_GROUPS), (n,), generator=generator)].T
        out |= pick & grouped & (torch.rand(n, generator=generator) < share)
    # A line across the person: the frame's border or something in front.
    angle = torch.rand(n, generator=generator) * 2 * math.pi
    angle = torch.where(torch.rand(n, generator=generator) < 0.6, torch.full_like(angle, math.pi / 2), angle)
    along = image[0] * angle.cos() + image[1] * angle.sin()
    low, high = along.amin(0), along.amax(0)
    line = low + (high - low) * (0.25 + 0.75 * torch.rand(n, generator=generator))
    cut = grouped & (torch.rand(n, generator=generator) < 0.4)
    out |= (along > line) & cut
    # Annotators and detectors leave out what the head itself hides: face from behind, the far ear and eye.
    forward = rotation[2, 2, 0]  # the pelvis's front; the head follows it closely enough
    sideways = rotation[2, 0, 0]  # depth of the left side
    shy = torch.rand(n, generator=generator) < 0.5
    out[:3] |= shy & (forward > 0.35)
    out[3] |= shy & (sideways > 0.35) | shy & (forward < -0.97)
    out[4] |= shy & (sideways < -0.35) | shy & (forward < -0.97)
    out[1] |= shy & (sideways > 0.8)
    out[2] |= shy & (sideways < -0.8)
    # Never fewer than the network is asked for: bring back at random until enough are seen.
    order = torch.rand(17, n, generator=generator) + out
    keep = order.argsort(0).argsort(0) < MIN_KEYPOINTS
    return out & ~keep
