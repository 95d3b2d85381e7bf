"""Any top-down network of mmpose, through mmpose's public inference API and the configs it ships.

mmpose's own requirements do not install on a current Python, but the part of it that is needed runs without compiled
code (docs/detectors.md):

    pip install "hmr-toolchain[mmpose]" && pip install --no-deps mmpose==1.3.2

`stand_in` puts inert modules in the place of what is then missing (torchvision, mmdet, xtcocotools, mmcv's compiled
operators, pkg_resources): mmpose.apis imports them, the networks meant here never call them. The checkpoint is read by
our own weights-only reader, never by mmengine's. People come from elsewhere: `needs_boxes`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError
from stages.files.checkpoints import check_keys, read_checkpoint
from stages.files.hashing import sha256_of_files
from stages.keypoints.joint_sets import SETS
from stages.models.detectors.base import DetectedPeople

INSTALL = 'pip install "hmr-toolchain[mmpose]" && pip install --no-deps mmpose==1.3.2'
_DATE = re.compile(r"-[0-9a-f]{8}_\d{8}$")  # how mmpose's checkpoints end: -<hash>_<date>


class MMPose:
    """See the module. `path` is the checkpoint; the shipped config with its name is taken, or `config` by name."""

    name = "mmpose"
    licence = "unknown"
    joints = SETS["coco17"]
    score_definition = "mmpose's keypoint score: height of the heatmap's or SimCC curve's peak, cut to 0..1"
    min_score = 0.5
    batch_size = 8
    needs_boxes = True

    def __init__(self, path: Path, device: str, config: str = "") -> None:
        self.path, self.device, self.config = path, device, config
        self.sha256 = sha256_of_files(path)
        self._model: Any = None

    @classmethod
    def missing(cls, path: Path | None) -> str:
        if any(importlib.util.find_spec(name) is None for name in ("mmpose", "mmengine", "mmcv")):
            return INSTALL
        if path is None or not path.is_file():
            return "--detector-path CHECKPOINT.pth of mmpose's model zoo (and --detector-config NAME)"
        return ""

    @classmethod
    def load(cls, path: Path | None, *, device: str, config: str = "") -> MMPose:
        """Raises AssetError: mmpose not installed, no checkpoint, no shipped config of that name."""
        if hint := cls.missing(path):
            raise AssetError("detector mmpose is not ready on this machine", hint)
        assert path
        return cls(path, device, config)

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[DetectedPeople]:
        if boxes is None:
            raise AssetError("detector mmpose finds no people, only their joints", "give it boxes: --boxes FILE")
        return [self._complete(image, np.asarray(box, float)) for image, box in zip(images, boxes, strict=True)]

    def _complete(self, image: np.ndarray, box: np.ndarray) -> DetectedPeople:
        result = DetectedPeople(box, np.full(len(box), np.nan), np.full((len(box), 17, 3), np.nan))
        fine = np.flatnonzero(np.isfinite(box).all(1) & (box[:, 2:] > box[:, :2]).all(1))
        if not len(fine):  # mmpose takes an empty list for "the whole picture is one person"
            return result
        model = self._load()
        from mmpose.apis import inference_topdown

        with _quiet():
            samples = inference_topdown(model, image[..., ::-1].copy(), box[fine], "xyxy")  # wants BGR
        for k, sample in zip(fine, samples, strict=True):
            pose = sample.pred_instances
            result.keypoints[k, :, :2] = pose.keypoints[0, :17]
            result.keypoints[k, :, 2] = np.clip(pose.keypoint_scores[0, :17], 0, 1)
        return result

    def _load(self) -> Any:
        if self._model is None:
            try:
                stand_in()
                from mmpose.apis import init_model
            except ImportError as error:
                raise AssetError(f"mmpose does not import: {error}", INSTALL) from error
            config = shipped_config(self.config or _DATE.sub("", self.path.stem))
            checkpoint = read_checkpoint(self.path)
            with _quiet():
                model = init_model(str(config), None, device=self.device)
            weights = checkpoint.without("state_dict.")
            expected = model.state_dict()
            check_keys(
                expected,
                {n: t for n, t in weights.items() if n in expected or n.split(".")[0] in ("backbone", "neck", "head")},
                where=checkpoint.where,
            )
            model.load_state_dict({n: weights[n] for n in expected})
            if model.dataset_meta and model.dataset_meta.get("num_keypoints", 17) not in (17, 26, 133):
                raise AssetError(f"{config.name} does not begin with COCO's 17 joints", "take a COCO or Halpe model")
            self._model = model
        return self._model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """mmengine warns of every package that was left out."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def shipped_config(name: str) -> Path:
    """The config called `name` inside the installed mmpose package. Only those: a config is a program.

    Raises AssetError naming near ones.
    """
    import difflib

    root = Path(str(importlib.metadata.distribution("mmpose").locate_file("mmpose"))) / ".mim" / "configs"
    shipped = {path.stem: path for path in root.rglob("*.py") if "_base_" not in path.parts}
    if name not in shipped:
        near = (
            ", ".join(difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)) or f"{len(shipped)} are under {root}"
        )
        raise AssetError(f"mmpose ships no config {name!r}", f"--detector-config NAME, one of: {near}")
    return shipped[name]


# ---- what mmpose.apis imports and this detector does not use


def stand_in() -> None:
    """Put inert modules where a package that mmpose imports is absent or does not import. Safe to call again."""
    if _broken("pkg_resources"):  # gone from setuptools 82
        _put(
            "pkg_resources",
            DistributionNotFound=importlib.metadata.PackageNotFoundError,
            get_distribution=importlib.metadata.distribution,
            parse_version=lambda text: tuple(int(n) for n in re.findall(r"\d+", text)),
        )
    if importlib.util.find_spec("mmcv._ext") is None and "mmcv._ext" not in sys.modules:
        importlib.import_module("mmcv")
        _put("mmcv._ext")
    if _broken("torchvision"):
        _put("torchvision", __version__="0")
        _put("torchvision.transforms")
    if _broken("xtcocotools.mask"):
        for name in ("xtcocotools", "xtcocotools.coco", "xtcocotools.cocoeval", "xtcocotools.mask"):
            _put(name)
    if _broken("mmdet"):
        _put("mmdet")
        _put("mmdet.utils", ConfigType=dict, reduce_mean=lambda tensor: tensor)


@functools.cache
def _broken(name: str) -> bool:
    """Does `name` fail to import? Half-loaded modules of it are taken away."""
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception:  # an operator or version check of the package itself, not only ImportError
        for module in set(sys.modules) - before:
            if module.split(".")[0] == name.split(".")[0]:
                del sys.modules[module]
        return True
    return False


class _Inert(types.ModuleType):
    """A module any name can be imported from; what was imported says so when it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, so that modules below it can be imported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"

        def refuse(self: Any, *_: Any, **__: Any) -> None:
            raise AssetError(f"this mmpose model needs {full}, which is not installed", "choose a simpler model")

        return type(name, (), {"__init__": refuse})


def _put(name: str, **content: Any) -> None:
    module = _Inert(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # or importlib.util.find_spec(name) raises
    module.__dict__.update(content)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
