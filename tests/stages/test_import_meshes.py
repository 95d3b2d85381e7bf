"""Bodies of other programs become meshes that reproject as they did there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.artefacts.hdf5 import open_artefact
from stages.errors import AssetError, HmrError, InputError, UsageError
from stages.files.joblib import read_data
from stages.formats.amass import read_amass
from stages.formats.bodies import Params
from stages.formats.hmr2 import read_predictions
from stages.formats.phalp import read_phalp
from stages.geometry import cameras
from stages.geometry.rotations import axis_angle_to_matrix
from stages.import_ import run_bodies
from stages.smpl.body import load_body

EMBEDDED = Params(body="embedded", size="640x480")
POSE = (0.3 * np.random.default_rng(0).standard_normal((6, 24, 3))).astype(np.float32)
ROTMAT = axis_angle_to_matrix(torch.from_numpy(POSE)).numpy()


def tracks() -> dict[str, Any]:
    """Three frames of PHALP's table, two people, the second not seen in the middle frame."""
    table: dict[str, Any] = {}
    for f in range(3):
        people = [0, 1] if f != 1 else [0]
        table[f"_DEMO/take/img/{f:06d}.jpg"] = {
            "time": f,
            "tid": people,
            "smpl": [
                {
                    "global_orient": ROTMAT[2 * f + k, :1],
                    "body_pose": ROTMAT[2 * f + k, 1:],
                    "betas": np.full(10, 0.1 * k),
                }
                for k in people
            ],
            "camera_bbox": [np.array([0.9, 0.05, 0.1 * k], np.float32) for k in people],
            "center": [np.array([200.0 + 200 * k, 240.0]) for k in people],
            "bbox": [np.array([150.0 + 200 * k, 100.0, 100.0, 280.0]) for k in people],
            "size": [[480, 640] for _ in people],
            "conf": [0.9 for _ in people],
        }
    return table


def test_predictions_with_a_full_camera(tmp_path: Path) -> None:
    transl = np.tile([0.1, 0.2, 30.0], (6, 1)).astype(np.float32)
    np.savez(tmp_path / "p.npz", pred_pose=ROTMAT, pred_betas=np.zeros((6, 10)), pred_cam_t=transl)
    meshes = run_bodies(read_predictions(tmp_path / "p.npz", EMBEDDED), tmp_path / "p.meshes.h5", EMBEDDED)
    with open_artefact(meshes, "meshes") as table:
        assert table.n_rows == 6
        np.testing.assert_allclose(table.read("smpl/body_pose"), POSE[:, 1:], atol=1e-5)
        np.testing.assert_allclose(table.read("smpl/transl"), transl)
        assert table.frames["K"][0, 0, 0] == 5000 and table.frames["K"][0, 0, 2] == 320


def test_predictions_with_a_weak_camera(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "p.npz",
        pred_pose=POSE.reshape(6, 72),
        pred_betas=np.zeros((6, 10)),
        pred_cam=np.tile([0.8, 0.1, -0.2], (6, 1)),
    )
    names = np.array([f"f{i // 2}.jpg" for i in range(6)])
    center, scale = np.tile([400.0, 200.0], (6, 1)), np.full(6, 1.5)
    np.savez(tmp_path / "a.npz", imgname=names, center=center, scale=scale)
    with pytest.raises(InputError, match="pred_cam_t"):
        read_predictions(tmp_path / "p.npz", EMBEDDED)
    bodies = read_predictions(tmp_path / "p.npz", EMBEDDED, tmp_path / "a.npz")
    assert bodies.names == ["f0.jpg", "f1.jpg", "f2.jpg"] and bodies.frame.tolist() == [0, 0, 1, 1, 2, 2]
    # The weak camera's own projection of the root: centre of the box + half the side * s (t).
    at = cameras.project(bodies.smpl["transl"][:, None], bodies.K[bodies.frame])[:, 0]
    np.testing.assert_allclose(at, center + 150 * 0.8 * np.array([0.1, -0.2]), atol=1e-3)


