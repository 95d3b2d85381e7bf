"""DPMesh up to its features: `hmr features` (DPMeshExtractor, DPMeshLatents)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import Column
from stages.errors import ArtefactError, AssetError, InputError
from stages.files.checkpoints import Checkpoint
from stages.models.base import InputRecord, PersonBatch, PersonModel
from stages.models.dpmesh.inputs import CROP_AFFINE, FEATURES, HEAT, LATENT, SIGMA, DPMeshCrops, crop_images, crops_of
from stages.smpl.body import Body

CROP_COLUMN = Column(CROP_AFFINE, "f4", ("R", 2, 3), "px", "affine from image to 256-pixel crop")
FEATURE_COLUMN = Column(FEATURES, "f2", ("R", 2048, 8, 8), "", "DPMesh's merged features, not negative")


class DPMeshModel(PersonModel):
    """The part that the recoverer and both extractors share."""

    name = "dpmesh"
    batch_size = 4
    part_rows = 64  # of every verb: batches of one size are then the same batches, whichever artefacts are stored
    group_attrs: Mapping[str, Mapping[str, Any]] = {"features": {"standardised": False}}
    uses: tuple[str, ...] = ("heatmaps/value", "heatmaps/crop", LATENT, CROP_AFFINE)

    def __init__(self, model: Any, *, device: str = "cpu", licence: str = "unknown", source_sha256: str = "") -> None:
        from stages.models.dpmesh.cpu_inference import prepare

        if device == "cpu" and model.dtype == torch.float16:  # CPUs emulate float16, fifty times slower
            model = model.float()
        self.model, self.device, self.licence = prepare(model.eval().to(device)), device, licence
        self.source_sha256 = source_sha256
        self.batch_size = 4 if device == "cpu" else 64

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        from stages.models.dpmesh.checkpoint_names import recognises

        return recognises(names)

    @classmethod
    def compact(
        cls, checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """For `hmr convert`: see `weights.compact`."""
        from stages.models.dpmesh.weights import compact

        return compact(checkpoint, fold=fold, dtype=dtype)

    @classmethod
    def describe(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """For `hmr checkpoint`: see `weights.describe`."""
        from stages.models.dpmesh.weights import describe

        return describe(checkpoint)

    def needs_images(self, available: frozenset[str]) -> bool:
        return LATENT not in available

    def check_inputs(self, inputs: Mapping[str, InputRecord], sha256: str) -> None:
        if heatmaps := inputs.get("heatmaps"):
            settings = {"joint_set": "dpmesh30", "size": HEAT, "sigma": SIGMA, "threshold": 0.05}
            differing = [
                f"{n} {heatmaps.params[n]}, not {v}" for n, v in settings.items() if heatmaps.params.get(n, v) != v
            ]
            if differing:
                raise InputError(
                    f"these heatmaps were made with {'; '.join(differing)}", "hmr heatmaps without such flags"
                )
        if latents := inputs.get("latents"):
            self._check_latents(latents.model)
        features = inputs.get("features")
        if features and features.model.get("sha256"):
            model = features.model
            made_with = {str(model.get(key) or "") for key in ("sha256", "source_sha256")} - {""}
            if not made_with & {sha256, self.source_sha256}:
                raise InputError(
                    f"these features were made with another checkpoint: {model['sha256'][:12]}, not {sha256[:12]}",
                    "give the one they were made with, or make them again: hmr features --ckpt ...",
                )

    def _check_latents(self, model: Mapping[str, Any]) -> None:
        if model.get("name", "dpmesh-latents") != "dpmesh-latents":
            raise InputError(
                f"these are features of {model['name']}, not latents", "make them: hmr features --model dpmesh-latents"
            )
        if model.get("vae") and model["vae"] != self.vae():
            raise InputError(
                "these latents were made by another autoencoder than the checkpoint's",
                "make them with this checkpoint: hmr features --model dpmesh-latents --ckpt ...",
            )

    def vae(self) -> str:
        """The identity of the autoencoder: a SHA-256 over its weights, whatever their names.

        Only before the first batch, which frees the original weights (cpu_inference.py).
        """
        parts = sorted(hashlib.sha256(_bytes(p.float())).digest() for p in self.model.vae.parameters())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def latent(self, people: PersonBatch, condition: DPMeshCrops) -> Tensor:
        """(n, 4, 32, 32), stored or computed."""
        if LATENT in people.columns:
            return torch.from_numpy(np.asarray(people.columns[LATENT], np.float32)).to(self.device)
        image = crop_images(people.images, people.frame, condition.affine).to(self.device)
        return self.by_row(self.model.latent, image.to(self.model.dtype))

    def diffusion(self, people: PersonBatch, condition: DPMeshCrops) -> dict[str, Tensor]:
        """Maps, attention and merged features (n, 2048, 8, 8).

        Stored heatmaps are float16. Where they equal those of the keypoints up to that rounding, the exact ones are
        used, so that storing them changes no bit; others are used as they are.
        """
        joints, mask = (torch.from_numpy(x).to(self.device) for x in (condition.xy, condition.mask))
        maps, stored = self.model.condition(joints, mask), people.columns.get("heatmaps/value")
        if stored is not None:
            if stored.shape[1:] != maps.shape[1:]:
                have, want = (" x ".join(map(str, shape[1:])) for shape in (stored.shape, maps.shape))
                raise ArtefactError(
                    f"this checkpoint takes heatmaps of {want}, these are {have}", "hmr heatmaps without flags"
                )
            stored_maps = torch.from_numpy(np.asarray(stored, np.float32)).to(self.device)
            same = ((stored_maps - maps).abs() < 1e-3).all(dim=(1, 2, 3), keepdim=True)  # rounding: 2.5e-4 of peak 1
            maps = torch.where(same, maps, stored_maps)
        return self.by_row(self.model.features, self.latent(people, condition), joints, mask, maps)

    def by_row(self, compute: Callable[..., Any], *tensors: Tensor) -> Any:
        """`compute` on tensors of n rows; on a CPU row by row, which is as fast there.

        oneDNN takes other kernels for other batch sizes. Their rounding, 1e-7, can become 1e-4 in a badly conditioned
        rotation; row by row, results do not depend on who else is in a batch.
        """
        if self.device != "cpu" or len(tensors[0]) < 2:
            return compute(*tensors)
        outputs = [compute(*(x[i : i + 1].clone() for x in tensors)) for i in range(len(tensors[0]))]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}

    @torch.no_grad()
    def attention(self, people: PersonBatch) -> dict[str, np.ndarray]:
        """The cross-attention of the paper's Figure 6, over the joints of SETS["dpmesh30"]; see PersonModel."""
        condition = crops_of(people)
        maps = self.diffusion(people, condition)
        patches = crop_images(people.images, people.frame, condition.affine)
        return {
            "attn16": maps["attn16"].float().cpu().numpy(),
            "attn8": maps["attn8"].float().cpu().numpy(),
            "seen": condition.mask,
            "images": (patches.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8),
        }


