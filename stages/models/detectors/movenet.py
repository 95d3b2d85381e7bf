"""NanoDet's boxes and MoveNet Thunder's joints: the detector in the package, for any machine and without a download.

Thunder was made for the person in the middle of a crop; crowds need more. For the people of all images together:

1. NanoDet proposes boxes, generously.
2. Thunder sees each box with a tenth more around it. Its heatmaps show the joints of everybody in the crop; those of
   the person meant lie near where a regression from its centre expects them, and within its box (`decode`).
3. The best person first, others are dropped whose joints are those of a better one (OKS) or whose box nearly is.
4. Where only the joints coincide, Thunder has taken the person in front for the one behind: it sees the crop again with
   the people in front painted over, and the person is kept if its joints are now its own.
5. A second pass sees the mirror image of those who are left, with more around them; where both passes agree on a joint
   it is their mean.

A person's score is NanoDet's times the mean of its 8 best joints' times the root of the passes' agreement (OKS).
docs/detectors.md says what each step is worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.files.checkpoints import read_checkpoint
from stages.files.folders import packaged
from stages.files.hashing import sha256_of_files
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS, flip
from stages.keypoints.oks import iou, sigmas, suppress
from stages.models.detectors import nanodet
from stages.models.detectors.base import DetectedPeople, batch_for
from stages.models.detectors.convolution import for_inference
from stages.models.detectors.movenet_network import SIZE, STRIDE, MoveNet, decode

WEIGHTS = packaged("data/movenet.safetensors")
JOINTS = SETS["coco17"]
SIGMA, MIRROR = sigmas(JOINTS), flip(JOINTS)
FIRST, SECOND = 1.1, 1.25  # sides of the crops of both passes, of the box's longer side
BEST = 8  # joints that a person's score is the mean of
SAME_JOINTS, SAME_BOX = 0.6, 0.8  # OKS and IoU above which two results are one person
OWN_BOX = 0.7  # IoU below which two boxes with the same joints are two people
TOUCH = 0.05  # IoU above which one person may hide a part of another
FILLED = 0.53  # a person's area, of its box
LIMB, PAINTED = 0.05, 0.2  # radius of a painted limb, of the box's longer side; score of joints that are painted
MIN_SCORE = 0.04  # below it nobody gets a second pass
AGREE = 0.1  # distance of two passes that counts as agreement on a joint, of the box's longer side (mean joint)
MEGABYTES = 60  # of GPU memory for one crop


def _limbs() -> tuple[tuple[int, int], ...]:
    sides, legs = ("left", "right"), (("hip", "knee"), ("knee", "ankle"))
    pairs = [(f"{s}_{a}", f"{s}_{b}") for s in sides for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), *legs)]
    pairs += [(f"{s}_shoulder", f"{t}_hip") for s in sides for t in sides]
    pairs += [("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("left_ear", "right_ear")]
    pairs += [("nose", "left_shoulder"), ("nose", "right_shoulder")]
    return tuple((JOINTS.index(a), JOINTS.index(b)) for a, b in pairs)


LIMBS = _limbs()


class MoveNetDetector:
    """See the module. The networks are loaded at the first call; people of all images share their batches."""

    name = "movenet"
    licence = "Apache-2.0"
    joints = JOINTS
    score_definition = "height of Thunder's heatmap at the joint, 0..1, the mean of two passes where they agree"
    min_score = 0.1

    def __init__(self, folder: Path, device: str) -> None:
        boxes, self.weights, self.device = folder / nanodet.WEIGHTS.name, folder / WEIGHTS.name, device
        self.sha256 = sha256_of_files(boxes, self.weights)
        self._boxes = nanodet.PersonBoxes(device, boxes)
        self._network: Any = None
        self.batch_size = batch_for(device, nanodet.MEGABYTES, cpu=8)

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
            people = Candidates.of(self._boxes(levels))
        else:
            people = Candidates.of([(box, np.full(len(box), np.nan)) for box in boxes])
        rows = [np.flatnonzero(people.image == k) for k in range(len(images))]
        whole = people.whole()
        everyone = np.flatnonzero(whole)
        people.xy[everyone], people.score[everyone] = self._see(levels, people, everyone, FIRST)

        in_front: dict[int, np.ndarray] = {}
        for own in rows:
            in_front |= hidden(people, own[whole[own]])
        behind = np.array(sorted(in_front), np.int64)
        people.xy[behind], people.score[behind] = self._see(levels, people, behind, FIRST, in_front)
        if boxes is None:
            rows = [distinct(people, own, in_front) for own in rows]
            everyone = np.concatenate([*rows, behind[:0]])

        people.fuse(everyone, *self._see(levels, people, everyone, SECOND, in_front, mirror=True))
        return [people.found(own) for own in rows]

    def _see(
        self,
        levels: Sequence[list[np.ndarray]],
        people: Candidates,
        which: np.ndarray,
        grow: float,
        in_front: Mapping[int, np.ndarray] = {},
        mirror: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Joints (m, 17, 2) px and their scores (m, 17) of the people `which` (m,), in crops of `grow` times their box.

        in_front: whom to paint over in a person's crop, by its number. mirror: the crops are mirrored for the network.
        """
        xy, score = np.zeros((len(which), len(JOINTS), 2)), np.zeros((len(which), len(JOINTS)))
        affine = crops.square_affine(*crops.square_boxes(people.box[which], grow), SIZE)
        affine[:, :, 2] -= 0.5  # the middle of the crop is between two pixels
        box = (crops.apply(affine, people.box[which].reshape(-1, 2, 2)).reshape(-1, 4) + 0.5) / STRIDE
        count = batch_for(self.device, MEGABYTES, cpu=1, most=256)  # on a CPU one is quickest
        for start in range(0, len(which), count):
            chunk = slice(start, start + count)
            views = []
            for k, to_crop in zip(which[chunk], affine[chunk], strict=True):
                views.append(crops.warp_from(levels[people.image[k]], to_crop, SIZE))
                if k in in_front:
                    paint_over(views[-1], *people.limbs(in_front[k], to_crop))
            cell, score[chunk] = self._joints(np.stack(views), box[chunk], mirror)
            xy[chunk] = crops.apply(crops.invert(affine[chunk]), cell * STRIDE - 0.5)
        return xy, score

    @torch.inference_mode()
    def _joints(self, views: np.ndarray, box: np.ndarray, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
        """`decode` for crops (n, 256, 256, 3) and boxes (n, 4) in cells, or for their mirror images, in numpy."""
        if self._network is None:
            network = MoveNet()
            network.load_state_dict({k: v.float() for k, v in read_checkpoint(self.weights).tensors.items()})
            self._network = for_inference(network, self.device)
        x = torch.from_numpy(views).to(self.device).permute(0, 3, 1, 2) / 127.5 - 1
        cells = SIZE / STRIDE
        if mirror:
            x, box = x.flip(3), np.stack([cells - box[:, 2], box[:, 1], cells - box[:, 0], box[:, 3]], 1)
        heads = self._network(x.contiguous(memory_format=torch.channels_last))
        xy, score = (each.cpu().double().numpy() for each in decode(heads, torch.from_numpy(box).to(x)))
        if mirror:
            xy, score = xy[:, MIRROR], score[:, MIRROR]
            xy[..., 0] = cells - xy[..., 0]
        return xy, score


@dataclasses.dataclass
class Candidates:
    """n people of several images: image (n,), box (n, 4) px, box_score (n,), NaN where the box was given.

    xy (n, 17, 2) px, score (n, 17), agreement (n,) of the passes, OKS: filled step by step.
    """

    image: np.ndarray
    box: np.ndarray
    box_score: np.ndarray
    xy: np.ndarray
    score: np.ndarray
    agreement: np.ndarray

    @classmethod
    def of(cls, boxed: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidates:
        """From the boxes and scores of each image; nobody has joints yet."""
        image = np.repeat(np.arange(len(boxed)), [len(box) for box, _ in boxed])
        box = np.concatenate([np.zeros((0, 4)), *(np.asarray(box, float).reshape(-1, 4) for box, _ in boxed)])
        score = np.concatenate([np.zeros(0), *(score for _, score in boxed)])
        shape = len(box), len(JOINTS)
        return cls(image, box, score, np.full((*shape, 2), np.nan), np.full(shape, np.nan), np.ones(shape[0]))

    def whole(self) -> np.ndarray:
        """Which boxes (n,) are finite and not empty."""
        return np.isfinite(self.box).all(1) & (self.box[:, 2:] > self.box[:, :2]).all(1)

    def longer(self, which: np.ndarray) -> np.ndarray:
        return (self.box[which, 2:] - self.box[which, :2]).max(1, initial=0)

    def area(self, which: np.ndarray) -> np.ndarray:
        return FILLED * (self.box[which, 2:] - self.box[which, :2]).prod(1)

    def person_score(self, which: np.ndarray) -> np.ndarray:
        """Score (m,) of people; where the box was given, of the joints alone."""
        joints = np.sort(self.score[which], 1)[:, -BEST:].mean(1)
        given = np.isnan(self.box_score[which])
        return np.where(given, 1, self.box_score[which]) * joints * np.sqrt(self.agreement[which])

    def similarity(self, which: np.ndarray) -> np.ndarray:
        """OKS (m, m) of people with each other, joints weighted by both scores, for the area of the larger person."""
        xy, score, area = self.xy[which], self.score[which], self.area(which)
        spread = 2 * (2 * SIGMA) ** 2 * np.maximum(area[:, None], area[None])[..., None]
        like = np.exp(-((xy[:, None] - xy[None]) ** 2).sum(-1) / spread)
        weight = np.sqrt(score[:, None] * score[None])
        return (like * weight).sum(-1) / weight.sum(-1).clip(1e-9)

    def limbs(self, which: np.ndarray, to_crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends (m, 2, 2) x, y and radii (m,) of the visible limbs of people, in pixels of a crop."""
        xy = crops.apply(np.repeat(to_crop[None], len(which), 0), self.xy[which])
        visible = (self.score[which][:, LIMBS] > PAINTED).all(-1)
        radius = LIMB * self.longer(which)[:, None] * np.hypot(*to_crop[:, 0]) * np.ones(len(LIMBS))
        return xy[:, LIMBS][visible], radius[visible]

    def fuse(self, which: np.ndarray, xy: np.ndarray, score: np.ndarray) -> None:
        """Take in the second pass's joints (m, 17, 2) and scores (m, 17) of the people `which`.

        A joint is the mean of both passes, weighted by the scores. The further they differ, the less counts the one
        with the lower score.
        """
        passes, weight = np.stack([self.xy[which], xy]), np.stack([self.score[which], score])
        d2 = ((passes[0] - passes[1]) ** 2).sum(-1)
        reach = AGREE * self.longer(which)[:, None] * SIGMA / SIGMA.mean()
        better = weight[0] >= weight[1]
        weight *= np.where(np.stack([better, ~better]), 1, np.exp(-d2 / (2 * reach**2)))
        spread = 2 * (2 * SIGMA) ** 2 * self.area(which)[:, None]
        self.agreement[which] = np.exp(-d2 / spread).mean(1)
        self.xy[which] = (passes * weight[..., None]).sum(0) / weight.sum(0).clip(1e-9)[..., None]
        self.score[which] = weight.sum(0) / 2

    def found(self, which: np.ndarray) -> DetectedPeople:
        score = np.where(np.isnan(self.box_score[which]), np.nan, self.person_score(which))
        keypoints = np.concatenate([self.xy[which], self.score[which][..., None]], -1)
        return DetectedPeople(self.box[which], score, keypoints)


def hidden(people: Candidates, own: np.ndarray) -> dict[int, np.ndarray]:
    """Of the people `own` of one image those whose joints are a better one's: their numbers -> who is in front of them.

    They have a box of their own, so there is somebody, but Thunder took the person in front.
    """
    similar, overlap = people.similarity(own), iou(people.box[own], people.box[own])
    same = (similar > SAME_JOINTS) | (overlap > SAME_BOX)
    keep = suppress(same.astype(float), people.person_score(own), 0.5)
    in_front = {}
    for k in np.setdiff1d(np.arange(len(own)), keep):
        nearest = keep[similar[k, keep].argmax()]
        if similar[k, nearest] > SAME_JOINTS and overlap[k, keep].max() < OWN_BOX:
            in_front[int(own[k])] = own[keep[(overlap[k, keep] > TOUCH) | (keep == nearest)]]
    return in_front


def distinct(people: Candidates, own: np.ndarray, in_front: Mapping[int, np.ndarray]) -> np.ndarray:
    """The people `own` of one image, best first, without doubles and the unlikely; those behind others come last."""
    score = people.person_score(own)
    same = (people.similarity(own) > SAME_JOINTS) | (iou(people.box[own], people.box[own]) > SAME_BOX)
    keep = suppress(same.astype(float), score - np.isin(own, list(in_front)), 0.5)
    return own[keep[score[keep] >= MIN_SCORE]]


def paint_over(view: np.ndarray, ends: np.ndarray, radius: np.ndarray) -> None:
    """Paint limbs with ends (m, 2, 2) x, y and radius (m,), in pixels, in the view's mean color, in place."""
    y, x = np.mgrid[: view.shape[0], : view.shape[1]].astype(np.float32)
    color, covered = view.reshape(-1, 3).mean(0), np.zeros(view.shape[:2], bool)
    for (a, b), r in zip(ends, radius, strict=True):
        along = b - a
        share = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(float(along @ along), 1e-6)
        share = share.clip(0, 1)
        covered |= (x - a[0] - share * along[0]) ** 2 + (y - a[1] - share * along[1]) ** 2 < r * r
    view[covered] = color
