"""PostoMETRO, PCT and FastMETRO against what the official classes gave, part by part and from a picture to a mesh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.geometry import crops
from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.pct import network as pct
from stages.models.pct import weights as pct_weights
from stages.models.postometro import weights as loading
from stages.models.postometro.network import FastMetro, PostoMetro
from stages.smpl import mesh_sampling
from stages.training.postometro import losses
from tests.helpers.fixtures import Fixtures, fixtures_of
from tests.helpers.parity_limits import limit

REL, WORST = 2e-5, 2e-4  # relative error of an array; worst entry over RMS
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
CASES = ("tokenizer", "classifier_head", "pct_base_image", "modulator", "transformer", "upsampler")
CASES += (
    "model_r50",
    "model_w48",
    "fastmetro_s_r50",
    "fastmetro_l_h64_smpl",
    "crop",
    "mesh_levels_synthetic",
    "metrics_losses",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each file of a case: `tokenizer` also gets tokenizer_2.npz and so on."""
    fixtures = fixtures_of(metafunc.config, "postometro")
    for stem in CASES:
        if stem in metafunc.fixturenames:
            found = fixtures.cases(stem)
            missing = [pytest.param(None, marks=pytest.mark.skip(reason=f"no {stem}*.npz in {fixtures.folder}"))]
            metafunc.parametrize(stem, found or missing, ids=lambda p: p.stem if p else "none")


@pytest.fixture(scope="module")
def fixtures(request: pytest.FixtureRequest) -> Fixtures:
    return fixtures_of(request.config, "postometro")


@pytest.fixture(autouse=True, scope="module")
def no_gradients() -> object:
    with torch.no_grad():
        yield


