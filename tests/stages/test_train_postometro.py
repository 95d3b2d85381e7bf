"""Training of mesh networks: augmented truth stays truth, losses fall, what is frozen stays as it was."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from stages.artefacts.table import in_memory
from stages.errors import ArtefactError, AssetError, UsageError
from stages.files.checkpoints import read_checkpoint, write_checkpoint
from stages.geometry import crops
from stages.geometry.cameras import project
from stages.models.backbones.hrnet import convolution
from stages.models.pct.network import PCT, Tokenizer
from stages.models.postometro import PostoMetroRecoverer, recoverers
from stages.models.postometro.network import FastMetro, PostoMetro
from stages.smpl.body import load_body
from stages.smpl.mesh_sampling import of_body
from stages.training import loop
from stages.training.postometro import steps
from stages.training.postometro import train as training
from stages.training.postometro.data import PostoMetroAugmentation, PostoMetroBatch, PostoMetroExamples
from stages.training.postometro.steps import PostoMetroTrainer, mesh_loss
from stages.training.postometro.train import Params, TokenizerOnly, initialise, load_matching
from tests.helpers.motion_files import motion_file
from tests.helpers.small_artefacts import COCO

COUNTS = (431, 108)  # of coarser vertices: small networks
N, K = 6, np.array([[600.0, 0, 159.5], [0, 600, 119.5], [0, 0, 1]])


def fit(network: nn.Module, examples: PostoMetroExamples, params: Params, *, augment: bool = True) -> list[float]:
    """Train in place; the loss of each step."""
    trainer = PostoMetroTrainer(network, examples, params, augment=augment)
    while trainer.done < params.steps:
        trainer.step()
    network.eval()
    return trainer.losses


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> PostoMetroExamples:
    """Six people in pictures of noise, with a bright dot on the left wrist."""
    folder, body = tmp_path_factory.mktemp("people"), load_body()
    generator = torch.Generator().manual_seed(5)
    orient = torch.tensor([[np.pi, 0, 0]] * N, dtype=torch.float32) + 0.2 * torch.randn(N, 3, generator=generator)
    pose = 0.2 * torch.randn(N, 23, 3, generator=generator)
    betas = torch.randn(N, 10, generator=generator)
    transl = torch.tensor([[0.0, 0.2, 7.0]]).repeat(N, 1)
    vertices = body(orient, pose, betas, transl).vertices
    xy = project(body.regress(vertices, "coco17"), torch.from_numpy(K).float()).numpy()
    rng = np.random.default_rng(0)
    for k in range(N):
        image = rng.integers(0, 60, (240, 320, 3), np.uint8)
        cv2.circle(image, tuple(round(float(v)) for v in xy[k, 9]), 3, (255, 255, 255), -1)
        cv2.imwrite(str(folder / f"{k}.png"), image)
    box = np.concatenate([xy.min(1) - 5, xy.max(1) + 5], 1)
    truth = {"global_orient": orient, "body_pose": pose, "betas": betas, "transl": transl}
    table = in_memory(
        "detections",
        frames={"name": [f"{k}.png" for k in range(N)], "size": [[320, 240]] * N, "K": [K] * N},
        rows={"frame": np.arange(N), "box": box},
        columns={
            "keypoints/xy": xy,
            "keypoints/score": np.ones((N, 17)),
            **{f"extra/{name}": value.numpy() for name, value in truth.items()},
        },
        group_attrs={"keypoints": COCO},
    )
    return PostoMetroExamples(table, body, of_body(body, COUNTS), 64, folder)


def weak_error(batch: PostoMetroBatch) -> float:
    """How far the joints' places are from the best s (X + t) of the joints, in the crop's [-1, 1]."""
    worst = 0.0
    for xyz, place in zip(batch.joints, batch.joints_2d, strict=True):
        x, y = xyz[:, :2] - xyz[:, :2].mean(0), place - place.mean(0)
        scale = (x * y).sum() / (x * x).sum()
        assert scale > 0
        worst = max(worst, float((scale * x - y).norm(dim=-1).max()))
    return worst


def test_truth_follows_the_crop(examples: PostoMetroExamples) -> None:
    assert weak_error(examples.batch(range(N))) < 0.08
    for seed in range(4):  # scaled, turned, mirrored
        batch = examples.batch(range(N), np.random.default_rng(seed))
        assert weak_error(batch) < 0.08
        # The dot is where the left wrist, or in a mirror the right one, is said to be.
        for image, keypoints in zip(batch.images, batch.keypoints, strict=True):
            at = int(image.sum(0).argmax())
            dot = torch.tensor([at % 64, at // 64]) * 4.0
            assert (keypoints[[9, 10], :2] - dot).norm(dim=-1).min() < 12


def test_mirrored_people_change_sides(examples: PostoMetroExamples, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = examples.batch(range(N))
    monkeypatch.setattr(
        PostoMetroAugmentation,
        "draw",
        lambda n, rng: PostoMetroAugmentation(np.ones(n), np.zeros(n), np.ones((n, 3)), np.ones(n, bool)),
    )
    turned = examples.batch(range(N), np.random.default_rng(0))
    left = plain.keypoints[:, 9, 0] - 128
    assert torch.allclose(turned.keypoints[:, 10, 0] - 128, -left, atol=0.1)
    # The body is nearly symmetric: mirrored joints are the joints of the other side.
    swapped = turned.joints[:, [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13]] * torch.tensor([-1.0, 1, 1])
    assert (swapped - plain.joints).norm(dim=-1).mean() < 0.02


class Small(nn.Sequential):
    channels = 32

    def __init__(self) -> None:
        super().__init__(convolution(3, 16, 2), convolution(16, 32, 2), convolution(32, 32, 2))


@pytest.fixture(scope="module")
def network(examples: PostoMetroExamples) -> PostoMetro:
    torch.manual_seed(0)
    branch = PCT(32, (1, 1, 1, 1), guided=False)
    made = PostoMetro(Small(), 1, COUNTS, widths=(64, 32), pct=branch)
    return initialise(made, examples.body, examples.levels)


@pytest.mark.parametrize("recipe", ["paper", "code"])
def test_the_mesh_network_learns_and_pct_stays(examples: PostoMetroExamples, network: PostoMetro, recipe: str) -> None:
    before = {name: t.clone() for name, t in network.pct.state_dict().items()}
    settings = Params(part="mesh", tokens="keypoints", recipe=recipe, steps=12, batch=4, rate=2e-3)
    history = fit(network, examples, settings)
    assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])
    # Frozen, running statistics of batch norms included: the released program lets those drift.
    assert all(torch.equal(t, before[name]) for name, t in network.pct.state_dict().items())
    network.train()
    assert not any(module.training for module in network.pct.modules())
    network.eval()


def test_perfect_meshes_cost_nothing_but_edge_length(
    examples: PostoMetroExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the truth itself is what its projections and edge lengths cost."""
    from stages.models.postometro.network import Mesh

    batch = examples.batch(range(N))
    places, xyz = batch.joints_2d, batch.joints
    x, y = xyz[..., :2] - xyz[..., :2].mean(1, keepdim=True), places - places.mean(1, keepdim=True)
    scale = (x * y).sum((1, 2)) / (x * x).sum((1, 2))
    shift = places.mean(1) / scale[:, None] - xyz[..., :2].mean(1)
    camera = torch.cat([scale[:, None], shift], 1)
    perfect = Mesh(camera, xyz, batch.meshes[2], batch.meshes[1], batch.meshes[0])
    monkeypatch.setattr(steps, "predict", lambda *_: perfect)
    assert mesh_loss(nn.Identity(), batch, Params(recipe="paper"), examples) < 3
    worse = Mesh(camera, xyz + 0.1 * torch.randn_like(xyz), perfect.coarse, perfect.intermediate, perfect.fine)
    monkeypatch.setattr(steps, "predict", lambda *_: worse)
    assert mesh_loss(nn.Identity(), batch, Params(recipe="paper"), examples) > 50