class DPMeshLatents(DPMeshModel):
    """The crop's Stable Diffusion latent: half the work of DPMesh, the same for every checkpoint with that encoder,
    whatever the keypoints."""

    name = "dpmesh-latents"
    uses = ("heatmaps/crop",)
    columns = (
        Column(LATENT, "f4", ("R", 4, 32, 32), "", "posterior mean of the SD 1.5 encoder, unscaled"),
        CROP_COLUMN,
    )

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.record = {"vae": self.vae()}

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> DPMeshLatents:
        return cls(load_network(checkpoint)[0], device=device, **weights_origin(checkpoint))

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        condition = crops_of(people)
        latent = self.latent(people, condition).float()
        return {LATENT: latent, CROP_AFFINE: condition.affine.astype(np.float32), "error": condition.errors}


class DPMeshExtractor(DPMeshModel):
    """The merged diffusion features. `precision`: "float16", or "float32" for the bits of a run without files."""

    options = {"precision": ("float16", "float32")}  # noqa: RUF012
    precision = "float16"
    columns = (FEATURE_COLUMN, CROP_COLUMN)

    def set_option(self, name: str, value: str, default: str) -> None:
        super().set_option(name, value, default)
        dtype = {"float16": "f2", "float32": "f4"}[self.precision]
        self.columns = (dataclasses.replace(FEATURE_COLUMN, dtype=dtype), CROP_COLUMN)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Body | None = None) -> DPMeshExtractor:
        return cls(load_network(checkpoint)[0], device=device, **weights_origin(checkpoint))

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        condition = crops_of(people)
        # Features reach 65504 only when weights are broken; a clamp would hide that, an infinity fails the row.
        merged = self.diffusion(people, condition)["merged"].to(getattr(torch, self.precision))
        return {FEATURES: merged, CROP_AFFINE: condition.affine.astype(np.float32), "error": condition.errors}


def load_network(checkpoint: Checkpoint | None) -> tuple[Any, dict[str, Tensor]]:
    if checkpoint is None:
        raise AssetError(
            "DPMesh has no weights of its own in hmr",
            "give the authors' checkpoint by --ckpt (EternalEvan/DPMesh, for example 3dpw-pc_best_ckpt.pth.tar)",
        )
    from stages.models.dpmesh.weights import load

    return load(checkpoint)


def weights_origin(checkpoint: Checkpoint | None) -> dict[str, str]:
    """The licence of the weights, and the SHA-256 of the file that they were converted from."""
    from stages.models.dpmesh.checkpoint_names import LICENCE

    known = checkpoint.licence if checkpoint else "unknown"
    return {
        "licence": LICENCE if known == "unknown" else known,
        "source_sha256": checkpoint.metadata.get("source_sha256", "") if checkpoint else "",
    }


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