class Case:
    """One .npz: `agree` compares an array, sampled or whole, within the family's tolerance."""

    def __init__(self, path: Path) -> None:
        self.stem = path.stem
        with np.load(path) as stored:
            self.arrays = dict(stored)
        self.worst = 0.0

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def agree(self, name: str, value: torch.Tensor) -> None:
        expected, got = self.arrays[name].astype(np.float64), value.double().numpy()
        if f"{name}__idx" in self.arrays:
            assert got.shape == tuple(self.arrays[f"{name}__shape"]), name
            got = got.ravel()[self.arrays[f"{name}__idx"]]
        assert got.shape == expected.shape, (name, got.shape, expected.shape)
        error = np.abs(got - expected)
        relative = np.linalg.norm(error) / np.linalg.norm(expected)
        rel, worst = limit("postometro", self.stem, name, REL), limit("postometro", self.stem, f"{name}, worst", WORST)
        assert relative <= rel, f"{name}: relative error {relative:.2e}"
        assert error.max() <= worst * np.sqrt(np.mean(expected**2)), f"{name}: worst entry off by {error.max():.2e}"

    def images(self, name: str = "image_u8") -> torch.Tensor:
        """The crops, normalised: (n, 3, H, W)."""
        return (self.tensor(name).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def weights(
    fixtures: Fixtures, manifest: str, prefix: str = "", leave: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Stand-in weights of the manifest's names that begin with `prefix`, which is taken off."""
    listed = fixtures.index(f"manifest_{manifest}.json")
    chosen = {
        n: v for n, v in listed.items() if n.startswith(prefix) and not n.startswith(leave) and not v.get("computed")
    }
    filled = fixtures.weights.state_dict(chosen)
    return {name.removeprefix(prefix): torch.from_numpy(np.asarray(value)) for name, value in filled.items()}


def body(fixtures: Fixtures) -> np.ndarray:
    """SMPL's coarse adjacency (431, 431), which the fixtures carry as a pattern."""
    with np.load(fixtures.find("transformer.npz")) as stored:
        return np.unpackbits(stored["adjacency_bits"])[: 431 * 431].reshape(431, 431).astype(bool)


def without_upsampling(network: FastMetro, fixtures: Fixtures) -> FastMetro:
    """SMPL's own last upsampling is not at hand: zeros instead, so that `fine` says nothing."""
    network.set_mask(body(fixtures))
    network.register_buffer("columns", torch.zeros(6890, 3, dtype=torch.long), persistent=False)
    network.register_buffer("weights", torch.zeros(6890, 3), persistent=False)
    return network


def token_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1)


# ---- PCT


def tokenizer_of(tensors: dict[str, torch.Tensor]) -> pct.Tokenizer:
    guide = tensors.get("start_img_embed.weight")
    with torch.device("meta"):
        network = pct.Tokenizer(None if guide is None else guide.shape[1])
    return pct_weights.fill(network, tensors, "the stand-in")


def classifier_of(tensors: dict[str, torch.Tensor]) -> pct.Classifier:
    with torch.device("meta"):
        network = pct.Classifier(tensors["conv_trans.0.weight"].shape[1], "tokenizer.start_img_embed.weight" in tensors)
    return pct_weights.fill(network, tensors, "the stand-in")


def test_tokenizer(fixtures: Fixtures, tokenizer: Path) -> None:
    case = Case(tokenizer)
    joints = case.tensor("joints")
    features = torch.from_numpy(fixtures.weights.array("postometro/tokenizer/feature_map", (len(joints), 1536, 8, 8)))
    for kind, manifest in (("guided", "pct_large_tokenizer"), ("unguided", "pct_base_woimgguide_tokenizer")):
        network = tokenizer_of(weights(fixtures, manifest, "keypoint_head.tokenizer."))
        guide = features if kind == "guided" else None
        if guide is not None:
            case.agree("guided_joint_features", pct.joint_features(joints, guide))
        encoded = network.encode(joints, guide)
        case.agree(f"{kind}_encoded", encoded)
        indices = network.quantise(encoded)
        assert np.array_equal(indices.numpy(), case[f"{kind}_indices"])
        quantised = network.codebook[indices]
        case.agree(f"{kind}_quantised", quantised)
        case.agree(f"{kind}_joints_out", network.decode(quantised))


def test_classifier_head(fixtures: Fixtures, classifier_head: Path) -> None:
    case = Case(classifier_head)
    network = classifier_of(weights(fixtures, "pct_large_classifier", "keypoint_head."))
    shape = (2, 1536, 8, 8)
    features = torch.from_numpy(fixtures.weights.array("postometro/head/features", shape))
    maps = network.conv_head(network.conv_trans(features))
    case.agree("conv", maps)
    mixed = network.mixer_input(maps)
    case.agree("mixer_in", mixed)
    logits = network.logits(mixed)
    case.agree("logits", logits)
    found = network.tokens(logits)
    case.agree("scores", found.scores)
    case.agree("tokens", found.soft)
    case.agree("pose", network.tokenizer.decode(found.soft))
    sharp = 6 * torch.from_numpy(fixtures.weights.array("postometro/head/sharp_logits", (2, 34, 2048)))
    sharp_tokens = network.tokens(sharp).soft
    case.agree("sharp_tokens", sharp_tokens)
    case.agree("sharp_pose", network.tokenizer.decode(sharp_tokens))


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_pct_from_a_picture(fixtures: Fixtures, pct_base_image: Path, prepared: bool) -> None:
    case = Case(pct_base_image)
    network = pct_weights.load_pct(weights(fixtures, "pct_base_classifier", leave=("extra_backbone.",)))
    if prepared:
        network.backbone.prepare()
    images = case.images()
    seen: dict[str, torch.Tensor] = {}
    swin = network.backbone
    hooks = [swin.patch_embed.register_forward_hook(lambda _, __, y: seen.update(patch=y))]
    for k, stage in enumerate(swin.layers):
        last = stage.blocks[-1]
        hooks.append(last.register_forward_hook(lambda _, __, y, k=k: seen.update({f"stage{k}": y})))
    features = swin(images)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        case.agree(name, value)
    case.agree("features", features)
    head = network.keypoint_head
    mixed = head.mixer_input(head.conv_head(head.conv_trans(features)))
    found = head(features)
    case.agree("scores", found.scores)
    if not prepared:  # the rest repeats the same arithmetic; sharp attention needs the published order of operations
        pose, score = network.pose(images, flip=True)
        case.agree("pose_flip_averaged", pose)
        case.agree("pose", network.keypoint_head.tokenizer.decode(found.soft))
        assert torch.allclose(score, torch.softmax(network.keypoint_head.logits(mixed), -1).amax(-1).mean(1))
        case.agree("low_contrast_patch", swin.patch_embed(images * 0.01))
        case.agree("low_contrast_features", swin(images * 0.01))
        for name, parameter in swin.named_parameters():
            if name.endswith("logit_scale"):
                parameter += 4
        case.agree("clamped_features", swin(images))


# ---- the mesh network


@pytest.fixture(scope="module")
def postometro(fixtures: Fixtures) -> PostoMetro:
    """PostoMETRO-L with ResNet-50, without its pose branch's and backbone's weights, which these cases do not reach."""
    tensors = weights(fixtures, "postometro_l_r50", leave=("pct.", "backbone."))
    layout = loading.Layout("resnet50", 3, (1723, 431), False, (8, (1, 1, 1, 1), False))
    network = loading.bare_network(layout)
    missing, unexpected = network.load_state_dict(tensors, strict=False, assign=True)
    assert not unexpected and all(name.startswith(("pct.", "backbone.")) for name in missing)
    without_upsampling(network, fixtures)
    assert isinstance(network, PostoMetro)
    return network.eval()


def test_modulator(fixtures: Fixtures, postometro: PostoMetro, modulator: Path) -> None:
    case = Case(modulator)
    tokens = torch.from_numpy(fixtures.weights.array("postometro/mixer/tokens", (2, 34, 512)))
    scores = 3 + 2 * torch.from_numpy(fixtures.weights.array("postometro/mixer/scores", (2, 34, 1)))
    case.agree("mixed", postometro.mix(tokens))
    case.agree("modulated", token_first(postometro.modulate(tokens, scores)))


def test_transformer(fixtures: Fixtures, postometro: PostoMetro, transformer: Path) -> None:
    case = Case(transformer)
    features = torch.from_numpy(fixtures.weights.array("postometro/transformer/features", (2, 2048, 8, 8))).relu()
    pose = torch.from_numpy(fixtures.weights.array("postometro/transformer/pose_tokens", (34, 2, 512))).relu()
    for stage, width in enumerate((512, 128), 1):
        case.agree(f"pos_{width}", getattr(postometro, f"position_{stage}").T.reshape(width, 8, 8))
    image = postometro.image_tokens(features)
    case.agree("image_tokens", token_first(image))
    mesh = postometro.mesh(image, token_first(pose))
    check_mesh(case, mesh)
    for part, value in zip(("cam", "memory", "queries"), mesh.stages[1], strict=True):
        case.agree(f"stage2_{part}", value[None] if part == "cam" else token_first(value))


def check_mesh(case: Case, mesh: object) -> None:
    for part, value in zip(("cam", "memory", "queries"), mesh.stages[0], strict=True):
        case.agree(f"stage1_{part}", value[None] if part == "cam" else token_first(value))
    case.agree("pred_cam", mesh.camera)
    case.agree("pred_3d_joints", mesh.joints)
    case.agree("pred_3d_vertices_coarse", mesh.coarse)
    if "pred_3d_vertices_intermediate" in case:
        case.agree("pred_3d_vertices_intermediate", mesh.intermediate)


def test_upsampler(fixtures: Fixtures, postometro: PostoMetro, upsampler: Path) -> None:
    case = Case(upsampler)
    coarse = 0.5 * torch.from_numpy(fixtures.weights.array("postometro/upsampler/coarse", (2, 431, 3)))
    intermediate = postometro.upsample(coarse)
    case.agree("intermediate", intermediate)
    kept = postometro.columns, postometro.weights
    postometro.columns = case.tensor("synthetic_cols").long()
    postometro.weights = torch.from_numpy(fixtures.weights.array("postometro/upsampler/coefs", (6890, 3)))
    case.agree("fine_synthetic", postometro.upsample_fixed(intermediate))
    postometro.columns, postometro.weights = kept


# ---- whole models from a picture


@pytest.mark.full
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_postometro_resnet(fixtures: Fixtures, model_r50: Path, prepared: bool) -> None:
    whole_postometro(fixtures, Case(model_r50), "postometro_l_r50", prepared)


@pytest.mark.full
def test_postometro_hrnet(fixtures: Fixtures, model_w48: Path) -> None:
    whole_postometro(fixtures, Case(model_w48), "postometro_l_w48", prepared=True)


def whole_postometro(fixtures: Fixtures, case: Case, manifest: str, prepared: bool) -> None:
    network, layout = loading.load_mesh_network(weights(fixtures, manifest, leave=("pct.extra_backbone.",)))
    assert isinstance(network, PostoMetro) and layout.depth == 3
    without_upsampling(network, fixtures)
    if prepared:
        network.prepare()
    images = case.images()
    features = network.backbone(images)
    case.agree("backbone_features", features)
    swin = network.pct.backbone(images)
    case.agree("pct_features", swin)
    found = network.pct.keypoint_head(swin)
    case.agree("scores", found.scores)
    case.agree("tokens", found.soft)
    case.agree("pose", network.pct.keypoint_head.tokenizer.decode(found.soft))
    modulated = network.modulate(found.soft, found.scores)
    case.agree("modulated", token_first(modulated))
    check_mesh(case, network.mesh(network.image_tokens(features), modulated))


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_fastmetro_resnet(fixtures: Fixtures, fastmetro_s_r50: Path, prepared: bool) -> None:
    whole_fastmetro(fixtures, Case(fastmetro_s_r50), "fastmetro_s_r50", "FastMETRO-S, ResNet-50", prepared)


@pytest.mark.full
@pytest.mark.parametrize("regressor", [True, False], ids=["smpl", "mesh"])
def test_fastmetro_hrnet(fixtures: Fixtures, fastmetro_l_h64_smpl: Path, regressor: bool) -> None:
    manifest, name = "fastmetro_l_h64", "FastMETRO-L, HRNet-W64"
    if regressor:
        manifest, name = "fastmetro_l_h64_smpl", "FastMETRO-L, HRNet-W64, SMPL regressor"
    whole_fastmetro(fixtures, Case(fastmetro_l_h64_smpl), manifest, name, prepared=regressor)


def whole_fastmetro(fixtures: Fixtures, case: Case, manifest: str, name: str, prepared: bool) -> None:
    network, layout = loading.load_mesh_network(weights(fixtures, manifest))
    assert layout.name == name
    without_upsampling(network, fixtures)
    if prepared:
        network.prepare()
    features = network.backbone(case.images())
    case.agree("backbone_features", features)
    mesh = network.mesh(network.image_tokens(features))
    check_mesh(case, mesh)
    if layout.regressor:
        regressor = network.smpl_parameter_regressor
        case.agree("smpl_raw", regressor.regressor(mesh.intermediate.flatten(1)))
        rotations, betas = regressor(mesh.intermediate)
        case.agree("pred_rotmat", rotations)
        case.agree("pred_betas", betas)


# ---- around the network


def test_crop(crop: Path) -> None:
    case = Case(crop)
    center, scale = case["cases"][:, :2], case["cases"][:, 2]
    for size in (224, 256):
        box = crops.metro_boxes(center, scale, size)
        got = crops.cut_and_resize([case["image_u8"]], np.zeros(len(box), int), box, size)
        assert got.shape == tuple(case[f"crop{size}__shape"])
        assert np.abs(got.ravel()[case[f"crop{size}__idx"]] - case[f"crop{size}"]).max() <= 1e-3


def test_mesh_levels(mesh_levels_synthetic: Path) -> None:
    case = Case(mesh_levels_synthetic)
    levels = mesh_sampling.build(case["vertices"], case["faces"])
    for k in (1, 2):
        assert np.array_equal(levels.keep[k - 1], case[f"keep{k}"])
        assert np.array_equal(levels.faces[k], case[f"faces{k}"])
        ours = dense(*levels.upsampling(k - 1), levels.counts[k])
        assert np.abs(ours - dense(case[f"up_cols{k}"], case[f"up_vals{k}"], levels.counts[k])).max() <= 1e-9


def dense(columns: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    result = np.zeros((len(columns), width))
    np.add.at(result, (np.arange(len(columns))[:, None], columns.astype(int)), values)
    return result


def test_losses(fixtures: Fixtures, metrics_losses: Path) -> None:
    case = Case(metrics_losses)
    rows3d, rows_smpl = case.tensor("has_3d") == 1, case.tensor("has_smpl") == 1
    draw = lambda name, *shape: torch.from_numpy(fixtures.weights.array(f"postometro/metrics/{name}", shape))  # noqa: E731
    pred, truth = case.tensor("pred_joints"), case.tensor("gt_joints")
    case.agree("projected", losses.project(pred, case.tensor("camera")))
    case.agree("loss_3d", losses.joints_3d(pred[rows3d], truth[rows3d, :, :3], truth[rows3d, :, 3]))
    flat = case.tensor("gt_2d")
    case.agree("loss_2d", losses.keypoints_2d(case.tensor("projected"), flat[..., :2], flat[..., 2]))
    mesh = 0.4 * draw("pred_vertices", 5, 1723, 3)
    true_mesh = mesh + 0.03 * draw("gt_vertices", 5, 1723, 3)
    faces, edges = case.tensor("faces").long(), case.tensor("edges").long()
    case.agree("loss_vertices", losses.points(mesh[rows_smpl], true_mesh[rows_smpl]))
    case.agree("loss_edge_gt", losses.edges(mesh[rows_smpl], true_mesh[rows_smpl], edges))
    case.agree("loss_edge_self", losses.edge_lengths(mesh[rows_smpl], edges).mean())
    case.agree("loss_normal", losses.normals(mesh[rows_smpl], true_mesh[rows_smpl], faces))
    true_rotations = axis_angle_to_matrix(0.5 * draw("pose", 5, 72).view(5, 24, 3))
    given = draw("rotmat", 5, 24, 3, 3), draw("betas", 5, 10), true_rotations, draw("gt_betas", 5, 10)
    case.agree("loss_smpl", losses.smpl(*(x[rows_smpl] for x in given)))
