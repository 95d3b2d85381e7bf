"""The contract of a network: every member that verbs and loaders read, with its default.

A recoverer or a feature extractor is a subclass of `PersonModel`, a refiner one of `Refiner`. A subclass needs `name`,
`load` and `__call__` (a PersonModel also `columns`); everything else has a default that suits most networks. Classes
from outside this package must be subclasses too: `--model package.module:Class` refuses others and says so. Three
whole examples are recoverer.py, extractor.py and refiner.py in docs/examples.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stages.artefacts.kinds import Column
from stages.errors import AssetError, UsageError

if TYPE_CHECKING:  # `hmr --help` reads the tables of this package, and needs neither numpy nor torch
    import numpy as np
    import torch
    from torch import Tensor

    from stages.files.checkpoints import Checkpoint
    from stages.params import RefineParams
    from stages.smpl.body import Body


@dataclasses.dataclass
class PersonBatch:
    """A batch of n rows (one person in one frame each), in image pixels; (0, 0) is the centre of the first pixel.

    box (n, 4) xyxy · keypoints (n, J, 3) x, y, score (not visible: NaN, or score 0) · joints: the J names ·
    K (n, 3, 3) intrinsics · size (n, 2) image width, height · frame (n,) index into `images` ·
    images: the distinct images, RGB uint8 (H, W, 3), empty unless the network says `needs_images` ·
    columns: what earlier artefacts hold for these rows, e.g. "heatmaps/value", "features/dpmesh", "smpl/betas" ·
    row (n,) the rows' numbers in the artefact, which per-row random generators are seeded with.
    """

    box: np.ndarray
    keypoints: np.ndarray
    joints: tuple[str, ...]
    K: np.ndarray
    size: np.ndarray
    frame: np.ndarray
    row: np.ndarray
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.box)


@dataclasses.dataclass(frozen=True)
class InputRecord:
    """What an artefact says of its making; both are empty where it says nothing.

    model: of the network that made it (name, sha256, ...) · params: the settings of its stage and the attributes of its
    group, by name.
    """

    model: Mapping[str, Any]
    params: Mapping[str, Any]


class LoadableModel(abc.ABC):  # noqa: B024 (`load` differs between the two kinds)
    """What every network has, whatever it is for.

    name, licence: what artefacts say of it (the licence is that of the weights) · batch_size: rows in a batch unless
    the user says otherwise · remark: what users should know before they trust the results, shown as a warning · record:
    further text entries that artefacts keep of the network · sha256: of the weights that were used without a checkpoint
    · source_sha256: of the file that the checkpoint was converted from.
    """

    name: str = ""
    licence: str = "unknown"
    batch_size: int = 64
    remark: str = ""
    record: Mapping[str, str] = {}
    sha256: str = ""
    source_sha256: str = ""

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        """Whether a checkpoint with these tensor names is for this network: what `--ckpt` without `--model` asks."""
        return False

    @classmethod
    def compact(
        cls, checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """For `hmr convert`: the tensors that inference needs, in `dtype`, and a header of text entries.

        fold: add LoRA into the weights. Raises UsageError where a network has no compact form, which is the default.
        """
        raise UsageError(
            f"{checkpoint.where} is for {cls.__name__}, which has no compact form", "it can be used as it is"
        )

    @classmethod
    def describe(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """For `hmr checkpoint`: what the file holds beyond names and sizes. Raises AssetError for what is missing."""
        return {}

    def provenance(self, checkpoint: Checkpoint | None) -> dict[str, str]:
        """What an artefact says of the network that made it: name, SHA-256 of the weights, licence and `record`."""
        return {
            "name": self.name,
            "sha256": checkpoint.sha256 if checkpoint else self.sha256,
            "licence": self.licence,
            **({"source_sha256": self.source_sha256} if self.source_sha256 else {}),
            **self.record,
        }


class PersonModel(LoadableModel):
    """A network over rows: a recoverer (smpl, joints, vertices) or a feature extractor ("features/<name>" columns).

    columns: name, dtype and shape of what `__call__` returns · group_attrs: attributes of the columns' groups, e.g.
    {"joints": {"joints": [...]}} · uses: columns of earlier artefacts that it reads where they are there ("features/
    dpmesh"); with them `needs_images` may be False · options: the settings that this network has and others lack, name
    -> choices, the first being the default; each is an attribute, set by `set_option` · part_rows: rows between two
    saves, fewer for slow networks; None leaves it to the stage.
    """

    columns: tuple[Column, ...] = ()
    group_attrs: Mapping[str, Mapping[str, Any]] = {}
    uses: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {}
    part_rows: int | None = None

    @classmethod
    @abc.abstractmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str, body: Body | None) -> PersonModel:
        """The network with the weights of `checkpoint`, on `device`, for inference.

        checkpoint: None where the user named none: use packaged weights, or raise AssetError saying where to get some ·
        body: the body model that the user asked for, or None. It is shared: `body.to(device)` gives a copy.
        """

    @abc.abstractmethod
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        """The columns of n rows, by name: tensors or arrays (n, ...). Rows that are not finite become failed rows;
        "error", a list of n texts ('' where a row is fine), says why."""

    def needs_images(self, available: frozenset[str]) -> bool:
        """Whether `__call__` reads `PersonBatch.images`, given the columns of `uses` that are available."""
        return True

    def check_inputs(self, inputs: Mapping[str, InputRecord], sha256: str) -> None:
        """Refuse artefacts that were not made for this network; called once, before the first batch.

        inputs: by role ("heatmaps", "features", "latents") · sha256: of this network's checkpoint, '' without one.
        Raises InputError naming what differs and how to make the right one. The default accepts everything.
        """

    def set_option(self, name: str, value: str, default: str) -> None:
        """Set one of `options`; `default` is what a network without such a choice does.

        Raises UsageError for a value that is no choice, or any other than the default where the network has none.
        """
        if name not in self.options:
            if value != default:
                raise UsageError(f"{self.name} has no choice of {name}", f"leave out --{name}")
        elif value not in self.options[name]:
            raise UsageError(f"--{name} {value}: no such choice", f"one of {', '.join(self.options[name])}")
        else:
            setattr(self, name, value)

    def attention(self, people: PersonBatch) -> dict[str, np.ndarray]:
        """For `hmr view --attention`: how strongly places of the crop attend to each joint.

        {"attn16": (n, J, 16, 16), "attn8": (n, J, 8, 8): shares that sum to 1 over the joints, "seen": (n, J) bool,
        "images": (n, side, side, 3) uint8 crops}. Raises UsageError for a network without attention over joints, which
        is the default.
        """
        raise UsageError(f"{self.name} has no attention over joints", "--attention needs a DPMesh checkpoint")


@dataclasses.dataclass
class EstimateBatch:
    """n estimated bodies and the evidence for them: what a refiner reads. Camera frames are OpenCV's, in metres.

    rotmat (n, 24, 3, 3) rotations relative to the parent · betas (n, 10) · transl (n, 3) m, camera frame ·
    keypoints (n, 25, 3) BODY_25 x, y in image px and confidence, 0 where a joint is not visible · K (n, 3, 3) px ·
    size (n, 2) width, height of the image in px · K_known (n,) bool: the intrinsics are measured, not a default ·
    seed (n,) int64, which random numbers of a row are drawn from, whatever its batch.

    None where the mode or the inputs do not provide them: features (n, C) image features, as extracted ·
    consecutive (n,) bool, mode video: row i is one frame after row i - 1 of its track · group (n,) int64 from 0, mode
    views: rows of one number show one person at one moment · R_camera_to_world (n, 3, 3), t_world_to_camera (n, 3) m,
    of a calibrated rig: x_camera = R_camera_to_world^T x_world + t_world_to_camera · betas_known (n,) bool, with
    t_world_to_camera: the betas are the result of `Refiner.shared_betas`, not a row's estimate.
    """

    rotmat: Tensor
    betas: Tensor
    transl: Tensor
    keypoints: Tensor
    K: Tensor
    size: Tensor
    K_known: Tensor
    seed: Tensor
    features: Tensor | None = None
    consecutive: Tensor | None = None
    group: Tensor | None = None
    R_camera_to_world: Tensor | None = None
    t_world_to_camera: Tensor | None = None
    betas_known: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> EstimateBatch:
        """The batch with `function` applied to every tensor, for example to move it to a device or to select rows."""
        tensors: dict[str, Tensor | None] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: None if v is None else function(v) for name, v in tensors.items()}
        return EstimateBatch(**mapped)


@dataclasses.dataclass
class RefinedBatch:
    """n refined bodies, in the frames and units of EstimateBatch.

    rotmat (n, 24, 3, 3) · betas (n, 10) · transl (n, 3) m · error (n, 2) px: mean distance over the visible keypoints
    before and after · energy (n,): how unlikely the body is, lower is better, in a unit of the refiner's own · refined
    (n,) bool: False where a row had to be left and is returned as it was; None: every row was refined · hypotheses:
    all of them, where several were requested, with H on a second axis: rotmat (n, H, 24, 3, 3), ..., energy (n, H); the
    batch itself holds the one with the lowest energy.
    """

    rotmat: Tensor
    betas: Tensor
    transl: Tensor
    error: Tensor
    energy: Tensor
    refined: Tensor | None = None
    hypotheses: RefinedBatch | None = None


# What `stages.params.RefineParams` leaves to the refiner; the stage itself reads the other settings.
REFINER_OPTIONS = (
    "method", "preset", "smooth", "keypoint_weight", "loops", "hips", "hypotheses", "fit_steps", "fit_prior", "stats"
)  # fmt: skip


class Refiner(LoadableModel):
    """A network that improves estimated bodies by their evidence.

    body: the body model of the estimates, on the refiner's device · modes: the values of `--mode` that it knows ·
    options: those of REFINER_OPTIONS that it reads; it refuses the others where a user sets them · batch_size: rows in
    a batch of mode frame; the other modes refine whole windows.
    """

    body: Body
    modes: tuple[str, ...] = ("frame",)
    options: tuple[str, ...] = ()

    @classmethod
    @abc.abstractmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str, body: Body, stats: str | None = None) -> Refiner:
        """The refiner with the weights of `checkpoint`, on `device`, for inference.

        checkpoint: None where the user named none: use packaged weights, or raise AssetError saying where to get some ·
        body: the body model of the estimates, on `device` · stats: file with the statistics of the image features,
        where they do not lie beside the checkpoint.
        """

    @abc.abstractmethod
    def __call__(self, estimates: EstimateBatch, settings: Any) -> RefinedBatch:
        """Refine n rows. settings: what `settings` returned. Rows influence each other through `consecutive` and
        `group` alone."""

    def features(self, params: RefineParams) -> str:
        """Name of the image features that it reads ("pare": column "features/pare"), '' for none, the default."""
        return ""

    def check_inputs(self, params: RefineParams, columns: frozenset[str]) -> None:
        """Refuse settings and inputs that do not fit these weights; called once, before the first batch.

        columns: names of the columns of the features that the user named. Raises UsageError for settings that the
        refiner does not have, AssetError for missing features.
        """
        if params.mode not in self.modes:
            raise UsageError(f"{self.name} has no --mode {params.mode}", f"one of {', '.join(self.modes)}")
        for name in REFINER_OPTIONS:
            if name not in self.options and getattr(params, name) != getattr(type(params), name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{self.name} has no choice of {flag}", f"leave out {flag}")
        kind = self.features(params)
        if kind and f"features/{kind}" not in columns:
            raise AssetError(
                f"{self.name} is conditioned on {kind} features, and none are given",
                f"hmr features DETECTIONS --model {kind} --ckpt FILE -o F.h5, then --features F.h5",
            )

    def settings(self, params: RefineParams) -> Any:
        """What `__call__` needs of the settings of `hmr refine`; by default all of them."""
        return params

    def shared_betas(self, moments: Iterable[EstimateBatch], settings: Any) -> Tensor | None:
        """The betas (10,) of one person whom several cameras of a calibrated rig see, from batches of several moments.
        None: the mean of the estimates of each moment, which is the default."""
        return None