def test_the_tokenizer_learns(examples: PostoMetroExamples) -> None:
    torch.manual_seed(0)
    tokenizer = TokenizerOnly(Tokenizer(None))
    history = fit(tokenizer, examples, Params(part="tokenizer", steps=30, batch=6, rate=2e-3), augment=False)
    assert np.mean(history[-3:]) < 0.7 * history[0]
    assert tokenizer.keypoint_head.tokenizer.ema_cluster_size.sum() > 0


@pytest.mark.slow
def test_the_classifier_learns_the_tokens_of_crops(examples: PostoMetroExamples) -> None:
    torch.manual_seed(0)
    crops256 = PostoMetroExamples(
        examples.people.detections,
        examples.body,
        examples.levels,
        256,
        examples.people.source.roots[0],  # type: ignore[union-attr]
    )
    network = PCT(32, (1, 1, 1, 1), guided=False)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    history = fit(network, crops256, Params(part="classifier", thaw=True, steps=20, batch=6, rate=1e-3), augment=False)
    assert np.mean(history[-3:]) < np.mean(history[:3]) - 1
    assert steps.classifier_scores(network, crops256)[0] > 0.3  # chance: 1 of 2048
    changed = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert not any(".tokenizer." in name for name in changed) and any(n.startswith("backbone.") for n in changed)


