"""Training examples for networks over keypoints: bodies, cameras, and keypoints as a detector would give them.

The batch axis is last, as in models/embedded/kinematics.py. All is in a virtual camera that looks at the middle of the
observed keypoints (models/embedded/virtual_camera.py), so the network does not depend on a person's position in the
image.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Generator, Tensor

from stages.geometry.cameras import look_at
from stages.keypoints.oks import sigmas
from stages.models.embedded.kinematics import Skeleton, axis_angle_to_matrix, matmul3, rotate
from stages.models.embedded.virtual_camera import features
from stages.synthetic.mocap import COCO, COCO_FLIP, Augment, PoseBank

CROP = 256 / 1.2  # pixels along the longer side of the box of all keypoints in a 256 crop with a margin of 1.2
MIN_KEYPOINTS = 5  # of a person

SIGMAS = torch.from_numpy(sigmas(COCO)).float()


@dataclasses.dataclass(frozen=True)
class Camera:
    """World to camera: yaw uniform; pitch (looking down) and roll normal, degrees; distance in metres, log-uniform
    (`even`: uniform)."""

    pitch: tuple[float, float] = (7.0, 14.0)  # mean, standard deviation
    roll: float = 5.0
    distance: tuple[float, float] = (2.0, 12.0)
    even: bool = False
    broad: float = 0.0  # probability of pitch + 25 and roll + 20 degrees more spread; a fifth of those any orientation


@dataclasses.dataclass(frozen=True)
class Corruption:
    """How keypoints differ from the truth. Probabilities, and pixels of a 256 crop."""

    clean: float = 0.2
    gauss: float = 0.60  # normal noise of 0 to `pixels` per axis; the rest: PoseFix's errors, as DPMesh trains
    pixels: float = 5.5
    honest_confidence: float = 0.5  # confidence falls with the error; else it says nothing
    dropped_joints: float = 0.30  # single keypoints are missing
    dropped_groups: float = 0.30  # limbs, halves or one side of a line are missing
    wrong_focal: float = 0.3  # the focal length is a guess, wrong by 30 %


def noise_only(pixels: float) -> Corruption:
    """Normal noise of 0 to `pixels` on every keypoint, and nothing else."""
    return Corruption(0, 1, pixels, honest_confidence=0, dropped_joints=0, dropped_groups=0, wrong_focal=0)


EXACT = dataclasses.replace(noise_only(0), clean=1, gauss=0)


@dataclasses.dataclass
class KeypointBatch:
    """n people in the virtual camera: inputs (n, F) of the network, visible (17, n), observed (2, 17, n) and image
    (2, 17, n) corrupted and true keypoints in half sides, rotation (3, 3, 24, n), betas (10, n), joints (3, 24, n) and
    points (3, 17, n) from the pelvis, pelvis (3, n), half (n,) half side in tangents."""

    inputs: Tensor
    visible: Tensor
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
    corruption: Corruption = Corruption(),
) -> KeypointBatch:
    """n people with everything drawn at random: pose, betas, camera, noise and missing keypoints."""
    with generator.device:  # every new tensor below is on it
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
        image, confidence = corrupt(project_tangents(points, pelvis), rotation, generator, corruption)

        to_virtual, half, observed = look_at(image, confidence)
        rotation[:, :, 0] = matmul3(to_virtual, rotation[:, :, 0])
        joints, points = (rotate(to_virtual[:, :, None], x) for x in (joints, points))
        pelvis = rotate(to_virtual, pelvis)
        guess = torch.rand(n, generator=generator) < corruption.wrong_focal
        assumed_half = half * torch.exp(0.3 * torch.randn(n, generator=generator) * guess)
        return KeypointBatch(
            inputs=features(observed, confidence, assumed_half),
            visible=confidence > 0,
            observed=observed,
            rotation=rotation,
            betas=betas,
            joints=joints,
            points=points,
            pelvis=pelvis,
            half=half,
            image=project_tangents(points, pelvis) / half,
        )


def project_tangents(points: Tensor, pelvis: Tensor) -> Tensor:
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
    heading = axis_angle_to_matrix(torch.stack([zero, yaw, zero]))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0])).unsqueeze(-1).expand(3, 3, n)
    # Looking down by `pitch` tilts the person's head towards the camera.
    world_to_camera = matmul3(axis_angle_to_matrix(torch.stack([pitch, zero, zero])), matmul3(flip, heading))
    world_to_camera = matmul3(axis_angle_to_matrix(torch.stack([zero, zero, roll])), world_to_camera)
    if camera.broad:
        quaternion = torch.nn.functional.normalize(torch.randn(4, n, generator=generator), dim=0)
        angle = 2 * torch.atan2(quaternion[1:].norm(dim=0), quaternion[0])
        uniform = axis_angle_to_matrix(angle * torch.nn.functional.normalize(quaternion[1:], dim=0))
        chosen = wide & (torch.rand(n, generator=generator) < 0.2)
        world_to_camera = torch.where(chosen, uniform, world_to_camera)
    return world_to_camera


def corrupt(image: Tensor, rotation: Tensor, generator: Generator, corruption: Corruption) -> tuple[Tensor, Tensor]:
    """Keypoints as a detector gives them: image (2, 17, n) -> corrupted (2, 17, n), confidence (17, n), 0 = missing."""
    n = image.shape[-1]
    side = (image.amax(1) - image.amin(1)).amax(0)
    pixel = side / CROP
    kind = torch.rand(n, generator=generator)
    sigma = torch.rand(n, generator=generator) * corruption.pixels * (kind > corruption.clean)
    noise = sigma * torch.randn(2, 17, n, generator=generator)
    detector = (kind > corruption.clean + corruption.gauss).nonzero()[:, 0]
    if len(detector):
        noise[:, :, detector] = posefix_errors(image[:, :, detector] / pixel[detector], generator)
    error = noise.square().sum(0).sqrt()
    honest = torch.rand(n, generator=generator) < corruption.honest_confidence
    spread = torch.exp(0.5 * torch.randn(17, n, generator=generator))
    falling = torch.exp(-error / 12 * spread).clamp(0.06, 1) * (0.75 + 0.25 * torch.rand(n, generator=generator))
    flat = 1 - 0.4 * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.4) * (
        corruption.honest_confidence > 0
    )
    confidence = torch.where(honest, falling, flat.expand(17, n))
    return image + noise * pixel, confidence * ~dropped(image, rotation, generator, corruption)


def posefix_errors(image: Tensor, generator: Generator) -> Tensor:
    """Displacements (2, 17, n) in pixels of the crop, after PoseFix (Moon et al. 2019), as DPMesh trains.

    `jitter` about the true position, `miss` further off, `inversion` about the mirrored keypoint; swaps need two
    people. The exact, slower model for images of several people is stages/keypoints/noise.py.
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