@pytest.mark.parametrize("how", ["pickle", "joblib"])
def test_phalp(tmp_path: Path, how: str) -> None:
    path = tmp_path / "demo.pkl"
    if how == "pickle":
        path.write_bytes(pickle.dumps(tracks()))
    else:
        pytest.importorskip("joblib").dump(tracks(), path, compress=3)
    bodies = read_phalp(path, EMBEDDED)
    boxes = tmp_path / "demo.detections.h5"
    run_bodies(bodies, tmp_path / "demo.meshes.h5", EMBEDDED, boxes=boxes)
    with open_artefact(tmp_path / "demo.meshes.h5") as meshes, open_artefact(boxes, "detections") as detections:
        assert meshes.rows["track"].tolist() == [0, 1, 0, 0, 1]
        assert meshes.rows_fingerprint == detections.rows_fingerprint
        np.testing.assert_allclose(meshes.read("smpl/global_orient"), POSE[[0, 1, 2, 4, 5], 0], atol=1e-5)
        at = cameras.project(meshes.read("smpl/transl")[:, None], meshes.frames["K"][meshes.rows["frame"]])[:, 0]
        np.testing.assert_allclose(at[0], [200 + 140 * 0.9 * 0.05, 240], atol=1e-2)


def test_amass_round_trip(tmp_path: Path) -> None:
    from stages.formats.amass import TO_WORLD

    body = load_body("embedded")
    poses = np.concatenate([POSE[:, :22].reshape(6, 66), np.zeros((6, 90))], 1)
    trans = np.tile([0.0, 5.0, 1.0], (6, 1))
    path = tmp_path / "walk_poses.npz"
    np.savez(path, poses=poses, trans=trans, betas=np.zeros(16), mocap_framerate=120.0, gender="neutral")
    bodies = read_amass(path, EMBEDDED)
    assert bodies.time is not None and bodies.time[1] == pytest.approx(1 / 120)
    out = body(
        *(
            torch.from_numpy(np.asarray(bodies.smpl[k], np.float32))
            for k in ("global_orient", "body_pose", "betas", "transl")
        )
    )
    world = body(
        torch.from_numpy(POSE[:, 0]), torch.from_numpy(np.concatenate([POSE[:, 1:22], 0 * POSE[:, 22:]], 1)),
        torch.zeros(6, 10), torch.from_numpy(trans).float(),
    )  # fmt: skip
    np.testing.assert_allclose(out.joints @ TO_WORLD.T, world.joints, atol=1e-5)
    assert (bodies.box[:, 2] > bodies.box[:, 0]).all()


def test_bodies_that_are_not_finite_fail_alone(tmp_path: Path) -> None:
    poses = np.concatenate([POSE[:, :22].reshape(6, 66), np.zeros((6, 90))], 1)
    poses[2, 7] = np.nan
    np.savez(tmp_path / "walk.npz", poses=poses, trans=np.tile([0.0, 5.0, 1.0], (6, 1)), betas=np.zeros(16))
    rotmat = ROTMAT.copy()
    rotmat[2] = np.nan
    np.savez(tmp_path / "p.npz", pred_pose=rotmat, pred_betas=np.zeros((6, 10)), pred_cam_t=np.full((6, 3), 9.0))
    for name, bodies in (
        ("walk", read_amass(tmp_path / "walk.npz", EMBEDDED)),
        ("p", read_predictions(tmp_path / "p.npz", EMBEDDED)),
    ):
        run_bodies(bodies, tmp_path / f"{name}.meshes.h5", EMBEDDED, boxes=tmp_path / f"{name}.detections.h5")
        with open_artefact(tmp_path / f"{name}.meshes.h5", "meshes") as table:
            assert table.rows["status"].tolist() == [0, 0, 1, 0, 0, 0] and "finite" in table.rows["error"][2]
            assert np.isfinite(table.read("smpl/body_pose")[[0, 1, 3, 4, 5]]).all()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch SHOULD_NOT_EXIST",)


def test_hostile_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps({"a.jpg": {"smpl": [Evil()]}}))
    with pytest.raises(AssetError, match="refused"):
        read_data(evil)
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()
    whole = pickle.dumps(tracks())
    for content in (b"", b"hello", whole[: len(whole) // 2], pickle.dumps([1, 2]), pickle.dumps({})):
        (tmp_path / "cut.pkl").write_bytes(content)
        with pytest.raises(HmrError):
            read_phalp(tmp_path / "cut.pkl", EMBEDDED)
    with pytest.raises(InputError):
        read_phalp(tmp_path / "none.pkl", EMBEDDED)
    np.savez(tmp_path / "x.npz", poses=np.zeros((3, 10)), trans=np.zeros((3, 3)), betas=np.zeros(10))
    with pytest.raises(InputError, match="no AMASS"):
        read_amass(tmp_path / "x.npz", EMBEDDED)
    np.savez(tmp_path / "y.npz", pred_pose=ROTMAT, pred_betas=np.zeros((6, 10)), pred_cam_t=np.zeros((6, 3)))
    with pytest.raises(UsageError, match="sizes"):
        read_predictions(tmp_path / "y.npz", Params())
