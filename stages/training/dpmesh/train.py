"""Training of DPMesh: LoRA, ControlNet, merge, prompt and regressor, on noisy keypoints, with a teacher on clean ones.

In: a detections artefact with images and true bodies in group `extra` (`hmr synth` writes such), and initial weights:
a DPMesh checkpoint, or Stable Diffusion 1.5 (and a ControlNet) in local files. Out: a checkpoint with separate LoRA,
which `hmr recover` reads, `hmr convert` folds, and this trainer can start from.

    hmr train dpmesh --data train.detections.h5 --init 3dpw-pc_best_ckpt.pth.tar -o mine.safetensors
    hmr train dpmesh --data train.detections.h5 --sd stable-diffusion-v1-5/ -o mine.safetensors

The six losses are the released program's with its learned weights (AdamW, rate 1e-4, gradients clipped at 10); unlike
its optimiser, which omits the ControlNet although it is new, this one trains it (`--no-control` is theirs). The
released program lacks the distillation of noisy keypoint reasoning (paper, section 3.5): here the teacher, a frozen
copy of the initial weights or `--teacher`, takes the clean keypoints of the same crop; NT-Xent and squared difference
draw the student's refined volume and image tokens to the teacher's, with the paper's weight of 0.1.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artefacts.table import Artefact
from stages.engine.job import SILENT
from stages.errors import AssetError, UsageError
from stages.files.checkpoints import read_checkpoint, write_checkpoint
from stages.geometry.rotations import axis_angle_to_matrix
from stages.loaders.people import as_artefact
from stages.models.dpmesh.checkpoint_names import LICENCE
from stages.models.dpmesh.from_stable_diffusion import from_stable_diffusion
from stages.models.dpmesh.network import DPMesh, camera_translation, project_to_crop
from stages.models.dpmesh.weights import RANK, add_lora, load, own_names
from stages.params import TrainDPMeshParams as Params
from stages.params.rules import check
from stages.params.stored import to_json
from stages.smpl.body import Body, load_body
from stages.training.dpmesh import losses
from stages.training.dpmesh.data import DPMeshBatch, DPMeshExamples
from stages.training.loop import StepTrainer, state_file, train

CLIP = 10.0
TERMS = 6


def run(
    data: Path | Artefact,
    out: Path,
    params: Params = Params(),
    device: str = "cpu",
    report: Any = SILENT,
    *,
    init: Path | None = None,
    sd: Path | None = None,
    controlnet: Path | None = None,
    teacher: Path | None = None,
    root: Path | None = None,
) -> Path:
    """Train on the people of `data` and write `out`. The same command resumes from the state beside `out`.

    init: a DPMesh checkpoint to start from · sd, controlnet: Stable Diffusion 1.5 and a ControlNet instead · teacher:
    the frozen network on clean keypoints, by default a copy of the initial one.
    Raises UsageError (settings), AssetError (checkpoints, body), ArtefactError (data without truth, a state of another
    training).
    """
    params = check(params)
    if (init is None) == (sd is None):
        raise UsageError("no initial weights", "give --init CHECKPOINT, or --sd FOLDER for Stable Diffusion 1.5")
    if sd is not None and teacher is None and params.nkr:
        raise UsageError(
            "an untrained network cannot be the teacher", "give --teacher CHECKPOINT, or --nkr 0 for a first training"
        )
    torch.manual_seed(params.seed)
    network = trainable(init) if init is not None else from_stable_diffusion(sd, controlnet)  # type: ignore[arg-type]
    if network.config.regressor != "transformer":
        raise UsageError("only the transformer regressor can be trained", "the linear one has no joints in the crop")
    teacher_network = None
    if params.nkr:
        teacher_network = load(read_checkpoint(teacher))[0] if teacher is not None else copy.deepcopy(network)
        teacher_network.to(device)
    body = load_body(params.body)
    examples = DPMeshExamples(as_artefact(data, "detections"), body, root)
    files = [path for path in (init, sd, controlnet, teacher) if path is not None]
    trainer = DPMeshTrainer(
        network.to(device), teacher_network, examples, params, pose_head=init is None, initial_files=files
    )
    state = state_file(out)
    train(trainer, state, report)
    header = {
        "model": "dpmesh",
        "licence": f"{LICENCE}; as its training data",
        "body": body.name,
        "lora": "separate",
        "params": to_json(params),
        "loss": trainer.loss_range(),
    }
    write_checkpoint(out, own_names(network), header)
    state.unlink(missing_ok=True)
    return out


def trainable(checkpoint: Path) -> DPMesh:
    """The network of a checkpoint with separate LoRA; where the file has it folded, a new one that changes nothing."""
    network, _ = load(read_checkpoint(checkpoint), fold=False)
    if network.dtype != torch.float32:
        raise AssetError(f"{checkpoint} is in half precision", "start from a float32 file")
    if not any(".lora_A." in name for name, _ in network.named_parameters()):
        add_lora(network, RANK)
    return network


class DPMeshTrainer(StepTrainer):
    """teacher: the frozen network on clean keypoints, None: no distillation · pose_head: trained too."""

    network: DPMesh
    params: Params

    def __init__(
        self,
        network: DPMesh,
        teacher: DPMesh | None,
        examples: DPMeshExamples,
        params: Params,
        *,
        pose_head: bool = False,
        initial_files: Iterable[Path] = (),
    ) -> None:
        super().__init__(network, examples, params, initial_files)
        self.teacher = teacher
        self.body = copy.deepcopy(examples.body).to(self.device)
        for name, p in network.named_parameters():
            p.requires_grad_(is_trained(name, params.control, pose_head))
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self.weighting = losses.LearnedWeights(TERMS).to(self.device)
        self.trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        # The learned weights balance the terms; decay would pull them to infinite weight.
        self.optimiser = torch.optim.AdamW(
            [*self.trained.values(), *self.weighting.parameters()], params.rate, weight_decay=0.0
        )
        self.terms: dict[str, float] = {}
        network.train()

    def step(self) -> float:
        """One step; its loss, without the learned weights' share."""
        rng, indices = self.draw()
        batch = self.examples.batch(indices, rng, augment=self.params.augment).to(self.device)
        terms, distilled = self.loss(batch)
        total = torch.stack(list(self.weighting(terms).values())).sum() + self.params.nkr * distilled
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(list(self.trained.values()), CLIP)
        self.optimiser.step()
        self.terms = {name: float(value.detach()) for name, value in terms.items()} | {"nkr": float(distilled.detach())}
        self.losses.append(sum(self.terms[name] for name in terms) + self.params.nkr * self.terms["nkr"])
        return self.losses[-1]

    def loss(self, batch: DPMeshBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The six terms of the student on noisy keypoints, and how far its features are from the teacher's."""
        network = self.network
        with torch.no_grad():
            latent = network.latent(batch.images)
        merged = network.features(latent, *batch.noisy)["merged"]
        out = network.regress(merged)
        terms = losses.terms(comparable(out, self.body, batch.focal), batch.target)
        if self.teacher is None:
            return terms, torch.zeros((), device=merged.device)
        with torch.no_grad():
            clean = self.teacher.features(self.teacher.latent(batch.images), *batch.clean)["merged"]
            regressor = self.teacher.regressor
            of_teacher = regressor.volume(clean), regressor.down_linear(clean)  # type: ignore[operator]
        of_student = out["volume"], network.regressor.down_linear(merged)  # type: ignore[operator]
        pairs = list(zip(of_student, of_teacher, strict=True))
        return terms, sum(losses.nt_xent(a, b) + losses.distillation(a, b) for a, b in pairs)  # type: ignore[return-value]

    def fingerprint(self) -> str:
        text = f"{super().fingerprint()} {self.teacher is not None}"
        return hashlib.sha256(text.encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """All that changes; what is frozen is in the initial files."""
        return {
            "losses": self.losses,
            "learned": dict(self.trained),
            "weighting": self.weighting.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(state["learned"][name])
        self.weighting.load_state_dict(state["weighting"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses = state["losses"]


def is_trained(name: str, control: bool, pose_head: bool) -> bool:
    """Whether a parameter is trained: of the UNet only LoRA, never the autoencoder, VPoser only where it is new."""
    part = name.split(".")[0]
    if part == "unet":
        return ".lora_" in name
    return part != "vae" and (part != "controlnet" or control) and (part != "pose_head" or pose_head)


def comparable(out: dict[str, Tensor], body: Body, focal: Tensor) -> dict[str, Tensor]:
    """What `losses.terms` compares, of `DPMesh.regress`; each row with its own focal length."""
    pose = torch.cat([out["global_orient"][:, None], out["body_pose"]], 1)
    xyz = body.regress(body.forward_rotmat(axis_angle_to_matrix(pose), out["betas"]).vertices, "dpmesh30")
    transl = camera_translation(out["camera"], focal)
    return {
        "joint_img": out["joint_img"],
        "smpl_pose": pose.flatten(1),
        "smpl_shape": out["betas"],
        "joint_cam": xyz - xyz[:, :1],
        "joint_proj": project_to_crop(xyz + transl[:, None], focal),
    }