def dropped(image: Tensor, rotation: Tensor, generator: Generator, corruption: Corruption) -> Tensor:
    """Which keypoints are missing (17, n): single ones, whole limbs, all beyond a line, the far side of the head."""
    n = image.shape[-1]
    out = torch.zeros(17, n, dtype=torch.bool)
    if not corruption.dropped_joints + corruption.dropped_groups:
        return out
    kind = torch.rand(n, generator=generator)
    rate = 0.05 + 0.55 * torch.rand(n, generator=generator)
    out |= (torch.rand(17, n, generator=generator) < rate) & (kind < corruption.dropped_joints)

    both = corruption.dropped_joints + corruption.dropped_groups
    grouped = (kind >= corruption.dropped_joints) & (kind < both)
    table = torch.tensor([[any(name.endswith(part) for part in group) for name in COCO] for group in _GROUPS])
    for share in (1.0, 0.5):
        group = table[torch.randint(len(_GROUPS), (n,), generator=generator)].T
        out |= group & grouped & (torch.rand(n, generator=generator) < share)
    # A line across the person: the border of the image or an occluder.
    angle = torch.rand(n, generator=generator) * 2 * math.pi
    angle = torch.where(torch.rand(n, generator=generator) < 0.6, torch.full_like(angle, math.pi / 2), angle)
    along = image[0] * angle.cos() + image[1] * angle.sin()
    low, high = along.amin(0), along.amax(0)
    line = low + (high - low) * (0.25 + 0.75 * torch.rand(n, generator=generator))
    cut = grouped & (torch.rand(n, generator=generator) < 0.4)
    out |= (along > line) & cut
    # Annotators and detectors omit what the head itself hides: the face from behind, the far ear and eye.
    forward = rotation[2, 2, 0]  # the pelvis's front; the head follows it closely enough
    sideways = rotation[2, 0, 0]  # depth of the left side
    omits = torch.rand(n, generator=generator) < 0.5
    out[:3] |= omits & (forward > 0.35)
    out[3] |= omits & (sideways > 0.35) | omits & (forward < -0.97)
    out[4] |= omits & (sideways < -0.35) | omits & (forward < -0.97)
    out[1] |= omits & (sideways > 0.8)
    out[2] |= omits & (sideways < -0.8)
    # Never fewer than MIN_KEYPOINTS: dropped ones are restored at random.
    order = torch.rand(17, n, generator=generator) + out
    keep = order.argsort(0).argsort(0) < MIN_KEYPOINTS
    return out & ~keep
