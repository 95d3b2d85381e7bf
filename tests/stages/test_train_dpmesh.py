"""Training of DPMesh: targets follow the crop, what is frozen stays, losses fall, a stopped training is the same one,
and what is written is a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stages.artefacts.table import Artefact, in_memory
from stages.errors import ArtefactError, UsageError
from stages.files.checkpoints import read_checkpoint, write_checkpoint
from stages.geometry.cameras import project
from stages.geometry.rotations import axis_angle_to_matrix
from stages.keypoints.joint_sets import SETS
from stages.models.dpmesh import DPMeshRecoverer
from stages.models.dpmesh.network import Config, DPMesh
from stages.models.dpmesh.weights import add_lora, own_names
from stages.smpl.body import load_body
from stages.training import loop
from stages.training.dpmesh import train as training
from stages.training.dpmesh.data import DPMeshAugmentation, DPMeshExamples
from stages.training.dpmesh.train import DPMeshTrainer, Params, trainable
from tests.helpers.small_artefacts import COCO

N, K = 4, np.array([[600.0, 0, 159.5], [0, 600, 119.5], [0, 0, 1]])
WRIST = SETS["dpmesh30"].index("left_wrist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("people")


@pytest.fixture(scope="module")
def table(folder: Path) -> Artefact:
    """Two pictures of noise with two people each and a bright dot on each left wrist."""
    body, generator = load_body(), torch.Generator().manual_seed(5)
    orient = torch.tensor([[np.pi, 0, 0]] * N, dtype=torch.float32) + 0.2 * torch.randn(N, 3, generator=generator)
    pose = 0.2 * torch.randn(N, 23, 3, generator=generator)
    betas = torch.randn(N, 10, generator=generator)
    transl = torch.tensor([[-0.6, 0.2, 7.0], [0.6, 0.2, 7.0]]).repeat(N // 2, 1)
    xy = project(
        body.regress(body(orient, pose, betas, transl).vertices, "coco17"), torch.from_numpy(K).float()
    ).numpy()
    rng, frame = np.random.default_rng(0), np.arange(N) // 2
    for k in range(N // 2):
        image = rng.integers(0, 60, (240, 320, 3), np.uint8)
        for row in np.flatnonzero(frame == k):
            cv2.circle(image, tuple(round(float(v)) for v in xy[row, 9]), 2, (255, 255, 255), -1)
        cv2.imwrite(str(folder / f"{k}.png"), image)
    truth = {"global_orient": orient, "body_pose": pose, "betas": betas, "transl": transl}
    return in_memory(
        "detections",
        frames={"name": [f"{k}.png" for k in range(N // 2)], "size": [[320, 240]] * 2, "K": [K] * 2},
        rows={"frame": frame, "box": np.concatenate([xy.min(1) - 5, xy.max(1) + 5], 1)},
        columns={
            "keypoints/xy": xy,
            "keypoints/score": np.ones((N, 17)),
            **{f"extra/{name}": value.numpy() for name, value in truth.items()},
        },
        group_attrs={"keypoints": COCO},
    )


@pytest.fixture(scope="module")
def examples(table: Artefact, folder: Path) -> DPMeshExamples:
    return DPMeshExamples(table, load_body(), folder)


@pytest.mark.parametrize("seed", range(4))
def test_truth_follows_the_crop(examples: DPMeshExamples, seed: int) -> None:
    """Scaled, turned, mirrored: the dot, the clean keypoint and the body's joint are in one place, and the changed
    body's joints, seen from the front, are where they are in the crop."""
    batch = examples.batch(range(N), np.random.default_rng(seed))
    places = batch.target["orig_joint_img"]
    right = SETS["dpmesh30"].index("right_wrist")
    for k in range(N):
        joints = [places[k, j, :2] * 4 for j in (WRIST, right)]
        clean = [batch.clean[0][k, j] * 8 for j in (WRIST, right)]
        for a, b in zip(joints, clean, strict=True):
            assert (a - b).norm() < 2  # of 256: COCO's wrist is not quite SMPL's
        ys, xs = torch.nonzero(batch.images[k].min(0).values > 0.75, as_tuple=True)
        if len(xs):  # some of the dots are outside after scaling
            dots = torch.stack([xs, ys], 1).float()
            assert min((dots - j).norm(dim=1).min() for j in joints) < 6
        xy, flat = places[k, :, :2], batch.target["orig_joint_cam"][k, :, :2]
        x, y = flat - flat.mean(0), xy - xy.mean(0)
        scale = (x * y).sum() / (x * x).sum()
        assert scale > 0 and float((scale * x - y).norm(dim=-1).max()) < 3.5  # of 64: perspective
    pose = batch.target["pose_param"].reshape(N, 24, 3)
    body = load_body()
    made = body.regress(
        body.forward_rotmat(axis_angle_to_matrix(pose), batch.target["shape_param"]).vertices, "dpmesh30"
    )
    torch.testing.assert_close(made - made[:, :1], batch.target["orig_joint_cam"], atol=2e-3, rtol=0)