def test_fastmetro_and_pct_begin_a_postometro(
    tmp_path: Path, network: PostoMetro, examples: PostoMetroExamples
) -> None:
    torch.manual_seed(9)
    fast = FastMetro(Small(), 1, COUNTS, widths=(64, 32))
    mesh_file = write_checkpoint(tmp_path / "fast.safetensors", fast.state_dict(), {})
    branch = PCT(32, (1, 1, 1, 1), guided=False)
    pct_file = write_checkpoint(
        tmp_path / "pct.safetensors", {f"state_dict.{n}": t for n, t in branch.state_dict().items()}, {}
    )
    fresh = PostoMetro(Small(), 1, COUNTS, widths=(64, 32), pct=PCT(32, (1, 1, 1, 1), guided=False))
    assert load_matching(fresh, read_checkpoint(mesh_file)) == set(fast.state_dict())
    assert load_matching(fresh, read_checkpoint(pct_file)) == {f"pct.{name}" for name in branch.state_dict()}
    for name, tensor in [*fast.state_dict().items(), *((f"pct.{n}", t) for n, t in branch.state_dict().items())]:
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_wrong_settings_and_data_are_said(examples: PostoMetroExamples) -> None:
    with pytest.raises(UsageError, match="recipe"):
        training.run(Path("x"), Path("y"), Params(recipe="mine"))
    without = in_memory(
        "detections",
        frames={"name": ["a.png"], "size": [[4, 4]], "K": [K]},
        rows={"frame": [0], "box": [[0, 0, 2, 2]]},
        columns={"keypoints/xy": np.zeros((1, 17, 2)), "keypoints/score": np.ones((1, 17))},
        group_attrs={"keypoints": COCO},
    )
    with pytest.raises(ArtefactError, match="extra/global_orient"):
        PostoMetroExamples(without, examples.body, examples.levels, 64)


def test_a_trained_network_recovers_with_given_tokens(examples: PostoMetroExamples, network: PostoMetro) -> None:
    """Tokens of `hmr features --model pct` stand in for PCT; the confidence is their mean probability."""
    made = copy.deepcopy(network).prepare()
    made.side = 64  # its grid is already laid out
    recoverer = PostoMetroRecoverer(made, examples.body, "tiny", "test")
    people = examples.people(np.arange(3))
    soft = np.random.default_rng(0).normal(size=(3, 34, 512)).astype(np.float32)
    scores = np.full((3, 34, 2), 0.25, np.float32)
    people.columns = {recoverers.SOFT: soft, recoverers.SCORES: scores}
    first = recoverer(people)
    assert first["vertices/xyz"].shape == (3, 6890, 3) and not any(first["error"])
    assert torch.allclose(first["joints/confidence"], torch.full((3, 14), 0.25))
    people.columns = {recoverers.SOFT: -soft, recoverers.SCORES: scores}
    assert (recoverer(people)["vertices/xyz"] - first["vertices/xyz"]).abs().max() > 1e-4


