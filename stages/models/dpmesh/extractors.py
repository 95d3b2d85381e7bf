"""DPMesh up to its features: `hmr features` (DPMeshExtractor, DPMeshLatents)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import Column
from stages.errors import ArtefactError, AssetError, InputError
from stages.files.checkpoints import Checkpoint
from stages.models.base import PersonBatch
from stages.models.dpmesh.inputs import (
    CROP_COLUMN,
    FEATURES,
    HEAT,
    LATENT,
    PLACE,
    SIGMA,
    DPMeshCrops,
    crop_images,
    crops_of,
)


class DPMeshModel:
    """What the three share: the network, the device, the licence of the weights, `source`: the SHA-256 of the file that
    the checkpoint was converted from ('' if it was not)."""

    name = "dpmesh"
    batch_size = 4
    part_rows = 64  # of every verb, so that batches of one size are the same batches whatever lies in files
    group_attrs: Mapping[str, Mapping[str, Any]] = {"features": {"standardised": False}}
    uses: tuple[str, ...] = ("heatmaps/value", "heatmaps/crop", LATENT, PLACE)

    def __init__(self, model: Any, *, device: str = "cpu", licence: str = "unknown", source: str = "") -> None:
        from stages.models.dpmesh.cpu_inference import prepare

        if device == "cpu" and model.dtype == torch.float16:  # which CPUs emulate, fifty times slower
            model = model.float()
        self.model, self.device, self.licence = prepare(model.eval().to(device)), device, licence
        self.source = source
        self.batch_size = 4 if device == "cpu" else 64

    @classmethod
    def recognises(cls, names: frozenset[str]) -> bool:
        from stages.models.dpmesh.checkpoint_names import recognises

        return recognises(names)

    @staticmethod
    def compact(checkpoint: Checkpoint, *, fold: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
        """For `hmr convert`: see `weights.compact`."""
        from stages.models.dpmesh.weights import compact

        return compact(checkpoint, fold=fold, dtype=dtype)

    @staticmethod
    def describe(checkpoint: Checkpoint) -> dict[str, Any]:
        """For `hmr checkpoint`: see `weights.describe`."""
        from stages.models.dpmesh.weights import describe

        return describe(checkpoint)

    def needs_images(self, given: frozenset[str]) -> bool:
        return LATENT not in given

    def check_given(self, role: str, sha256: str, model: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Refuse an artefact that this network would take and that is not for it. Called before the first batch.

        role: heatmaps, latents or features · sha256 of the checkpoint · model, params: what the artefact says it was
        made with, {} where it says nothing. Raises InputError.
        """
        if role == "heatmaps":
            wanted = {"joint_set": "dpmesh30", "size": HEAT, "sigma": SIGMA, "threshold": 0.05}
            odd = [f"{n} {params[n]}, not {v}" for n, v in wanted.items() if params.get(n, v) != v]
            if odd:
                raise InputError(f"these heatmaps were made with {'; '.join(odd)}", "hmr heatmaps without such flags")
        elif role == "latents" and model.get("name", "dpmesh-latents") != "dpmesh-latents":
            raise InputError(
                f"these are features of {model['name']}, not latents", "make them: hmr features --model dpmesh-latents"
            )
        elif role == "latents" and model.get("vae") and model["vae"] != self.vae():
            raise InputError(
                "these latents were made by another autoencoder than the checkpoint's",
                "make them with this checkpoint: hmr features --model dpmesh-latents --ckpt ...",
            )
        elif role == "features" and model.get("sha256"):
            theirs = {str(model.get(key) or "") for key in ("sha256", "source_sha256")} - {""}
            if not theirs & {sha256, self.source}:
                raise InputError(
                    f"these features were made with another checkpoint: {model['sha256'][:12]}, not {sha256[:12]}",
                    "give the one they were made with, or make them again: hmr features --ckpt ...",
                )

    def vae(self) -> str:
        """What tells autoencoders apart: a SHA-256 over the weights, whatever their names.

        Only before the first batch, which lets go of them.
        """
        parts = sorted(hashlib.sha256(_bytes(p.float())).digest() for p in self.model.vae.parameters())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def latent(self, people: PersonBatch, condition: DPMeshCrops) -> Tensor:
        """(n, 4, 32, 32), given or computed."""
        if LATENT in people.columns:
            return torch.from_numpy(np.asarray(people.columns[LATENT], np.float32)).to(self.device)
        image = crop_images(people.images, people.frame, condition.affine).to(self.device)
        return self.by_row(self.model.latent, image.to(self.model.dtype))

    def diffusion(self, people: PersonBatch, condition: DPMeshCrops) -> dict[str, Tensor]:
        """Maps, attention and merged features (n, 2048, 8, 8).

        Given heatmaps are float16. Where they are, to that rounding, those of the keypoints, the exact ones are drawn
        again, so that a file on the way changes no bit; others are taken as they are.
        """
        joints, mask = (torch.from_numpy(x).to(self.device) for x in (condition.xy, condition.mask))
        maps, given = self.model.condition(joints, mask), people.columns.get("heatmaps/value")
        if given is not None:
            if given.shape[1:] != maps.shape[1:]:
                have, want = (" x ".join(map(str, shape[1:])) for shape in (given.shape, maps.shape))
                raise ArtefactError(
                    f"this checkpoint takes heatmaps of {want}, these are {have}", "hmr heatmaps without flags"
                )
            theirs = torch.from_numpy(np.asarray(given, np.float32)).to(self.device)
            own = ((theirs - maps).abs() < 1e-3).all(dim=(1, 2, 3), keepdim=True)  # rounding: 2.5e-4 of a peak of 1
            maps = torch.where(own, maps, theirs)
        return self.by_row(self.model.features, self.latent(people, condition), joints, mask, maps)

    def by_row(self, work: Callable[..., Any], *given: Tensor) -> Any:
        """`work` on tensors of n rows; on a CPU row by row, which is as fast there.

        oneDNN takes other kernels for other batch sizes. Their rounding, 1e-7, can come out of a badly conditioned
        rotation as 1e-4; so results do not depend on who else is in a batch.
        """
        if self.device != "cpu" or len(given[0]) < 2:
            return work(*given)
        found = [work(*(x[i : i + 1].clone() for x in given)) for i in range(len(given[0]))]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    @torch.no_grad()
    def attention(self, people: PersonBatch) -> dict[str, np.ndarray]:
        """The paper's Figure 6: how the crop's places look at each joint of the prompt, for `hmr view --attention`.

        {"attn16": (n, 30, 16, 16), "attn8": (n, 30, 8, 8): shares that sum to 1 over the joints of SETS["dpmesh30"],
        "seen": (n, 30) bool, "images": (n, 256, 256, 3) uint8 crops}.
        """
        condition = crops_of(people)
        found = self.diffusion(people, condition)
        patches = crop_images(people.images, people.frame, condition.affine)
        return {
            "attn16": found["attn16"].float().cpu().numpy(),
            "attn8": found["attn8"].float().cpu().numpy(),
            "seen": condition.mask,
            "images": (patches.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8),
        }