def test_noise_moves_keypoints_and_nothing_else(examples: DPMeshExamples) -> None:
    one, two = (examples.batch(range(N), np.random.default_rng(s), augment=False) for s in (0, 1))
    torch.testing.assert_close(one.images, two.images)
    torch.testing.assert_close(one.clean[0], two.clean[0])
    moved = (one.noisy[0] - one.clean[0]).norm(dim=-1)[one.clean[1]]
    assert moved.max() > 0.3 and moved.median() < 3 and (one.noisy[0] - two.noisy[0]).abs().max() > 0.3


def test_no_change_is_the_crop_itself(examples: DPMeshExamples) -> None:
    plain = np.random.default_rng(0).normal(size=(3, 2, 3))
    np.testing.assert_allclose(DPMeshAugmentation.none(3).affine(plain), plain, atol=1e-12)


def test_data_without_truth_is_refused(table: Artefact) -> None:
    bare = in_memory(
        "detections", frames=table.frames, rows=table.rows,
        columns={n: table.read(n) for n in ("keypoints/xy", "keypoints/score")}, group_attrs={"keypoints": COCO},
    )  # fmt: skip
    with pytest.raises(ArtefactError, match="extra/global_orient"):
        DPMeshExamples(bare, load_body())


@pytest.mark.slow
def test_loss_falls(examples: DPMeshExamples, dpmesh_checkpoint: Path) -> None:
    """The small manifest's network on four people: every term is finite, the sum halves."""
    network = trainable(dpmesh_checkpoint)
    trainer = DPMeshTrainer(
        network, copy.deepcopy(network), examples, Params(steps=10, batch=2, rate=2e-4, augment=False)
    )
    while trainer.done < 10:
        trainer.step()
        assert np.isfinite(list(trainer.terms.values())).all()
    assert np.mean(trainer.losses[-3:]) < 0.7 * np.mean(trainer.losses[:3]), trainer.losses


TINY = Config(width=32, vae_width=32)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    network = DPMesh(TINY)
    add_lora(network, 4)
    return write_checkpoint(folder / "tiny.safetensors", own_names(network), {"model": "dpmesh"})


def test_what_is_frozen_stays(examples: DPMeshExamples, tiny: Path) -> None:
    network = trainable(tiny)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    guide = copy.deepcopy(network)
    trainer = DPMeshTrainer(network, guide, examples, Params(steps=1, batch=2))
    trainer.step()
    assert trainer.terms["nkr"] > 0 and np.isfinite(trainer.losses).all()
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[0] for n in moved} == {"unet", "controlnet", "merge", "prompt", "regressor"}
    assert all(".lora_" in n for n in moved if n.startswith("unet."))
    assert all(torch.equal(p, before[n]) for n, p in guide.named_parameters())
    left = DPMeshTrainer(trainable(tiny), None, examples, Params(control=False), pose_head=True).trained
    assert {n.split(".")[0] for n in left} == {"unet", "merge", "prompt", "regressor", "pose_head"}


@pytest.mark.slow
def test_a_stopped_training_is_the_same_training(examples: DPMeshExamples, tiny: Path, tmp_path: Path) -> None:
    params = Params(steps=4, batch=2)

    def trainer() -> DPMeshTrainer:
        network = trainable(tiny)
        return DPMeshTrainer(network, copy.deepcopy(network), examples, params)

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    loop.save(first, tmp_path / "state")
    loop.load(second, tmp_path / "state")
    assert second.done == 2
    for _ in range(2):
        second.step()
    np.testing.assert_allclose(second.losses, whole.losses, rtol=1e-5)
    other = DPMeshTrainer(trainable(tiny), None, examples, params)
    with pytest.raises(ArtefactError, match="other settings"):
        loop.load(other, tmp_path / "state")


def test_a_state_is_not_continued_with_other_weights(table: Artefact, folder: Path, tiny: Path, tmp_path: Path) -> None:
    out, params = tmp_path / "made.safetensors", Params(steps=1, batch=1, nkr=0.0)
    trainer = DPMeshTrainer(
        trainable(tiny), None, DPMeshExamples(table, load_body(), folder), params, initial_files=[tiny]
    )
    trainer.losses = [1.0]  # its only step is done
    loop.save(trainer, loop.state_file(out))
    header = {"model": "dpmesh", "licence": "another"}
    other = write_checkpoint(tmp_path / "other.safetensors", read_checkpoint(tiny).tensors, header)
    with pytest.raises(ArtefactError, match="other settings or data"):
        training.run(table, out, params, init=other, root=folder)
    assert training.run(table, out, params, init=tiny, root=folder).exists()  # with the same, it goes on


@pytest.mark.slow
def test_what_is_written_is_a_checkpoint(table: Artefact, folder: Path, tiny: Path, tmp_path: Path) -> None:
    out = training.run(table, tmp_path / "made.safetensors", Params(steps=1, batch=1), init=tiny, root=folder)
    checkpoint = read_checkpoint(out)
    assert sum(".lora_A." in name for name in checkpoint.names) == 144 and checkpoint.metadata["lora"] == "separate"
    assert DPMeshRecoverer.load(checkpoint).model.config == TINY
    assert not (tmp_path / "made.safetensors.state").exists()


def test_what_to_begin_with_must_be_said(table: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no initial weights"):
        training.run(table, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="untrained network cannot be the teacher"):
        training.run(table, tmp_path / "x.safetensors", sd=tmp_path)
    with pytest.raises(UsageError, match="--steps"):
        training.run(table, tmp_path / "x.safetensors", Params(steps=0), init=tmp_path)
