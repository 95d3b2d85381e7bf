"""Every licensed data set: a small tree in its own layout goes through `hmr eval` and gives the error it was made with;
trees that lack something, or hold something damaged, end with exit code 4 and the file's name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_cli.app import main
from stages.artefacts.hdf5 import open_artefact
from stages.datasets.protocols import protocol_of
from stages.errors import AssetError
from stages.keypoints import joint_sets
from stages.pipeline import open_dataset
from stages.smpl import body
from tests.helpers import dataset_world
from tests.helpers.dataset_layouts import LAYOUTS, Tree
from tests.helpers.dataset_world import SCALE


@pytest.fixture(scope="module", autouse=True)
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A body called smpl, of three genders, in a cache of its own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMR_CACHE", str(folder))
        body._cached.cache_clear()
        dataset_world.add_bodies(folder)
        yield
    body._cached.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return {}


def tree_of(layout: str, made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    if layout not in made:
        made[layout] = LAYOUTS[layout](tmp_path_factory.mktemp("tree"))
    return made[layout]


def hmr(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command line."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    seen = capsys.readouterr()
    return int(end.value.code or 0), seen.out, seen.err


def people(tree: Tree) -> tuple[object, np.ndarray]:
    """The rows that the reader found, and the true mesh of each, found by frame name and place in the picture."""
    rows = open_dataset(tree.name, tree.data, partial=tree.partial).detections
    number = np.array([tree.frames[str(rows.frames["name"][f])] for f in rows.rows["frame"]])
    middle = np.nanmedian(np.where(rows.read("keypoints/score")[..., None] > 0, rows.read("keypoints/xy"), np.nan), 1)
    K = rows.frames["K"][rows.rows["frame"]].astype(float)
    centre = tree.world.vertices.mean(2)[number]
    seen = np.einsum("nij,npj->npi", K, centre)
    gap = np.linalg.norm(seen[..., :2] / seen[..., 2:] - middle[:, None], axis=-1)
    return rows, tree.world.vertices[number, gap.argmin(1)]


def expected(tree: Tree, vertices: np.ndarray) -> tuple[float, float]:
    """MPJPE and MPVE of meshes SCALE times the true ones, computed from the definition."""
    protocol = protocol_of(open_dataset(tree.name, tree.data, partial=tree.partial).protocol)
    folder = tree.data if tree.data.is_dir() else tree.data.parent
    folder = folder if (folder / "SMPL_to_J19.pkl").exists() else folder.parent
    smpl = body.load_body("smpl").J_regressor.numpy().astype(float)
    matrix = smpl if protocol.joint_set == "smpl24" else dataset_world.matrix(folder, protocol.joint_set)
    names = joint_sets.get(protocol.joint_set)
    points = matrix @ vertices
    root = points[:, [names.index(n) for n in protocol.root]].mean(1, keepdims=True)
    wanted = [n for n in protocol.joints if not tree.annotated or n in tree.annotated]
    scored = points[:, [names.index(n) for n in wanted]]
    pelvis = root if protocol.vertex_root == "hips" else smpl[:1] @ vertices
    gaps = (np.linalg.norm(scored - root, axis=-1), np.linalg.norm(vertices - pelvis, axis=-1))
    return tuple(1000 * (SCALE - 1) * float(g.mean()) for g in gaps)  # type: ignore[return-value]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_is_the_one_it_was_made_with(
    layout: str,
    made: dict[str, Tree],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tree = tree_of(layout, made, tmp_path_factory)
    rows, vertices = people(tree)
    meshes = dataset_world.estimate(rows, vertices, tmp_path / "test.meshes.h5")
    flags = ["--partial"] * tree.partial
    code, out, err = hmr(capsys, "eval", tree.name, "--data", tree.data, "--meshes", meshes, "--json", *flags)
    assert code == 0, err
    scores = json.loads(out)
    assert scores["rows"] == scores["scored"] == tree.rows
    if scores["protocol"] == "keypoints":
        # Scaling about the camera's centre moves no pixel; the labels are 3, 4 px off.
        assert scores["error_2d"] == pytest.approx(5, abs=0.01) and scores["pck"] == 1
        return
    mpjpe, mpve = expected(tree, vertices)
    # EMDB's joints are the kinematic tree's, which a regressor on a mesh meets in the T pose only.
    tolerance = 0.1 * mpjpe if tree.name == "emdb" else 0.02
    assert scores["mpjpe"] == pytest.approx(mpjpe, abs=tolerance)
    if scores["pa_mpjpe"] is not None and tree.name != "emdb":
        assert scores["pa_mpjpe"] < 0.02
    if scores["mpve"] is not None and tree.name != "emdb":
        assert scores["mpve"] == pytest.approx(mpve, abs=0.02)
    has_meshes = open_dataset(tree.name, tree.data, partial=tree.partial).topology == "smpl"
    assert (scores["mpve"] is not None) == has_meshes
    assert ("partial" in scores["dataset"]) == tree.partial


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_missing_or_damaged_is_named(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = LAYOUTS[layout](tmp_path)

    def fails(*flags: str) -> str:
        code, out, err = hmr(capsys, "eval", tree.name, "--data", tree.data, *flags)
        assert (code, out) == (4, ""), err
        return err

    flags = ["--partial"] * tree.partial  # which allows whole sequences to be absent, and nothing else
    for path in tree.files:
        aside = path.rename(path.with_name("aside"))
        assert path.name in fails(*flags)
        aside.rename(path)
    data = tree.damage.read_bytes()
    for wrong in (data[: len(data) // 2], b"", b"<!DOCTYPE html><html>log in</html>"):
        tree.damage.write_bytes(wrong)
        assert tree.damage.name in fails(*flags)


@pytest.mark.parametrize(
    ("layout", "where", "wrong"),
    [
        ("3dpw", ("genders",), ["m"]),
        ("3dpw json", ("images", 0, "frame_idx"), "x"),
        ("3dpw npz", ("scale",), np.ones(3)),
        ("3doh", ("00002", "extri", 0, 1), float("nan")),
        ("emdb", ("n_frames",), [[1]]),
        ("ochuman", ("images", 0, "width"), None),
    ],
)
def test_wrong_kinds_of_values_are_damage(
    layout: str, where: tuple[Any, ...], wrong: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that can be read, in which one value is not what it is in every copy."""
    tree = LAYOUTS[layout](tmp_path)
    data = tree.damage.read_bytes()
    kind = tree.damage.suffix
    content = json.loads(data) if kind == ".json" else None
    if kind != ".json":
        content = dict(np.load(tree.damage)) if kind == ".npz" else pickle.loads(data, encoding="latin1")
    place: Any = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = wrong
    if kind == ".npz":
        np.savez(tree.damage, **content)
    else:
        tree.damage.write_bytes(json.dumps(content).encode() if kind == ".json" else pickle.dumps(content, protocol=2))
    code, out, err = hmr(capsys, "eval", tree.name, "--data", tree.data, "--partial")
    assert (code, out) == (4, "") and f"{tree.damage.name} is damaged" in err, err


