"""BlazePose through LiteRT: the detector that needs pip alone.

Two networks (Bazarevsky et al., "BlazePose: On-device real-time body pose tracking", 2020; Apache-2.0 files of the
mediapipe 0.10.21 wheel): one proposes people in a 224 px window as two points, the middle of the hips and a point on
the circle around the body; the other finds 33 landmarks in an upright 256 px crop and says where the crop should have
been. The published pipeline finds one person per picture. To find several:

1. The detector looks at the whole picture and at half overlapping windows of 0.6 of its shorter side.
2. Proposals whose hips nearly coincide are merged, the best one stays.
3. Each gets its landmarks twice, the second time in the crop that the first asked for. A person is where both passes
   agree; of people with similar keypoints (OKS) the best one stays.

A joint's score is the probability that a COCO annotator would have marked it, and within OKS 0.5 of where we do: a
logistic function of the visibility and of how far the joint moved between the passes, fitted on the 476 joints of the
28 people found in 16 annotated COCO photos (area under the curve 0.79; visibility alone 0.65, and overconfident).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError, MachineError
from stages.files.hashing import sha256_of_files
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS, index
from stages.keypoints.oks import extent, oks, sigmas, suppress
from stages.models.detectors.base import DetectedPeople, clip_boxes

FILES = ("pose_detection.tflite", "pose_landmark_full.tflite")
GET = "hmr assets get blazepose"
SIGMA = sigmas(SETS["coco17"])
COCO = index(SETS["blazepose33"], SETS["coco17"])

WINDOWS = (1.0, 0.6)  # of the shorter side; 1 = the whole picture
SEED = 0.5  # lowest probability of a proposal
MERGE = 0.5  # proposals closer than this share of the smaller one's hip-to-circle distance are one person
AGREE = 0.5  # lowest OKS between the two passes
SAME = 0.5  # OKS above which two results are one person
SAME_HEAD = 0.1  # distance of two heads, of the smaller one's size (root of its area), below which they are one
SMALLEST = 8.0  # px from the hips to the circle, below which landmarks are guesses
LOGISTIC = (-1.59, 0.37, -0.70)  # keypoint score: offset, logit of visibility, log of the movement
PAD = np.array([-0.05, -0.12, 0.05, 0.02])  # from visible landmarks to the whole person, of the longer side (fitted)


class BlazePose:
    """See the module. Runs on the CPU whatever `device` says; one crop at a time, 10 to 15 ms each."""

    name = "blazepose"
    licence = "Apache-2.0"
    joints = SETS["coco17"]
    score_definition = (
        "probability that an annotator would mark the joint here (within OKS 0.5); logistic in BlazePose's visibility "
        "and the movement between two passes; 0 outside the picture"
    )
    min_score = 0.72
    batch_size = 4
    cpu_only = True  # so torch need not be asked for a GPU

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sha256 = sha256_of_files(*(folder / name for name in FILES))
        self._nets: tuple[_Net, _Net] | None = None

    @classmethod
    def missing(cls, path: Path | None) -> str:
        return "" if path and all((path / name).is_file() for name in FILES) else GET

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> BlazePose:
        """From the folder with the two .tflite files. Raises AssetError when they are not there."""
        if cls.missing(path):
            raise AssetError(
                f"detector blazepose: its two .tflite files are not {f'in {path}' if path else 'on this machine'}",
                f"run: {GET}",
            )
        assert path
        return cls(path)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        if boxes is None:
            return [self._find(image) for image in images]
        return [self._complete(image, box) for image, box in zip(images, boxes, strict=True)]

    def _find(self, image: np.ndarray) -> DetectedPeople:
        levels = crops.halvings(image)
        seeds = self._propose(levels)
        poses = [p for p in (self._landmarks(levels, seed, 2) for seed in seeds) if p]
        return self._people(poses, image, agree=AGREE, same=SAME)

    def _complete(self, image: np.ndarray, box: np.ndarray) -> DetectedPeople:
        """Landmarks for given boxes: the first crop is the box's own square, then two passes as above."""
        levels = crops.halvings(image)
        result = DetectedPeople.nobody(len(self.joints))
        result.box, result.score = np.asarray(box, float), np.full(len(box), np.nan)
        result.keypoints = np.full((len(box), len(self.joints), 3), np.nan)
        center, side = crops.square_boxes(result.box, 1.0)
        for k in range(len(box)):
            if not (np.isfinite(center[k]).all() and side[k] > 0):
                continue
            seed = np.array([center[k], center[k] - [0, side[k] / 2]])
            if pose := self._landmarks(levels, seed, 3, lowest=0.0):
                one = self._people([pose], image, agree=0.0, same=1.0)
                result.score[k], result.keypoints[k] = one.score[0], one.keypoints[0]
        return result

    def _propose(self, levels: list[np.ndarray]) -> np.ndarray:
        """Hip centre and circle point (n, 2, 2) of every proposal that is left after merging, best first."""
        height, width = levels[0].shape[:2]
        points, scores = [], []
        for center, side in windows(width, height, WINDOWS):
            to_image = _upright(np.array(center), side, 0.0, 224)
            raw, logit = self._net(0)(
                crops.warp_from(levels, crops.invert(to_image[None])[0], 224) / np.float32(127.5) - np.float32(1), 2
            )
            p = 1 / (1 + np.exp(-np.clip(logit[:, 0].astype(float), -100, 100)))
            best = np.flatnonzero(p > SEED)
            where = (raw[best, 4:8].reshape(-1, 2, 2) / 224 + ANCHORS[best, None]) * 224 - 0.5
            points.append(where @ to_image[:, :2].T + to_image[:, 2])
            scores.append(p[best])
        xy, score = np.concatenate(points).astype(float), np.concatenate(scores)
        radius = np.linalg.norm(xy[:, 1] - xy[:, 0], axis=-1)
        xy, score, radius = xy[radius >= SMALLEST], score[radius >= SMALLEST], radius[radius >= SMALLEST]
        apart = np.linalg.norm(xy[:, None, 0] - xy[None, :, 0], axis=-1)
        ratio = radius[:, None] / radius[None]
        close = (apart <= MERGE * np.minimum(radius[:, None], radius[None])) & (ratio > 0.5) & (ratio < 2)
        return xy[suppress(close.astype(float), score, 0.5)]

    def _landmarks(self, levels: list[np.ndarray], seed: np.ndarray, passes: int, lowest: float = 0.1) -> _Pose | None:
        """The last of some passes from a first guess (2, 2) of hip centre and circle point; None: nobody there."""
        earlier, score, points = np.zeros((33, 2)), 1.0, np.zeros((39, 5))
        for _ in range(passes):
            earlier = points[:33, :2]
            offset = seed[1] - seed[0]
            to_image = _upright(seed[0], 2.5 * float(np.hypot(*offset)), float(np.arctan2(offset[0], -offset[1])), 256)
            raw, flag = self._net(1)(crops.warp_from(levels, crops.invert(to_image[None])[0], 256) / np.float32(255), 2)
            points = raw.reshape(39, 5).astype(float)
            points[:, :2] = (points[:, :2] - 0.5) @ to_image[:, :2].T + to_image[:, 2]
            score = min(score, float(flag[0]))
            seed = points[33:35, :2]
            if score < lowest or not np.isfinite(seed).all() or np.hypot(*(seed[1] - seed[0])) < 1:
                return None
        return _Pose(points[:33], earlier, score)

    def _people(self, poses: Sequence[_Pose], image: np.ndarray, *, agree: float, same: float) -> DetectedPeople:
        if not poses:
            return DetectedPeople.nobody(len(self.joints))
        points = np.stack([p.points for p in poses])
        xy, before = points[:, COCO, :2], np.stack([p.earlier for p in poses])[:, COCO]
        area = extent(xy)
        stable = np.array([oks(b[None], x[None], a, SIGMA)[0, 0] for b, x, a in zip(before, xy, area, strict=True)])
        score = np.array([p.score for p in poses]) * stable
        similar = oks(xy, xy, np.minimum(area[:, None], area[None]), SIGMA)
        head = xy[:, :5].mean(1)
        apart = np.linalg.norm(head[:, None] - head[None], axis=-1)
        similar[apart < SAME_HEAD * np.sqrt(np.minimum(area[:, None], area[None]))] = 1
        similar[stable < agree] = 0  # what will be dropped must suppress nobody
        keep = suppress(similar, score, same)
        keep = keep[stable[keep] >= agree]
        height, width = image.shape[:2]
        moved = ((xy - before) ** 2).sum(-1) / (area[:, None] * (2 * SIGMA) ** 2)
        offset, by_visibility, by_movement = LOGISTIC
        logit = offset + by_visibility * np.clip(points[:, COCO, 3], -4, 2) + by_movement * np.log(moved + 0.01)
        inside = (xy > -0.5).all(-1) & (xy < np.array([width, height]) - 0.5).all(-1)
        keypoints = np.concatenate([xy, (inside / (1 + np.exp(-logit)))[..., None]], -1)
        return DetectedPeople(_boxes(points, (width, height)), score, keypoints).take(keep)

    def _net(self, which: int) -> _Net:
        if self._nets is None:
            self._nets = _Net(self.folder / FILES[0]), _Net(self.folder / FILES[1])
        return self._nets[which]


