"""YOLOX person boxes and RTMPose keypoints as ONNX files on onnxruntime: accurate and fast, also without a GPU.

Jiang et al., "RTMPose: real-time multi-person pose estimation based on MMPose", 2023. The folder holds `detector.onnx`
(YOLOX with its suppression inside, as mmdeploy exports it: outputs dets (1, n, 5) and labels) and `pose.onnx` (SimCC
outputs simcc_x, simcc_y). docs/detectors.md says where the authors publish both (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError, MachineError
from stages.files.hashing import sha256_of_files
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS
from stages.keypoints.oks import iou, suppress
from stages.models.detectors.base import DetectedPeople, batch_for, clip_boxes

FILES = ("detector.onnx", "pose.onnx")
MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # RGB, of RTMPose's configs; YOLOX takes plain BGR
STD = np.array([58.395, 57.12, 57.375], np.float32)
PADDING = 1.25  # of the box, by mmpose's top-down rule
SPLIT = 2.0  # SimCC bins per crop pixel
GREY = 114  # YOLOX's border
LOWEST, OVERLAP = 0.3, 0.65  # YOLOX's score and suppression
CROPS = 64  # people at a time through RTMPose on a CPU
MEGABYTES = {"detector": 300, "pose": 20}  # of GPU memory for one image, one crop


class RtmPose:
    """See the module. Any RTMPose whose first 17 joints are COCO's will do (COCO, Halpe-26, whole body)."""

    name = "rtmpose"
    licence = "Apache-2.0"
    joints = SETS["coco17"]
    score_definition = "the lower one of the peaks of RTMPose's SimCC curves along x and y, cut to 0..1"
    min_score = 0.5

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.sha256 = sha256_of_files(*(folder / name for name in FILES))
        self._sessions: dict[str, Any] = {}
        self.batch_size = batch_for(device, MEGABYTES["detector"], cpu=8)

    @classmethod
    def missing(cls, path: Path | None) -> str:
        if importlib.util.find_spec("onnxruntime") is None:
            return 'pip install "hmr-toolchain[rtmpose]"'
        if path and all((path / name).is_file() for name in FILES):
            return ""
        return "hmr assets get rtmpose, or --detector-path FOLDER with detector.onnx and pose.onnx"

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> RtmPose:
        """From the folder with the two ONNX files. Raises AssetError when they or onnxruntime are missing."""
        if hint := cls.missing(path):
            raise AssetError("detector rtmpose is not ready on this machine", hint)
        assert path
        return cls(path, device)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        if boxes is None:
            detections = self._people(images)
        else:
            detections = [DetectedPeople(b, np.full(len(b), np.nan), np.zeros((len(b), 17, 3))) for b in boxes]
        if any(len(each) for each in detections):
            box = np.concatenate([each.box for each in detections]).astype(float)
            frame = np.repeat(np.arange(len(detections)), [len(each) for each in detections])
            n = batch_for(self.device, MEGABYTES["pose"], cpu=CROPS, most=256)
            keypoints = np.concatenate(
                [self._keypoints(images, box[a : a + n], frame[a : a + n]) for a in range(0, len(box), n)]
            )
            for i, each in enumerate(detections):
                each.keypoints = keypoints[frame == i]
        return detections

    def _people(self, images: list[np.ndarray]) -> list[DetectedPeople]:
        """The boxes of each image; all images in one call where the file takes several."""
        session = self._session("detector.onnx")
        side = _sizes(session, (640, 640))
        scales = [min(side[0] / image.shape[0], side[1] / image.shape[1]) for image in images]
        inputs = np.stack([_letterbox(image, scale, side) for image, scale in zip(images, scales, strict=True)])
        pieces = [inputs] if _several(session) else [inputs[k : k + 1] for k in range(len(inputs))]
        results = [self._run(session, piece, 2) for piece in pieces]
        if any(dets.ndim != 3 or dets.shape[-1] != 5 for dets, *_ in results):
            raise AssetError(
                f"{FILES[0]} gives {results[0][0].shape}, not boxes with scores (images, n, 5)",
                "export YOLOX with its suppression inside, as mmdeploy does",
            )
        dets = [each for result in results for each in result[0]]
        labels = [each for result in results for each in result[1].reshape(len(result[0]), -1)]
        detections = []
        for image, scale, each, label in zip(images, scales, dets, labels, strict=True):
            ours = (each[:, 4] > LOWEST) & (label == 0)
            # YOLOX measures from the image's corner; our pixel (0, 0) is the centre of the first pixel.
            box = clip_boxes(each[ours, :4] / scale - 0.5, (image.shape[1], image.shape[0]))
            people = DetectedPeople(box, each[ours, 4].astype(float), np.zeros((len(box), 17, 3)))
            detections.append(people.take(suppress(iou(box, box), people.score, OVERLAP)))
        return detections

    def _keypoints(self, images: list[np.ndarray], box: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Keypoints (n, 17, 3) of boxes (n, 4) in the images `frame` (n,)."""
        session = self._session("pose.onnx")
        height, width = _sizes(session, (256, 192))
        affine = crops.mmpose_affine(box, (width, height), PADDING)
        crop = crops.warp(images, frame, affine, (width, height))
        tensor = np.ascontiguousarray(((crop - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)
        pieces = [tensor] if _several(session) else [tensor[k : k + 1] for k in range(len(tensor))]
        curves = [self._run(session, piece, 2) for piece in pieces]
        x, y = (np.concatenate([c[axis] for c in curves])[:, :17] for axis in (0, 1))
        if x.ndim != 3 or x.shape[1] != 17:
            raise AssetError(f"pose.onnx gives {x.shape}, not SimCC curves (n, 17, bins)", "it is not an RTMPose")
        position = np.stack([x.argmax(-1), y.argmax(-1)], -1) / SPLIT
        keypoints = np.concatenate([position, np.minimum(x.max(-1), y.max(-1)).clip(0, 1)[..., None]], -1)
        bad = ~np.isfinite(affine).all((1, 2))
        affine[bad] = np.eye(2, 3)
        keypoints[..., :2] = crops.apply(crops.invert(affine), keypoints[..., :2])
        keypoints[bad] = np.nan
        return keypoints

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
            requested = ["CUDAExecutionProvider"] if self.device.startswith("cuda") else []
            providers = [p for p in requested if p in onnxruntime.get_available_providers()] + ["CPUExecutionProvider"]
            try:
                self._sessions[name] = onnxruntime.InferenceSession(str(self.folder / name), options, providers)
            except Exception as error:  # onnxruntime's exceptions have no common public base
                raise AssetError(
                    f"{self.folder / name} cannot be loaded: {str(error).splitlines()[0][:200]}", "download it again"
                ) from error
        return self._sessions[name]

    def _run(self, session: Any, tensor: np.ndarray, outputs: int) -> list[np.ndarray]:
        try:
            values = session.run(None, {session.get_inputs()[0].name: tensor})
        except Exception as error:
            raise MachineError(f"onnxruntime: {str(error).splitlines()[0][:200]}", "try --device cpu") from error
        if len(values) < outputs:
            raise AssetError(f"the ONNX file gives {len(values)} outputs, {outputs} are needed", "docs/detectors.md")
        return values[:outputs]


def _sizes(session: Any, default: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the network wants; `default` where it takes any."""
    shape = session.get_inputs()[0].shape
    height, width = (s if isinstance(s, int) else d for s, d in zip(shape[2:], default, strict=True))
    return height, width


def _several(session: Any) -> bool:
    """Whether the network takes any number of inputs at a time."""
    return not isinstance(session.get_inputs()[0].shape[0], int)


def _letterbox(image: np.ndarray, scale: float, side: tuple[int, int]) -> np.ndarray:
    """The network's input (3, height, width), BGR: the image in the upper left corner, edges on edges, grey beyond."""
    affine = np.array([[[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]]])
    crop = crops.warp([image], np.zeros(1, np.int64), affine, side[::-1])[0]
    height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
    crop[height:], crop[:, width:] = GREY, GREY
    return np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1), np.float32)