@pytest.mark.parametrize(
    ("layout", "code", "say"),
    [("3doh", 3, "the data set's are smpl"), ("ochuman", 2, "no 3D joints"), ("panoptic", 0, "")],
)
def test_occlusion_maps_of_comparable_joints_only(
    layout: str, code: int, say: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = LAYOUTS[layout](tmp_path)
    args = ("--data", tree.data, "--limit", 3, "--grid", 2, "--json", "-o", tmp_path / "x.png")
    got, out, err = hmr(capsys, "eval", "occlusion-map", tree.name, *args, *["--partial"] * tree.partial)
    assert got == code and say in err, err
    if not code:
        assert (
            json.loads(out)["hurt_most"] in tree.annotated and np.isfinite(np.load(tmp_path / "x.npz")["errors"]).all()
        )


def test_counts_of_every_sequence_when_they_are_not_the_papers(
    made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = tree_of("3dpw-oc json", made, tmp_path_factory)
    with pytest.raises(AssetError, match="6 of 20243 rows of 3dpw-oc") as error:
        open_dataset(tree.name, tree.data)
    assert "courtyard_box_00 6/1041" in error.value.message and "flat_guitar_01 0/748" in error.value.message
    assert "--partial" in error.value.hint
    missing = tree_of("3dpw-pc", made, tmp_path_factory)
    with pytest.raises(AssetError, match=r"courtyard_basketball_00\.pkl: no such file") as error:
        open_dataset(missing.name, missing.data)
    assert "sequenceFiles.zip" in error.value.hint and "sequenceFiles/train" in error.value.hint


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = LAYOUTS["emdb"](tmp_path)
    tree.damage.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(AssetError, match="nothing of it was run"):
        open_dataset(tree.name, tree.data, partial=True)
    assert not (tmp_path / "ran").exists()


def test_regressors_are_checked_and_their_name_clash_settled(tmp_path: Path) -> None:
    from stages.datasets import joint_regressors

    smpl = body.load_body("smpl")
    with pytest.raises(AssetError, match="J_regressor_h36m_correct") as error:
        joint_regressors.find(smpl, "h36m17", tmp_path)
    assert "I2L-MeshNet" in error.value.hint
    dataset_world.add_regressors(tmp_path)
    found = joint_regressors.find(smpl, "h36m17", tmp_path)
    assert "not the published file" in found.about and found.matrix.shape == (17, 6890)
    rows = np.random.default_rng(0).random((14, 6890))
    rows /= rows.sum(1, keepdims=True)
    for count, kept in ((14, rows[5:]), (9, rows[:9])):
        np.save(tmp_path / f"{count}.npy", rows[:count])
        np.testing.assert_allclose(joint_regressors.read(tmp_path / f"{count}.npy", "extra9").matrix, kept, rtol=1e-5)
    for wrong, why in ((rows[:5], "shape"), (rows[:9] * 2, "sum to one")):
        np.save(tmp_path / f"{why[:3]}.npy", wrong)
        with pytest.raises(AssetError, match=why):
            joint_regressors.read(tmp_path / f"{why[:3]}.npy", "extra9")


def test_rows_of_a_data_set_as_a_file(
    made: dict[str, Tree],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from stages.media.frames import FrameSource

    tree = tree_of("3dpw", made, tmp_path_factory)
    out = tmp_path / "3dpw.detections.h5"
    code, _, err = hmr(capsys, "eval", "rows", tree.name, "--data", tree.data, "--partial", "-o", out)
    assert code == 0, err
    with open_artefact(out, "detections") as table:
        assert table.n_rows == 7 and str(tree.data) not in str(table.attrs["root"])
        assert FrameSource(table)(0).shape == (240, 320, 3)
        assert table.rows_fingerprint == open_dataset(tree.name, tree.data, partial=True).detections.rows_fingerprint


def test_men_are_compared_with_men(
    made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The neutral protocol is another number: the stand-ins differ by five per cent."""
    from stages.engine.job import RunOptions
    from stages.evaluate import run
    from stages.params import EvaluateParams

    tree = tree_of("3dpw-oc", made, tmp_path_factory)
    rows, vertices = people(tree)
    data = open_dataset(tree.name, tree.data, partial=True)
    meshes = dataset_world.estimate(rows, vertices, tmp_path / "test.meshes.h5")
    found = [
        run(meshes, data, None, EvaluateParams(protocol=p), RunOptions()).attrs["summary"]["mpve"]
        for p in ("dpmesh", "neutral")
    ]
    again = [
        run(meshes, data, None, EvaluateParams(), RunOptions(batch_size=n)).attrs["summary"]["mpve"] for n in (1, 5)
    ]
    assert again == [found[0]] * 2  # to the last digit, men and women in one batch or apart
    assert abs(found[0] - found[1]) > 3


def test_emdb_scores_the_joints_of_the_kinematic_tree(
    made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A known turn of one elbow, in SMPL parameters: the hand's way is known, everything else stays."""
    import torch

    from stages.artefacts.table import in_memory
    from stages.engine.job import RunOptions
    from stages.evaluate import run
    from stages.params import EvaluateParams

    tree = tree_of("emdb", made, tmp_path_factory)
    data = open_dataset(tree.name, tree.data, partial=True)
    rows, world, elbow = data.detections, tree.world, 18
    frames = [0, 1, 3]
    true = np.stack([world.turned_pose(f, 0) for f in frames]).reshape(-1, 24, 3).astype(np.float32)
    bent = true.copy()
    bent[:, elbow] = (0.5, 0, 0)
    betas = torch.tensor(world.betas[frames, 0], dtype=torch.float32)
    woman = body.load_body("smpl", "female")
    a, b = (woman(torch.tensor(x[:, 0]), torch.tensor(x[:, 1:]), betas).joints.numpy() for x in (true, bent))
    smpl = {"global_orient": bent[:, 0], "body_pose": bent[:, 1:], "betas": betas.numpy(), "transl": np.ones((3, 3))}
    meshes = in_memory(
        "meshes",
        frames=rows.frames,
        rows=rows.rows,
        columns={f"smpl/{k}": v for k, v in smpl.items()},
        group_attrs={"smpl": {"body_model": "smpl", "gender": "female"}},
    )
    scores = run(meshes, data, None, EvaluateParams(), RunOptions())
    gaps = np.linalg.norm(a - b, axis=-1)
    assert (gaps > 1e-4).sum(1).tolist() == [2, 2, 2]
    np.testing.assert_allclose(scores.read("errors/mpjpe"), 1000 * gaps.mean(1), atol=1e-2)
    np.testing.assert_allclose(scores.read("errors/per_joint"), 1000 * gaps, atol=1e-2)


@pytest.mark.parametrize("layout", ["panoptic", "h36m-multiview", "ochuman"])
def test_the_embedded_recoverer_is_scored_where_no_smpl_is_needed(
    layout: str,
    made: dict[str, Tree],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tree, out = tree_of(layout, made, tmp_path_factory), tmp_path / "x.scores.h5"
    protocol = ["--protocol", "h36m"] * (layout == "h36m-multiview")  # the free body has no thorax to compare
    code, text, err = hmr(capsys, "eval", tree.name, "--data", tree.data, "--json", "-o", out, *protocol)
    assert code == 0, err
    scores = json.loads(text)
    assert scores["scored"] == tree.rows
    assert scores["pck"] > 0.5 if layout == "ochuman" else 30 < scores["mpjpe"] < 400
    with open_artefact(out, "scores") as table:
        assert table.attrs["subset"]["rows"] == tree.rows and len(table.attrs["subset"]["sha256"]) == 64


def test_bodies_that_cannot_be_compared_are_said_before_anything_is_computed(
    made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tree_of("3dpw", made, tmp_path_factory)
    code, _, err = hmr(capsys, "eval", tree.name, "--data", tree.data, "--partial")
    assert code == 2 and "poses the free body" in err and "--ckpt" in err


def test_panoptic_takes_the_nearest_body_of_the_picture(
    made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Two people's bodies exchanged: nothing changes there, everything where rows are compared with rows."""
    from stages.engine.job import RunOptions
    from stages.evaluate import run
    from stages.params import EvaluateParams

    found = {}
    for layout in ("panoptic", "3dpw json"):
        tree = tree_of(layout, made, tmp_path_factory)
        rows, vertices = people(tree)
        data = open_dataset(tree.name, tree.data, partial=tree.partial)
        assert rows.rows["frame"].tolist() == [0, 0, 1, 1, 2, 2]
        for name, order in (("right", [0, 1, 2, 3, 4, 5]), ("swapped", [1, 0, 3, 2, 5, 4])):
            meshes = dataset_world.estimate(rows, vertices[order], tmp_path / f"{layout}{name}.meshes.h5")
            found[layout, name] = run(meshes, data, None, EvaluateParams(), RunOptions()).attrs["summary"]["mpjpe"]
    assert found["panoptic", "swapped"] == pytest.approx(found["panoptic", "right"], abs=1e-3)
    assert found["3dpw json", "swapped"] > 2 * found["3dpw json", "right"]


@pytest.mark.parametrize(("layout", "mode"), [("mannequin", "views"), ("h36m-multiview", "views"), ("3dpw", "video")])
def test_how_rows_can_be_refined_together(
    layout: str, mode: str, made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from stages.refine import mode_of
    from stages.refinement.windows import view_windows

    tree = tree_of(layout, made, tmp_path_factory)
    rows = open_dataset(tree.name, tree.data, partial=tree.partial).detections
    assert mode_of(rows) == mode
    if mode == "views":
        frame, track, status = (rows.rows[name] for name in ("frame", "track", "status"))
        units = view_windows(frame, track, rows.frames["view"], rows.frames["time"], status)
        assert all(len(unit) > 1 for unit in units)


@pytest.mark.parametrize("layout", ["3dpw", "3dpw-crowd json"])
def test_joints_that_the_detector_did_not_find_are_the_occluded_ones(
    layout: str, made: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    from stages.engine.job import RunOptions
    from stages.evaluate import run
    from stages.params import EvaluateParams

    tree = tree_of(layout, made, tmp_path_factory)
    rows, vertices = people(tree)
    data = open_dataset(tree.name, tree.data, partial=tree.partial)
    names = list(rows.group_attrs("keypoints")["joints"])
    data.annotations.keypoints = data.annotations.keypoints.copy()
    data.annotations.keypoints[0, names.index("left_knee"), 2] = 0.04
    scores = run(
        dataset_world.estimate(rows, vertices, tmp_path / "test.meshes.h5"), data, None, EvaluateParams(), RunOptions()
    )
    scored = protocol_of("dpmesh").joints
    seen = scores.read("errors/visible").astype(bool)
    head, knee = scored.index("head_top"), scored.index("left_knee")  # no detector gives the top of the head
    assert not seen[:, head].any() and (~seen).sum() == len(seen) + 1 and not seen[0, knee]
    each, occluded = scores.read("errors/per_joint"), scores.read("errors/occ_mpjpe")
    assert occluded[0] == pytest.approx((each[0, head] + each[0, knee]) / 2, rel=1e-5)
    np.testing.assert_allclose(occluded[1:], each[1:, head], rtol=1e-5)