class DPMeshLatents(DPMeshModel):
    """The crop's Stable Diffusion latent: half the work of DPMesh, the same for every checkpoint and keypoint noise."""

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
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Any | None = None) -> DPMeshLatents:
        return cls(load_network(checkpoint)[0], device=device, **weights_origin(checkpoint))

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        condition = crops_of(people)
        latent = self.latent(people, condition).float()
        return {LATENT: latent, PLACE: condition.affine.astype(np.float32), "error": condition.errors}


class DPMeshExtractor(DPMeshModel):
    """The merged diffusion features. `precision`: "float16", or "float32" for the bits of a run without files."""

    precision = "float16"

    @property
    def columns(self) -> tuple[Column, ...]:
        dtype = {"float16": "f2", "float32": "f4"}[self.precision]
        return Column(FEATURES, dtype, ("R", 2048, 8, 8), "", "DPMesh's merged features, not negative"), CROP_COLUMN

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, *, device: str = "cpu", body: Any | None = None) -> DPMeshExtractor:
        return cls(load_network(checkpoint)[0], device=device, **weights_origin(checkpoint))

    @torch.no_grad()
    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        condition = crops_of(people)
        # Features reach 65504 only when weights are broken; a clamp would hide that, an infinity fails the row.
        merged = self.diffusion(people, condition)["merged"].to(getattr(torch, self.precision))
        return {FEATURES: merged, PLACE: condition.affine.astype(np.float32), "error": condition.errors}


def load_network(checkpoint: Checkpoint | None) -> tuple[Any, dict[str, Tensor]]:
    if checkpoint is None:
        raise AssetError(
            "DPMesh has no weights of its own in hmr",
            "give the authors' checkpoint by --ckpt (EternalEvan/DPMesh, for example 3dpw-pc_best_ckpt.pth.tar)",
        )
    from stages.models.dpmesh.weights import load

    return load(checkpoint)


def weights_origin(checkpoint: Checkpoint | None) -> dict[str, str]:
    """What the rows say of the weights: their licence, and the file that they were converted from."""
    from stages.models.dpmesh.checkpoint_names import LICENCE

    known = checkpoint.licence if checkpoint else "unknown"
    return {
        "licence": LICENCE if known == "unknown" else known,
        "source": checkpoint.metadata.get("source_sha256", "") if checkpoint else "",
    }


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
