"""NanoDet's boxes and MoveNet Thunder's joints: the detector in the package, for any machine and without a download.

Thunder was made for the person in the middle of a crop; crowds need more. For the people of all pictures at once:

1. NanoDet boxes people, generously.
2. Thunder looks at each box with a tenth more around it. Its heatmaps show the joints of everybody in the crop; those
   of our person lie near where a regression from its middle says, and within its box (`decode`).
3. The best person first, others are dropped whose joints are those of a better one (OKS) or whose box nearly is.
4. Where only the joints coincide, Thunder has taken the person in front for the one behind: it looks at the crop again
   with those who were found painted over (`paint_over`), and the person is kept if its joints are now its own.
5. Thunder looks at the mirror image of those who are left, with more around them; where both looks agree on a joint it
   is their mean (`People.fuse`).

A person's score is NanoDet's times the mean of its 8 best joints' times the root of the agreement (OKS) of both looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.files.checkpoints import read_checkpoint
from stages.files.folders import packaged
from stages.files.hashing import sha256_of_files
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS, flip
from stages.keypoints.oks import iou, sigmas, suppress
from stages.models.detectors import nanodet
from stages.models.detectors.base import DetectedPeople
from stages.models.detectors.convolution import for_inference
from stages.models.detectors.movenet_network import SIZE, STRIDE, MoveNet

WEIGHTS = packaged("data/movenet.safetensors")
JOINTS = SETS["coco17"]
SIGMA = sigmas(JOINTS)
MIRROR = flip(JOINTS)
FIRST, SECOND = 1.1, 1.25  # sides of the crops of both looks, of the box's longer side; the second one is mirrored
PRIOR = 1.8  # cells, of Thunder's own graph: how far a joint may lie from where the person's middle expects it
BESIDE = 0.1  # of the box's longer side: how far joints may lie outside the box (standard deviation)
BEST = 8  # joints that a person's score is the mean of
SAME_JOINTS, SAME_BOX = 0.6, 0.8  # OKS and IoU above which two results are one person
BEHIND = 0.7  # IoU below which two boxes with the same joints are two people
TOUCH = 0.05  # IoU above which one box may hide a part of another
FILLED = 0.53  # area of a person, of its box (mean over COCO)
LIMB, SEEN = 0.05, 0.2  # radius of a painted limb, of the box's longer side; score of joints that are painted
LOWEST = 0.04  # score below which nobody is looked at a second time
AGREE = 0.1  # of the box's longer side: distance of two looks at a joint that counts as agreement (mean over joints)
BATCH_CPU, BATCH_GPU = 1, 256  # crops at a time; on the CPU one is quickest, and gives the same numbers always


def _limbs() -> tuple[tuple[int, int], ...]:
    sides, legs = ("left", "right"), (("hip", "knee"), ("knee", "ankle"))
    pairs = [(f"{s}_{a}", f"{s}_{b}") for s in sides for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), *legs)]
    pairs += [(f"{s}_shoulder", f"{t}_hip") for s in sides for t in sides]
    pairs += [("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("left_ear", "right_ear")]
    pairs += [("nose", "left_shoulder"), ("nose", "right_shoulder")]
    return tuple((JOINTS.index(a), JOINTS.index(b)) for a, b in pairs)


LIMBS = _limbs()


class MoveNetDetector:
    """See the module. The networks are loaded at the first call; people of all pictures share their batches."""

    name = "movenet"
    licence = "Apache-2.0"
    joints = JOINTS
    score_definition = "height of Thunder's heatmap at the joint, 0..1, the mean of two looks where they agree"
    min_score = 0.1
    batch_size = 8

    def __init__(self, folder: Path, device: str) -> None:
        boxes, self.weights, self.device = folder / nanodet.WEIGHTS.name, folder / WEIGHTS.name, device
        self.sha256 = sha256_of_files(boxes, self.weights)
        self._boxes = nanodet.PersonBoxes(device, boxes)
        self._network: Any = None

    @classmethod
    def missing(cls, path: Path | None) -> str:
        return ""

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> MoveNetDetector:
        """With the packaged weights, or those of the same names in the folder `path`."""
        return cls(path or WEIGHTS.parent, device)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        levels = [crops.halvings(image) for image in images]
        if boxes is None:
            people = People.of(self._boxes(levels))
        else:
            people = People.of([(box, np.full(len(box), np.nan)) for box in boxes])
        everyone = np.flatnonzero(people.sized())
        people.xy[everyone], people.score[everyone] = self._look(levels, people, everyone, FIRST)
        pictures = [np.flatnonzero(people.picture == k) for k in range(len(images))]

        front: dict[int, np.ndarray] = {}
        for own in pictures:
            front |= in_front(people, own[people.sized()[own]])
        behind = np.array(sorted(front), np.int64)
        people.xy[behind], people.score[behind] = self._look(levels, people, behind, FIRST, front)
        if boxes is None:
            pictures = [distinct(people, own, front) for own in pictures]
            everyone = np.concatenate([*pictures, behind[:0]])

        xy, score = self._look(levels, people, everyone, SECOND, front, mirror=True)
        people.fuse(everyone, xy, score)
        return [people.found(own) for own in pictures]

    def _look(
        self,
        levels: Sequence[list[np.ndarray]],
        people: People,
        which: np.ndarray,
        grow: float,
        front: Mapping[int, np.ndarray] = {},
        mirror: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Joints (m, 17, 2) px and their scores (m, 17) of the people `which` (m,), in crops of `grow` times their box.

        front: who is painted over in a person's crop, by its number.
        """
        xy, score = np.zeros((len(which), len(JOINTS), 2)), np.zeros((len(which), len(JOINTS)))
        center, side = crops.square_boxes(people.box[which], grow)
        affine = crops.square_affine(center, side, SIZE)
        affine[:, :, 2] -= 0.5  # the middle of the crop is between two pixels
        count = BATCH_CPU if self.device == "cpu" else BATCH_GPU
        for start in range(0, len(which), count):
            chunk = slice(start, start + count)
            views = [
                crops.warp_from(levels[people.picture[k]], a, SIZE)
                for k, a in zip(which[chunk], affine[chunk], strict=True)
            ]
            for view, k, a in zip(views, which[chunk], affine[chunk], strict=True):
                if k in front:
                    paint_over(view, *people.limbs(front[k], a))
            box = crops.apply(affine[chunk], people.box[which[chunk]].reshape(-1, 2, 2)).reshape(-1, 4)
            cell, score[chunk] = self._run(np.stack(views), (box + 0.5) / STRIDE, mirror)
            xy[chunk] = crops.apply(crops.invert(affine[chunk]), cell * STRIDE - 0.5)
        return xy, score

    @torch.inference_mode()
    def _run(self, views: np.ndarray, box: np.ndarray, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
        """What `decode` says of crops (n, 256, 256, 3) and boxes (n, 4) in cells; `mirror`: of their mirror images."""
        x = torch.from_numpy(views).to(self.device).permute(0, 3, 1, 2) / 127.5 - 1
        cells = SIZE / STRIDE
        if mirror:
            x, box = x.flip(3), np.stack([cells - box[:, 2], box[:, 1], cells - box[:, 0], box[:, 3]], 1)
        heads = self._load()(x.contiguous(memory_format=torch.channels_last))
        xy, score = (each.cpu().double().numpy() for each in decode(heads, torch.from_numpy(box).to(x)))
        if mirror:
            xy, score = xy[:, MIRROR], score[:, MIRROR]
            xy[..., 0] = cells - xy[..., 0]
        return xy, score

    def _load(self) -> Any:
        if self._network is None:
            network = MoveNet()
            network.load_state_dict({k: v.float() for k, v in read_checkpoint(self.weights).tensors.items()})
            self._network = for_inference(network, self.device)
        return self._network


def decode(heads: Mapping[str, Tensor], box: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (n, 17, 2) x, y in cells from the crop's corner, and their scores (n, 17), of the person in box (n, 4).

    As at the end of Thunder's graph (middle: the best cell near the crop's middle; joint: the best cell near where the
    middle expects it), but the middle is the box's, and what lies outside the box counts less.
    """
    height, width = heads["center"].shape[2:]
    y = torch.arange(height, device=box.device, dtype=box.dtype)[:, None]
    x = torch.arange(width, device=box.device, dtype=box.dtype)
    left, top, right, bottom = box[:, :, None, None].unbind(1)
    outside = ((left - x).clamp(min=0) + (x - right).clamp(min=0)) ** 2
    outside = outside + ((top - y).clamp(min=0) + (y - bottom).clamp(min=0)) ** 2
    longer = torch.maximum(right - left, bottom - top)
    inside = torch.exp(-outside / (2 * (BESIDE * longer) ** 2))

    near = inside / (torch.hypot(y - (top + bottom) / 2, x - (left + right) / 2) + PRIOR)
    middle = (heads["center"][:, 0].sigmoid() * near).flatten(1).argmax(1)
    expected = _at(heads["regress"].unflatten(1, (-1, 2)), middle[:, None].expand(-1, len(JOINTS)))
    expected = expected + torch.stack([middle // width, middle % width], 1)[:, None]

    score = heads["heatmap"].sigmoid()
    away = torch.hypot(y - expected[..., 0, None, None], x - expected[..., 1, None, None])
    best = (score * inside[:, None] / (away + PRIOR)).flatten(2).argmax(2)
    offset = _at(heads["offset"].unflatten(1, (-1, 2)), best)
    xy = torch.stack([best % width + offset[..., 1], best // width + offset[..., 0]], -1)
    return xy, score.flatten(2).gather(2, best[..., None])[..., 0]


def _at(maps: Tensor, cell: Tensor) -> Tensor:
    """Values (n, J, 2) of maps (n, J, 2, H, W) at one cell (n, J) for each joint."""
    return maps.flatten(3).gather(3, cell[..., None, None].expand(-1, -1, 2, 1))[..., 0]


def paint_over(view: np.ndarray, ends: np.ndarray, radius: np.ndarray) -> None:
    """Limbs with ends (m, 2, 2) x, y and radius (m,), in pixels, painted in the view's mean colour, in place."""
    y, x = np.mgrid[: view.shape[0], : view.shape[1]].astype(np.float32)
    color, hidden = view.reshape(-1, 3).mean(0), np.zeros(view.shape[:2], bool)
    for (a, b), r in zip(ends, radius, strict=True):
        along = b - a
        share = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(float(along @ along), 1e-6)
        share = share.clip(0, 1)
        hidden |= (x - a[0] - share * along[0]) ** 2 + (y - a[1] - share * along[1]) ** 2 < r * r
    view[hidden] = color


@dataclasses.dataclass
class People:
    """n people of several pictures: picture (n,), box (n, 4) px, box_score (n,), xy (n, 17, 2) px, score (n, 17)."""

    picture: np.ndarray
    box: np.ndarray
    box_score: np.ndarray
    xy: np.ndarray
    score: np.ndarray
    agreement: np.ndarray

    @classmethod
    def of(cls, boxed: Sequence[tuple[np.ndarray, np.ndarray]]) -> People:
        """From the boxes and their scores of each picture; nobody has joints yet."""
        picture = np.repeat(np.arange(len(boxed)), [len(box) for box, _ in boxed])
        box = np.concatenate([np.zeros((0, 4)), *(np.asarray(box, float).reshape(-1, 4) for box, _ in boxed)])
        n, count = len(box), len(JOINTS)
        score = np.concatenate([np.zeros(0), *(score for _, score in boxed)])
        return cls(picture, box, score, np.full((n, count, 2), np.nan), np.full((n, count), np.nan), np.ones(n))

    def __len__(self) -> int:
        return len(self.box)

    def sized(self) -> np.ndarray:
        """Which boxes (n,) are finite and not empty."""
        return np.isfinite(self.box).all(1) & (self.box[:, 2:] > self.box[:, :2]).all(1)

    def longer(self) -> np.ndarray:
        return (self.box[:, 2:] - self.box[:, :2]).max(1, initial=0)

    def area(self) -> np.ndarray:
        return FILLED * (self.box[:, 2:] - self.box[:, :2]).prod(1)

    def likelihood(self) -> np.ndarray:
        """Score (n,) of each person; where boxes were given, of its joints alone."""
        joints = np.sort(self.score, 1)[:, -BEST:].mean(1)
        return np.where(np.isfinite(self.box_score), self.box_score, 1) * joints * np.sqrt(self.agreement)

    def likeness(self, own: np.ndarray) -> np.ndarray:
        """OKS (m, m) of the people `own`, each joint weighted by both scores, for the area of the larger one."""
        xy, area, score = self.xy[own], self.area()[own], self.score[own]
        area = np.maximum(area[:, None], area[None])[..., None]
        like = np.exp(-((xy[:, None] - xy[None]) ** 2).sum(-1) / (2 * (2 * SIGMA) ** 2 * area))
        weight = np.sqrt(score[:, None] * score[None])
        return (like * weight).sum(-1) / weight.sum(-1).clip(1e-9)

    def limbs(self, which: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends (m, 2, 2) and radii (m,) of limbs that are seen of the people `which`, through an affine (2, 3)."""
        xy = crops.apply(np.repeat(affine[None], len(which), 0), self.xy[which])
        seen = (self.score[which][:, LIMBS] > SEEN).all(-1)
        radius = LIMB * self.longer()[which, None] * np.hypot(*affine[:, 0]) * np.ones(len(LIMBS))
        return xy[:, LIMBS][seen], radius[seen]

    def fuse(self, which: np.ndarray, xy: np.ndarray, score: np.ndarray) -> None:
        """Take a second look's joints (m, 17, 2) and scores (m, 17) of `which` in: means weighted by the scores.

        Where the looks differ by more than AGREE, the better one of both counts for more, in the end alone.
        """
        looks, weight = np.stack([self.xy[which], xy]), np.stack([self.score[which], score])
        d2 = ((looks[0] - looks[1]) ** 2).sum(-1)
        reach = AGREE * self.longer()[which, None] * SIGMA / SIGMA.mean()
        like = np.exp(-d2 / (2 * reach**2))
        better = weight[0] >= weight[1]
        weight = weight * np.where(np.stack([better, ~better]), 1, like)
        area = self.area()[which]
        self.agreement[which] = np.exp(-d2 / (2 * (2 * SIGMA) ** 2 * area[:, None])).mean(1)
        self.xy[which] = (looks * weight[..., None]).sum(0) / weight.sum(0).clip(1e-9)[..., None]
        self.score[which] = weight.sum(0) / 2

    def found(self, own: np.ndarray) -> DetectedPeople:
        likelihood = np.where(np.isfinite(self.box_score), self.likelihood(), np.nan)
        return DetectedPeople(
            self.box[own], likelihood[own], np.concatenate([self.xy[own], self.score[own, :, None]], -1)
        )


def in_front(people: People, own: np.ndarray) -> dict[int, np.ndarray]:
    """Of the people `own` of one picture those whose joints are another's, and who hides each of them.

    They have a box of their own, so there is somebody; but Thunder took the person in front of them.
    """
    likeness, overlap = people.likeness(own), iou(people.box[own], people.box[own])
    same = (likeness > SAME_JOINTS) | (overlap > SAME_BOX)
    keep = suppress(same.astype(float), people.likelihood()[own], 0.5)
    front = {}
    for k in np.setdiff1d(np.arange(len(own)), keep):
        nearest = keep[likeness[k, keep].argmax()]
        if likeness[k, nearest] > SAME_JOINTS and overlap[k, keep].max() < BEHIND:
            front[int(own[k])] = own[keep[(overlap[k, keep] > TOUCH) | (keep == nearest)]]
    return front


def distinct(people: People, own: np.ndarray, front: Mapping[int, np.ndarray]) -> np.ndarray:
    """The people `own` of one picture, best first, without doubles and the unlikely; those behind others come last."""
    likelihood = people.likelihood()[own]
    same = (people.likeness(own) > SAME_JOINTS) | (iou(people.box[own], people.box[own]) > SAME_BOX)
    rank = likelihood - np.isin(own, list(front))
    keep = suppress(same.astype(float), rank, 0.5)
    return own[keep[likelihood[keep] >= LOWEST]]
