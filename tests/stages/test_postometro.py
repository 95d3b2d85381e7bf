"""The mesh recoverers on rows: which file is which, the way from crop to picture, meshes that everyone can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import recover
from stages.artefacts.kinds import OK
from stages.artefacts.table import in_memory
from stages.errors import AssetError
from stages.files.checkpoints import read_checkpoint, write_checkpoint
from stages.geometry import cameras
from stages.keypoints.joint_sets import SETS
from stages.models import find_loader
from stages.models.base import PersonBatch
from stages.models.postometro import FastMetroRecoverer, PctExtractor, PostoMetroRecoverer, recoverers, weights
from stages.models.postometro.network import FastMetro, Mesh
from stages.models.tables import RECOVERERS
from stages.smpl import mesh_sampling
from stages.smpl.body import load_body
from tests.helpers.fixtures import Fixtures
from tests.helpers.small_artefacts import COCO


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    listed = Fixtures("postometro").index(f"manifest_{name}.json")
    return {key: tuple(value["shape"]) for key, value in listed.items()}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("postometro_l_r50", "PostoMETRO-L, ResNet-50, PCT Swin-V2 large"),
        ("postometro_l_w48", "PostoMETRO-L, HRNet-W48, PCT Swin-V2 large"),
        ("fastmetro_s_r50", "FastMETRO-S, ResNet-50"),
        ("fastmetro_l_h64", "FastMETRO-L, HRNet-W64"),
        ("fastmetro_l_h64_smpl", "FastMETRO-L, HRNet-W64, SMPL regressor"),
    ],
)
def test_a_file_says_what_it_is(name: str, found: str) -> None:
    shapes = manifest(name)
    aliases = {f"module.{n.replace('pct.backbone', 'pct.extra_backbone')}" for n in shapes}
    for names in (frozenset(shapes), aliases | {f"module.{n}" for n in shapes}):
        assert PostoMetroRecoverer.recognises(names) == found.startswith("Posto")
        assert FastMetroRecoverer.recognises(names) == found.startswith("Fast")
    layout = weights.read_layout(shapes)
    assert layout.name == found
    # The network of that layout holds names of the file only, aliases, buffers and unused heads left out.
    assert set(weights.bare_network(layout).state_dict()) <= set(weights.renamed(shapes))


@pytest.mark.parametrize("name", ["pct_base_classifier", "pct_large_classifier", "pct_huge_classifier"])
def test_pct_files_are_told_apart_from_mesh_networks(name: str) -> None:
    names = frozenset(f"state_dict.{n}" for n in manifest(name))
    assert PctExtractor.recognises(names)
    assert not PostoMetroRecoverer.recognises(names) and not FastMetroRecoverer.recognises(names)


def test_a_mesh_lands_where_the_crop_shows_it() -> None:
    """s (X + t) in the crop's [-1, 1] is the picture's pixel under it, for the depth of the mesh's middle."""
    generator = torch.Generator().manual_seed(3)
    fine = torch.randn(2, 50, 3, generator=generator) * torch.tensor([0.3, 0.6, 0.0]) + torch.tensor([0.1, -0.2, 7.0])
    camera = torch.tensor([[0.9, 0.1, -0.05], [1.1, -0.3, 0.2]])
    box = torch.tensor([[100.0, 40.0, 356.0, 296.0], [10.0, 20.0, 110.0, 120.0]])
    K = torch.tensor([[900.0, 0, 319.5], [0, 900.0, 239.5], [0, 0, 1]]).expand(2, 3, 3)
    mesh = Mesh(camera, fine, fine, fine, fine)
    seen = cameras.project(fine + recoverers.mesh_translation(mesh, box, K)[:, None], K)
    in_crop = camera[:, :1, None] * (fine[..., :2] + camera[:, None, 1:])
    corner, side = box[:, None, :2], (box[:, 2] - box[:, 0])[:, None, None]
    assert torch.allclose(seen, corner + (in_crop + 1) / 2 * side, atol=0.01)