class _Pose:
    """33 landmarks (33, 5) x, y, z, visibility and presence logits; where they were one pass earlier; probability."""

    def __init__(self, points: np.ndarray, earlier: np.ndarray, score: float) -> None:
        self.points, self.earlier, self.score = points, earlier, score


def _boxes(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) around the landmarks (n, 33, 5) that are visible (all of them when fewer than three are)."""
    visible = points[..., 3] > 0
    visible |= visible.sum(1, keepdims=True) < 3
    low = np.where(visible[..., None], points[..., :2], np.inf).min(1)
    high = np.where(visible[..., None], points[..., :2], -np.inf).max(1)
    longer = (high - low).max(-1, keepdims=True)
    return clip_boxes(np.concatenate([low, high], -1) + PAD * longer, size)


def windows(width: int, height: int, shares: Sequence[float]) -> list[tuple[tuple[float, float], float]]:
    """Centre and side of each square window; never more than 16 along one side, for images of any shape."""
    squares = []
    for share in shares:
        if share >= 1:
            squares.append((((width - 1) / 2, (height - 1) / 2), float(max(width, height))))
            continue
        side = max(share * min(width, height), max(width, height) / 8)
        across, down = (_spread(length, side) for length in (width, height))
        squares += [((x, y), side) for y in down for x in across]
    return squares


def _spread(length: int, side: float) -> np.ndarray:
    if side >= length:
        return np.array([(length - 1) / 2])
    count = int(np.ceil((length - side) / (side / 2) - 1e-6)) + 1
    return np.linspace(side / 2, length - side / 2, count) - 0.5


def _anchors() -> np.ndarray:
    """Centres (2254, 2), 0..1, of the cells that the outputs belong to: 28 x 28 x 2, 14 x 14 x 2, 7 x 7 x 6."""
    centers = []
    for cells, each in ((28, 2), (14, 2), (7, 6)):
        axis = (np.arange(cells) + 0.5) / cells
        centers.append(np.repeat(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), each, 0))
    return np.concatenate(centers)


ANCHORS = _anchors()


def _upright(center: np.ndarray, side: float, angle: float, size: int) -> np.ndarray:
    """Affine (2, 3) from the pixels of a rotated square crop of `size` to those of the image."""
    scale = side / size
    scaled_rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([scaled_rotation, (center - scaled_rotation @ np.full(2, (size - 1) / 2))[:, None]], 1)


class _Net:
    """One .tflite file. LiteRT announces itself on the process's stderr; people need not read that."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise AssetError(
                f"detector blazepose needs ai-edge-litert: {error}", 'pip install "ai-edge-litert>=2.0,<3"'
            ) from error
        threads = int(os.environ.get("OMP_NUM_THREADS") or min(4, os.cpu_count() or 1))
        try:
            with _silent():
                self._interpreter: Any = Interpreter(str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise AssetError(f"{path.name} is damaged: {first}", f"delete {path} and run: {GET}") from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [o["index"] for o in self._interpreter.get_output_details()]

    def __call__(self, crop: np.ndarray, outputs: int) -> list[np.ndarray]:
        """The first outputs, without their batch axis, for one crop (size, size, 3) float32."""
        try:
            self._interpreter.set_tensor(self._input, crop[None])
            self._interpreter.invoke()
        except RuntimeError as error:
            raise MachineError(f"LiteRT: {str(error).splitlines()[0]}", "use another --detector") from error
        return [self._interpreter.get_tensor(i)[0] for i in self._outputs[:outputs]]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The process's stderr to nowhere, below Python; nothing happens when there is no stderr."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
