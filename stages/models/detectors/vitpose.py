"""RT-DETR person boxes and ViTPose keypoints, both through transformers: the most accurate detector, best on a GPU.

Zhao et al., "DETRs beat YOLOs on real-time object detection", CVPR 2024; Xu et al., "ViTPose: simple vision transformer
baselines for human pose estimation", NeurIPS 2022. Weights come from the Hugging Face hub (both Apache-2.0) or from a
local folder with `detector/` and `pose/`, each as `save_pretrained` writes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError
from stages.files.fetching import HUB, HUB_FILES
from stages.files.hashing import sha256_of_files
from stages.keypoints.joint_sets import SETS
from stages.models.detectors.base import DetectedPeople, batch_for, clip_boxes

MEGABYTES = {"detector": 250, "pose": 40}  # of GPU memory for one image, one crop
CROPS = 32  # people at a time through ViTPose on a CPU
LOWEST = 0.3  # RT-DETR's score below which a box is not looked at


class VitPose:
    """See the module. `folders` are local; networks are loaded at the first call."""

    name = "vitpose"
    licence = "Apache-2.0"
    joints = SETS["coco17"]
    score_definition = "height of ViTPose's heatmap peak, about 1 where it is sure; 0 where it sees nothing"
    min_score = 0.5

    def __init__(self, folders: dict[str, Path], device: str) -> None:
        self.folders, self.device = folders, device
        self.sha256 = sha256_of_files(*(folders[part] / file for part in HUB for file in HUB_FILES))
        self._loaded: tuple[Any, ...] | None = None
        self.batch_size = batch_for(device, MEGABYTES["detector"], cpu=8)

    @classmethod
    def missing(cls, path: Path | None) -> str:
        try:
            _folders(path, local=True)
        except AssetError as error:
            return error.hint
        return ""

    @classmethod
    def load(cls, path: Path | None, *, device: str) -> VitPose:
        """From a folder, else from the hub (downloaded once into its cache). Raises AssetError when neither works."""
        return cls(_folders(path, local=False), device)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        import torch

        with torch.inference_mode():
            if boxes is None:
                detections = self._people(images)
            else:
                detections = [DetectedPeople(b, np.full(len(b), np.nan), np.zeros((len(b), 17, 3))) for b in boxes]
            self._keypoints(images, detections)
        return detections

    def _people(self, images: list[np.ndarray]) -> list[DetectedPeople]:
        processor, network, *_ = self._networks()
        sizes = [image.shape[:2] for image in images]
        # Every image is resized to one size by the processor, so the batch is one tensor.
        inputs = processor(images=images, return_tensors="pt", input_data_format="channels_last").to(self.device)
        results = processor.post_process_object_detection(network(**inputs), target_sizes=sizes, threshold=LOWEST)
        person = next((int(k) for k, v in network.config.id2label.items() if v.lower() == "person"), 0)
        detections = []
        for image, result in zip(images, results, strict=True):
            ours = result["labels"] == person
            # RT-DETR measures from the image's corner; our pixel (0, 0) is the centre of the first pixel.
            box = clip_boxes(result["boxes"][ours].cpu().numpy() - 0.5, (image.shape[1], image.shape[0]))
            score = result["scores"][ours].cpu().numpy()
            detections.append(DetectedPeople(box, score, np.zeros((len(box), 17, 3))))
        return detections

    def _keypoints(self, images: list[np.ndarray], detections: list[DetectedPeople]) -> None:
        """Fill in the keypoints of `detections`, people of all images in common batches."""
        import torch

        _, _, processor, network = self._networks()
        people = [(i, k) for i, each in enumerate(detections) for k in range(len(each))]
        mixture = getattr(network.config.backbone_config, "num_experts", 1) > 1
        count = batch_for(self.device, MEGABYTES["pose"], cpu=CROPS, most=256)
        for start in range(0, len(people), count):
            chunk = people[start : start + count]
            which = sorted({i for i, _ in chunk})
            boxes = [
                np.concatenate([b[:, :2], np.maximum(b[:, 2:] - b[:, :2], 1)], 1)
                for b in (detections[i].box[[k for j, k in chunk if j == i]] for i in which)
            ]
            inputs = processor(
                [images[i] for i in which], boxes=boxes, return_tensors="pt", input_data_format="channels_last"
            ).to(self.device)
            if mixture:  # ViTPose++ has one expert per data set; 0 is COCO
                inputs["dataset_index"] = torch.zeros(len(chunk), dtype=torch.int64, device=self.device)
            poses = processor.post_process_pose_estimation(network(**inputs), boxes=boxes)
            for (i, k), pose in zip(chunk, (p for each in poses for p in each), strict=True):
                detections[i].keypoints[k, :, :2] = pose["keypoints"].cpu().numpy()
                detections[i].keypoints[k, :, 2] = pose["scores"].cpu().numpy().clip(0, 1)

    def _networks(self) -> tuple[Any, ...]:
        if self._loaded is None:
            from transformers import AutoImageProcessor, RTDetrForObjectDetection, VitPoseForPoseEstimation

            with _quiet():
                self._loaded = tuple(
                    part
                    for folder, model in zip(
                        (self.folders["detector"], self.folders["pose"]),
                        (RTDetrForObjectDetection, VitPoseForPoseEstimation),
                        strict=True,
                    )
                    for part in (_read(AutoImageProcessor, folder), _read(model, folder).to(self.device).eval())
                )
            if self._loaded[3].config.num_labels != 17:
                raise AssetError(
                    f"{self.folders['pose']} finds {self._loaded[3].config.num_labels} joints, not COCO's 17"
                )
        return self._loaded


def _read(kind: Any, folder: Path) -> Any:
    network = "Processor" not in kind.__name__
    try:
        if not network:
            return kind.from_pretrained(folder, local_files_only=True)
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if absent := [*info["missing_keys"], *info["mismatched_keys"]]:  # transformers would draw them at random
            raise ValueError(
                f"{len(absent)} tensors are missing or of another shape, such as {sorted(map(str, absent))[0]}"
            )
        return model
    except Exception as error:  # transformers raises whatever its readers raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"detector vitpose: {folder} cannot be loaded: {first[:200]}", "save it anew with save_pretrained"
        ) from error


def _folders(path: Path | None, *, local: bool) -> dict[str, Path]:
    """The two local folders. Without `local`, the hub may be asked. Raises AssetError."""
    if path is not None:
        folders = {part: path / part for part in HUB}
        for folder in folders.values():
            if lacking := [name for name in HUB_FILES if not (folder / name).is_file()]:
                raise AssetError(
                    f"detector vitpose: {folder} lacks {', '.join(lacking)}",
                    f"--detector-path wants a folder with detector/ and pose/: hf download {HUB['detector']} "
                    f"--local-dir {path}/detector; hf download {HUB['pose']} --local-dir {path}/pose",
                )
        return folders
    import huggingface_hub

    folders = {}
    for part, name in HUB.items():
        try:
            # Complete already? Then the network is left alone.
            cached = [huggingface_hub.try_to_load_from_cache(name, file) for file in HUB_FILES]
            if all(isinstance(each, str) for each in cached):
                folders[part] = Path(str(cached[0])).parent
                continue
            if local:
                raise OSError("not in the hub's cache")
            folders[part] = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
        except Exception as error:  # the hub's client has no common base class for "no network"
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AssetError(
                f"detector vitpose: {name} is not on this machine: {first[:200]}",
                "with network: hmr assets get vitpose; or --detector-path FOLDER; or --detector movenet",
            ) from error
    return folders


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' remarks about its own image processors and its bars are not for people who detect."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