def test_the_crop_holds_the_person_and_empty_boxes_fail() -> None:
    box = np.array([[100.0, 50, 180, 250], [0, 0, 0, 0], [np.nan, 0, 5, 5]])
    integer, errors = recoverers.metro_boxes(box, 256)
    assert errors[0] == "" and errors[1] and errors[2]
    assert integer.shape == (3, 4) and integer.dtype == np.int64
    assert (integer[0, :2] <= box[0, :2]).all() and (integer[0, 2:] >= box[0, 2:]).all()
    assert abs(integer[0, 3] - integer[0, 1] - 240) <= 1  # 1.2 times the longer side


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FastMETRO-S that was never trained, with a mesh head that gives something of a person's size."""
    torch.manual_seed(0)
    network = FastMetro("resnet50", 1)
    network.cam_predictor.bias.data[:] = torch.tensor([1.0, 0.0, 0.0])
    path = tmp_path_factory.mktemp("weights") / "fastmetro.safetensors"
    # Counters of batch norms come in other shapes too, and computed buffers and aliases with them.
    tensors = {
        f"module.{name}": tensor.view(1) if name.endswith("num_batches_tracked") else tensor
        for name, tensor in network.state_dict().items()
    }
    return write_checkpoint(path, tensors, {"body": load_body().name, "licence": "test"})


def people_table(folder: Path) -> object:
    import cv2

    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    cv2.imwrite(str(folder / "a.png"), image)
    return in_memory(
        "detections",
        frames={"name": ["a.png"], "size": [[160, 120]], "K": [[[200.0, 0, 79.5], [0, 200, 59.5], [0, 0, 1]]]},
        rows={"frame": [0, 0, 0], "box": [[20.0, 10, 60, 110], [90, 5, 150, 115], [5, 5, 5, 5]]},
        columns={"keypoints/xy": np.full((3, 17, 2), 50.0), "keypoints/score": np.ones((3, 17))},
        group_attrs={"keypoints": COCO},
    )


def test_recover_gives_vertices_and_smpl(tmp_path: Path, checkpoint: Path) -> None:
    assert find_loader(RECOVERERS, read_checkpoint(checkpoint)) is FastMetroRecoverer
    meshes = recover.run(people_table(tmp_path), None, ckpt=checkpoint, root=tmp_path)
    assert list(meshes.rows["status"] == OK) == [True, True, False]
    assert "box" in str(meshes.rows["error"][2])
    vertices, ok = meshes.read("vertices/xyz"), [0, 1]
    assert vertices.shape == (3, 6890, 3) and np.isfinite(vertices[ok]).all() and np.isnan(vertices[2]).all()
    assert meshes.group_attrs("joints")["joints"] == list(SETS["lsp14"])
    # /smpl is a body near those vertices, exactly as near as the table says.
    read = [torch.from_numpy(meshes.read(f"smpl/{n}", np.array(ok))) for n in rows_smpl()]
    fitted = load_body()(*read).vertices.numpy()
    away = np.linalg.norm(fitted - vertices[ok], axis=-1).mean(1)
    np.testing.assert_allclose(meshes.read("extra/fit_residual", np.array(ok)), away, rtol=1e-3)


def rows_smpl() -> tuple[str, ...]:
    return ("global_orient", "body_pose", "betas", "transl")


def test_a_network_of_another_body_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    body = load_body()
    other = type(body).from_arrays(
        body.v_template, body.shapedirs, None, body.J_regressor, body.weights, body.parents, body.faces, name="other"
    )
    with pytest.raises(AssetError, match="was trained on the body"):
        FastMetroRecoverer.load(read_checkpoint(checkpoint), body=other)


def test_a_network_of_another_selection_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    network, metadata = read_checkpoint(checkpoint).tensors, {"body": load_body().name}
    kept = mesh_sampling.selection(mesh_sampling.of_body(load_body()))
    good = write_checkpoint(tmp_path / "good.safetensors", network, metadata | {"levels": kept})
    assert FastMetroRecoverer.load(read_checkpoint(good)).remark == ""
    bad = write_checkpoint(tmp_path / "bad.safetensors", network, metadata | {"levels": "0" * 16})
    with pytest.raises(AssetError, match="another selection"):
        FastMetroRecoverer.load(read_checkpoint(bad))


def test_no_checkpoint_is_an_asset_error() -> None:
    for recoverer in (FastMetroRecoverer, PostoMetroRecoverer):
        with pytest.raises(AssetError, match="no weights of its own"):
            recoverer.load(None)


def test_given_pose_tokens_are_used() -> None:
    soft, scores = np.ones((2, 34, 512), np.float32), np.full((2, 34, 2), 0.5, np.float32)
    people = PersonBatch(
        *(np.zeros((2, k)) for k in (4, 3)),
        ("nose",),
        *(np.zeros(2) for _ in range(4)),
        columns={recoverers.SOFT: soft, recoverers.SCORES: scores},
    )
    pose = recoverers.stored_tokens(people, "cpu")
    assert pose is not None and pose.soft.shape == (2, 34, 512) and pose.scores.shape == (2, 34, 1)
    people.columns = {}
    assert recoverers.stored_tokens(people, "cpu") is None
