"""`hmr refine` on synthetic people: what it improves, what it leaves alone, what must not change the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import RunOptions
from stages.errors import ArtefactError, AssetError, InputError, UsageError
from stages.evaluation import metrics
from stages.models.scorehmr.weights import EMBEDDED
from stages.params import RefineParams
from stages.refine import run
from tests.helpers.people_world import World, build, crowd, limbs, observe, turned, walk, with_keypoints

pytestmark = pytest.mark.skipif(not EMBEDDED.exists(), reason="stages/data/prior.safetensors is not there yet")
SMPL = ("smpl/global_orient", "smpl/body_pose", "smpl/betas", "smpl/transl")
FEW = RefineParams(loops=2)


def refined(world: World, params: RefineParams = FEW, **run_flags: Any) -> Artefact:
    result = run(world.meshes, world.detections, None, params, RunOptions(**run_flags))
    assert isinstance(result, Artefact)
    return result


def mpjpe(world: World, artefact: Artefact) -> float:
    return float(metrics.mpjpe(world.joints(artefact), world.joints()).mean())


def columns(artefact: Artefact) -> dict[str, np.ndarray]:
    return {name: artefact.read(name) for name in artefact.columns()}


def same(a: Artefact, b: Artefact, atol: float = 1e-5) -> None:
    assert a.columns() == b.columns()
    for name in a.columns():
        np.testing.assert_allclose(a.read(name), b.read(name), atol=atol, rtol=1e-5, err_msg=name)


def subset(world: World, rows: np.ndarray) -> World:
    """The same world with these rows, in this order."""

    def cut(table: Artefact) -> Artefact:
        return in_memory(
            table.kind, frames=table.frames, rows={k: v[rows] for k, v in table.rows.items()},
            columns={name: table.read(name)[rows] for name in table.columns()},
            group_attrs={g: table.group_attrs(g) for g in ("smpl", "keypoints") if table.group_attrs(g)},
        )  # fmt: skip

    return World(cut(world.meshes), cut(world.detections), world.pose[rows], world.transl[rows])


def test_keypoints_pull_and_the_pose_gets_better() -> None:
    world = crowd(24, error=0.15)
    out = refined(world, RefineParams())
    before, after = out.read("extra/error_before"), out.read("extra/error_after")
    assert after.mean() < 0.75 * before.mean()
    assert mpjpe(world, out) < mpjpe(world, world.meshes)
    assert (out.read("extra/refined") == 1).all()
    assert out.group_attrs("smpl")["body_model"] == "embedded"
    assert out.attrs["model"]["name"] == "scorehmr"


def test_plain_fitting_follows_the_keypoints_further_and_the_pose_less() -> None:
    world = crowd(24, error=0.15, noise=4.0)
    score, fit = refined(world, RefineParams()), refined(world, RefineParams(method="fit", fit_steps=100))
    assert fit.read("extra/error_after").mean() < score.read("extra/error_after").mean()
    assert fit.attrs["model"] is None


def test_rows_without_evidence_are_left_alone_and_infect_nobody() -> None:
    world = crowd(12)
    xy, score = world.detections.read("keypoints/xy").copy(), world.detections.read("keypoints/score").copy()
    score[1] = 0  # nothing is visible
    score[4, 1:] = 0  # one joint
    xy[7], score[7] = np.nan, np.nan
    xy[9, :3] = np.nan  # three joints unknown, the rest is fine
    out = refined(with_keypoints(world, xy, score))
    assert out.read("extra/refined").tolist() == [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]
    assert (out.rows["status"] == 0).all()
    for row in (1, 4, 7):
        for name in SMPL:
            np.testing.assert_array_equal(out.read(name)[row], world.meshes.read(name)[row])
    whole = refined(world)
    for row in (0, 2, 3, 5, 6, 8, 10, 11):
        for name in SMPL:
            np.testing.assert_allclose(out.read(name)[row], whole.read(name)[row], atol=1e-5)
    assert np.isfinite(out.read("smpl/body_pose")).all()


def test_failed_rows_stay_failed() -> None:
    world = crowd(6)
    rows = {**world.meshes.rows, "status": np.array([0, 0, 1, 0, 0, 0]), "error": np.array(["", "", "why", "", "", ""])}
    table = world.meshes
    broken = {name: table.read(name).copy() for name in table.columns()}
    for value in broken.values():
        value[2] = np.nan
    world.meshes = in_memory(
        "meshes", frames=table.frames, rows=rows, columns=broken, group_attrs={"smpl": table.group_attrs("smpl")}
    )
    for mode in ("frame", "video"):
        out = refined(world, RefineParams(mode=mode, loops=2))
        assert out.rows["error"][2] == "why" and np.isnan(out.read("smpl/body_pose")[2]).all()
        assert np.isfinite(out.read("smpl/body_pose")[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize(
    "params", [FEW, RefineParams(mode="video", loops=1), RefineParams(mode="video", method="fit", fit_steps=3)]
)
def test_a_body_that_is_not_finite_is_nobodys_neighbour(params: RefineParams) -> None:
    world = walk(9, 2)
    bodies = {name: world.meshes.read(name).copy() for name in SMPL}
    bodies["smpl/transl"][8] = np.nan  # its status says ok
    table = world.meshes
    world.meshes = in_memory(
        "meshes", frames=table.frames, rows=table.rows, columns=bodies, group_attrs={"smpl": table.group_attrs("smpl")}
    )
    out = refined(world, params)
    assert np.flatnonzero(out.rows["status"]).tolist() == [8] and "non-finite" in out.rows["error"][8]
    others = np.r_[:8, 9:18]
    assert all(np.isfinite(out.read(name)[others]).all() for name in SMPL)
    assert (out.read("extra/refined")[others] == 1).all()


def test_rows_that_cannot_be_updated_are_marked() -> None:
    world = crowd(6)
    xy, score = world.detections.read("keypoints/xy").copy(), world.detections.read("keypoints/score").copy()
    score[1, 2:] = 0
    xy[4] = 100.0  # all in one place
    out = refined(with_keypoints(world, xy, score), RefineParams(min_joints=1))
    assert out.read("extra/refined").tolist() == [1, 0, 1, 1, 0, 1]
    for name in SMPL:
        np.testing.assert_array_equal(out.read(name)[[1, 4]], world.meshes.read(name)[[1, 4]])


@pytest.mark.parametrize("mode", ["frame", "video"])
def test_batches_shards_and_order_change_nothing(mode: str, tmp_path: Path) -> None:
    world = crowd(23) if mode == "frame" else walk(20, 2, drop=(7, 8))
    params = RefineParams(mode=mode, loops=2)
    whole = refined(world, params)
    for size in (1, 7, 64):
        same(whole, refined(world, params, batch_size=size))
    out = tmp_path / "r.meshes.h5"
    for i in range(3):
        run(world.meshes, world.detections, out, params, RunOptions(shard=(i, 3)))
    with open_artefact(out) as joined:
        same(whole, joined)
    order = np.random.default_rng(0).permutation(world.meshes.n_rows)
    mixed = refined(subset(world, order), params)
    for name in SMPL:
        np.testing.assert_allclose(mixed.read(name), whole.read(name)[order], atol=1e-5)


def test_video_is_smoother_and_not_worse() -> None:
    world = walk(90, 2, noise=4.0, error=0.06)
    out = refined(world, RefineParams(mode="video"))

    def shake(table: Artefact) -> float:
        errors = []
        for track in (0, 1):
            rows = table.rows["track"] == track
            errors.append(metrics.acceleration_error(world.joints(table)[rows], world.joints()[rows]).mean())
        return float(np.mean(errors))

    assert shake(out) < 0.6 * shake(world.meshes)
    truth = world.joints()
    assert (
        metrics.pa_mpjpe(world.joints(out), truth).mean() <= metrics.pa_mpjpe(world.joints(world.meshes), truth).mean()
    )
    betas = out.read("smpl/betas")
    for track in (0, 1):
        assert np.ptp(betas[out.rows["track"] == track], axis=0).max() == 0  # one shape a track


def test_tracks_do_not_influence_each_other() -> None:
    world = walk(24, 3, drop=(5,))
    together = refined(world, RefineParams(mode="video", loops=2))
    for track in range(3):
        rows = np.flatnonzero(world.meshes.rows["track"] == track)
        alone = refined(subset(world, rows), RefineParams(mode="video", loops=2))
        for name in SMPL:
            np.testing.assert_allclose(alone.read(name), together.read(name)[rows], atol=1e-5, rtol=1e-5)


def test_windows_of_a_long_track_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = walk(150, 1)
    whole = refined(world, RefineParams(mode="video", loops=2))
    monkeypatch.setattr("stages.refinement.plan.WINDOW", 40)
    windows = refined(world, RefineParams(mode="video", loops=2))
    np.testing.assert_allclose(windows.read("smpl/body_pose"), whole.read("smpl/body_pose"), atol=1e-4)


def test_gaps_are_filled_and_marked_when_asked() -> None:
    world = walk(30, 2, drop=(10, 11, 12, 20))
    kept = refined(world, RefineParams(mode="video", loops=2))
    assert kept.n_rows == world.meshes.n_rows
    out = refined(world, RefineParams(mode="video", loops=2, fill_gaps=True))
    assert out.n_rows == 60 and (np.diff(out.rows["frame"]) >= 0).all()
    filled = out.read("extra/refined") == 2
    assert sorted(set(out.rows["frame"][filled].tolist())) == [10, 11, 12, 20] and filled.sum() == 8
    assert (out.rows["box"][filled, 2] > out.rows["box"][filled, 0]).all()
    for name in SMPL:
        np.testing.assert_allclose(out.read(name)[~filled], kept.read(name), atol=1e-5)
    pelvis = out.read("smpl/transl")[out.rows["track"] == 0]
    assert np.abs(np.diff(pelvis, 2, axis=0)).max() < 0.06  # metres, from keypoints with 3 px of noise
    # Longer gaps are not bridged.
    assert refined(world, RefineParams(mode="video", loops=2, fill_gaps=True, max_gap=2)).n_rows == 54


def four_views(noise: float = 3.0, error: float = 0.12) -> World:
    """Six people at one moment each, in four views that estimate them on their own."""
    generator = torch.Generator().manual_seed(3)
    people = limbs(6, generator, 0.3)
    pose = torch.cat([turned(people, torch.full((6,), v * np.pi / 2 + 0.3)) for v in range(4)])
    transl = torch.tensor([0.0, 0.0, 4.0]).expand(24, 3).contiguous()
    from stages.geometry import cameras
    from tests.helpers.people_world import SIZE

    keypoints = observe(pose, transl, cameras.default_K(SIZE[None]), noise, generator)
    start = pose + error * torch.randn(pose.shape, generator=generator)
    view = np.repeat(np.arange(4), 6)
    return build(pose, transl, start, keypoints, np.arange(24), track=np.zeros(24, int), view=view)


def test_views_agree_and_get_better(tmp_path: Path) -> None:
    world = four_views()
    alone, out = refined(world, RefineParams()), refined(world, RefineParams(mode="views"))
    assert mpjpe(world, out) < 0.9 * mpjpe(world, world.meshes)
    assert mpjpe(world, out) < mpjpe(world, alone)

    def spread(table: Artefact) -> float:
        return float(table.read("smpl/body_pose").reshape(4, 6, 69).std(0).mean())

    assert spread(out) < 0.5 * spread(alone)
    # A view that is missing for one person.
    rows = np.delete(np.arange(24), 8)
    assert refined(subset(world, rows), RefineParams(mode="views", loops=2)).n_rows == 23
    # Known orientations of the cameras tie the roots together.
    import json

    from stages.geometry.rotations import about

    upright = about("x", torch.tensor(np.pi))
    poses = {
        v: {"R": (upright @ about("y", torch.tensor(v * np.pi / 2 + 0.3))).tolist(), "t": [0, 0, 4]} for v in range(4)
    }
    (tmp_path / "rig.json").write_text(json.dumps(poses))
    tied = refined(world, RefineParams(mode="views", cameras=str(tmp_path / "rig.json")))
    assert mpjpe(world, tied) <= mpjpe(world, out) + 0.5
    (tmp_path / "rig.json").write_text(json.dumps({"0": poses[0]}))
    with pytest.raises(InputError, match="view 1"):
        refined(world, RefineParams(mode="views", cameras=str(tmp_path / "rig.json")))


def test_all_hypotheses_are_written_and_the_likeliest_is_the_result() -> None:
    world = crowd(6, error=0.1)
    several = RefineParams(hypotheses=4)
    one, four = refined(world, RefineParams()), refined(world, several)
    energy = four.read("extra/hypotheses_energy")
    first = energy.argmin(1)
    for name in ("global_orient", "body_pose", "betas", "transl"):
        every = four.read(f"extra/hypotheses_{name}")
        assert every.shape[:2] == (6, 4)
        np.testing.assert_array_equal(every[np.arange(6), first], four.read(f"smpl/{name}"))
        np.testing.assert_allclose(every[:, 0], one.read(f"smpl/{name}"), atol=1e-5)  # the first begins at the estimate
        assert (np.ptp(every, axis=1).reshape(6, -1).max(1) > 1e-4).all()  # and the others are others
    assert np.isfinite(energy).all()
    same(four, refined(world, several, batch_size=2))
    order = np.array([3, 0, 5, 1, 4, 2])
    mixed = refined(subset(world, order), several)
    for name in ("extra/hypotheses_body_pose", "extra/hypotheses_betas"):
        np.testing.assert_allclose(mixed.read(name), four.read(name)[order], atol=1e-5)
    assert not one.has("extra/hypotheses_energy")


def test_hypotheses_of_untouched_rows_are_the_row() -> None:
    world = crowd(4)
    xy, score = world.detections.read("keypoints/xy"), world.detections.read("keypoints/score")
    score[1] = 0
    world = with_keypoints(world, xy, score)
    out = refined(world, RefineParams(hypotheses=3))
    assert out.read("extra/refined").tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(out.read("extra/hypotheses_energy")[1], 0)
    pose = world.meshes.read("smpl/body_pose")[1]
    np.testing.assert_array_equal(out.read("extra/hypotheses_body_pose")[1], np.stack([pose] * 3))


def test_what_is_refused() -> None:
    world = crowd(4)
    for wrong in (
        {"mode": "sideways"}, {"method": "luck"}, {"preset": "x"}, {"loops": -1}, {"fill_gaps": True},
        {"mode": "video", "hypotheses": 2}, {"smooth": -1.0}, {"keypoint_weight": 1.0}, {"min_joints": 0},
        {"smooth": float("nan")}, {"loops": 1, "keypoint_weight": -1.0}, {"cameras": "rig.json"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            refined(world, RefineParams(**wrong))
    with pytest.raises(InputError, match="several people"):
        refined(world, RefineParams(mode="views"))
    other = crowd(5)
    with pytest.raises(ArtefactError, match="rows"):
        run(world.meshes, other.detections, None, FEW, RunOptions())
    with pytest.raises(AssetError):
        run(world.meshes, world.detections, None, FEW, RunOptions(), ckpt=Path("nowhere.pt"))


def test_nobody_is_a_result() -> None:
    world = subset(crowd(4), np.zeros(0, int))
    assert all(refined(world, RefineParams(mode=mode, loops=1)).n_rows == 0 for mode in ("frame", "video"))