def test_a_network_of_keypoint_tokens_takes_them_from_the_detections(
    examples: PostoMetroExamples, network: PostoMetro, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = examples.people(np.arange(3))
    box, _ = recoverers.metro_boxes(people.box, 256)
    learned = examples.batch(range(3)).keypoints
    given = recoverers.crop_keypoints(people, box)
    assert torch.equal(given[..., 2], learned[..., 2])
    assert (given - learned)[..., :2].norm(dim=-1).mean() < 4  # the crop of training is not cut at whole pixels
    made = copy.deepcopy(network).prepare()
    made.side = 64
    recoverer = PostoMetroRecoverer(made, examples.body, "tiny", "test")
    recoverer.from_keypoints = True
    monkeypatch.setattr(PCT, "forward", lambda *_: pytest.fail("no picture is asked for tokens"))
    first = recoverer(people)["vertices/xyz"]
    people.keypoints[:, 5:11, 0] += 40
    assert (recoverer(people)["vertices/xyz"] - first).abs().max() > 1e-4


def test_a_new_network_begins_as_the_body_at_rest(examples: PostoMetroExamples) -> None:
    network = initialise(FastMetro(Small(), 1, COUNTS, widths=(64, 32)), examples.body, examples.levels)
    fine, intermediate, coarse = examples.batch(range(N)).meshes
    made = network.upsample(coarse)
    assert (made - intermediate).norm(dim=-1).mean() < 0.03
    assert (network.upsample_fixed(intermediate) - fine).norm(dim=-1).mean() < 0.01
    network.side = 64  # whose grid it lays out
    initialise(network, examples.body, examples.levels).eval()
    with torch.no_grad():
        first = network(examples.batch(range(2)).images).fine
    template = examples.body.v_template * torch.tensor([1.0, -1, -1])
    template = template - examples.body.regress(template[None], "h36m17")[0, :1]
    assert (first - template).norm(dim=-1).mean() < 0.12


def test_what_a_training_lacks_is_said(tmp_path: Path) -> None:
    poses = motion_file(tmp_path / "motion.npz", 20)
    for settings, error, words in (
        (Params(tokens="keypoints"), AssetError, "no --init has them"),
        (Params(part="classifier"), AssetError, "no --init has them"),
        (Params(tokens="none"), UsageError, "learns from images"),
        (Params(part="all"), UsageError, "--part all: no such choice"),
    ):
        with pytest.raises(error, match=words):
            training.run(poses, tmp_path / "x.safetensors", settings)


def test_a_training_that_explodes_stops_and_writes_nothing(tmp_path: Path) -> None:
    poses, out = motion_file(tmp_path / "motion.npz", 20), tmp_path / "new" / "tokens.safetensors"
    with pytest.raises(UsageError, match="not finite any more"):
        training.run(poses, out, Params(part="tokenizer", steps=30, batch=2, rate=1e9))
    assert not out.exists()


def test_a_state_knows_what_its_training_began_with(tmp_path: Path) -> None:
    poses, out, settings = (
        motion_file(tmp_path / "motion.npz", 20),
        tmp_path / "t.safetensors",
        Params(part="tokenizer"),
    )
    settings = dataclasses.replace(settings, steps=2, batch=2, rate=1e-3)
    torch.manual_seed(1)
    begun = [
        write_checkpoint(tmp_path / f"{k}.safetensors", TokenizerOnly(Tokenizer(None)).state_dict(), {}) for k in "ab"
    ]
    examples = training.examples_of(poses, settings, load_body(), None)
    trainer = PostoMetroTrainer(TokenizerOnly(Tokenizer(None)), examples, settings, initial_files=begun[:1])
    trainer.step()
    loop.save(trainer, tmp_path / "t.safetensors.state")
    with pytest.raises(ArtefactError, match="other settings or data"):
        training.run(poses, out, settings, init=begun[1:])
    training.run(poses, out, settings, init=begun[:1])


def test_published_weights_on_another_mesh_are_warned_of(
    examples: PostoMetroExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = FastMetro(Small(), 1, COUNTS, widths=(64, 32))
    file = write_checkpoint(tmp_path / "fast.safetensors", fast.state_dict(), {})
    told: list[str] = []
    monkeypatch.setattr(training, "build", lambda *_: fast)
    monkeypatch.setattr(training, "of_body", lambda _: examples.levels)
    monkeypatch.setattr(training, "examples_of", lambda *_: examples)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("enough: " + told[0]))
    report = SimpleNamespace(warn=told.append, note=lambda _: None)
    with pytest.raises(pytest.fail.Exception, match="npz selects them"):
        training.run(tmp_path / "x.h5", tmp_path / "x", Params(tokens="none"), "cpu", report, init=[file])


def test_random_pose_tokens_are_not_handed_out(tmp_path: Path, network: PostoMetro) -> None:
    file = write_checkpoint(tmp_path / "mesh.safetensors", network.state_dict(), {"tokens": "keypoints"})
    with pytest.raises(AssetError, match="tokens of keypoints"):
        recoverers.PctExtractor.load(read_checkpoint(file))


def test_a_tokenizer_learns_from_motion_alone(tmp_path: Path) -> None:
    poses, out = motion_file(tmp_path / "motion.npz", 20), tmp_path / "tokens.safetensors"
    training.run(poses, out, Params(part="tokenizer", steps=3, batch=2, rate=1e-3))
    assert {"keypoint_head.tokenizer.codebook", "keypoint_head.tokenizer.start_embed.weight"} <= read_checkpoint(
        out
    ).names
    assert not (tmp_path / "tokens.safetensors.state").exists()


def test_a_stopped_training_goes_on_as_if_it_had_not(
    examples: PostoMetroExamples, network: PostoMetro, tmp_path: Path
) -> None:
    settings = Params(part="mesh", tokens="keypoints", recipe="paper", steps=6, batch=2, rate=2e-3)
    whole = PostoMetroTrainer(copy.deepcopy(network), examples, settings)
    for _ in range(6):
        whole.step()
    first = PostoMetroTrainer(copy.deepcopy(network), examples, settings)
    for _ in range(3):
        first.step()
    loop.save(first, tmp_path / "state")
    second = PostoMetroTrainer(copy.deepcopy(network), examples, settings)
    loop.train(second, tmp_path / "state")
    assert second.losses == whole.losses
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    other = PostoMetroTrainer(copy.deepcopy(network), examples, dataclasses.replace(settings, batch=3))
    with pytest.raises(ArtefactError, match="other settings or data"):
        loop.load(other, tmp_path / "state")
    (tmp_path / "state").write_bytes(b"cut")
    with pytest.raises(ArtefactError, match="not the state of a training"):
        loop.load(second, tmp_path / "state")


def test_kept_crops_change_nothing(examples: PostoMetroExamples) -> None:
    """The crop that is kept of a person gives the same pixels as its picture; turned, nearly the same."""
    folder = examples.people.source.roots[0]  # type: ignore[union-attr]
    one = PostoMetroExamples(examples.people.detections, examples.body, examples.levels, 64, folder)
    box = one.people_without_images(one.rows).box
    for change, tolerance in (
        (PostoMetroAugmentation.none(N), 0.51),
        (PostoMetroAugmentation.draw(N, np.random.default_rng(0)), 12.0),
    ):
        affine = change.affine(box, 64)
        people = one.people(one.rows)
        direct = crops.warp(people.images, people.frame, affine, 64, np.float32)
        first, again = one.crops(one.rows, box, affine), one.crops(one.rows, box, affine)
        assert np.array_equal(first, again) and len(one.cached) == N
        assert np.abs(first - direct).mean() < tolerance
