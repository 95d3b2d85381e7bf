"""hmr heatmaps: the recorded cases of DPMesh, any joint set, unseen people, nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import heatmaps
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK
from stages.artefacts.table import in_memory
from stages.engine.job import RunOptions
from stages.errors import UsageError
from stages.geometry import crops
from stages.geometry import heatmaps as heatmap
from stages.geometry.cameras import default_K
from stages.keypoints import joint_sets
from stages.params import HeatmapsParams
from tests.helpers.fixtures import PARITY


def detections(keypoints: np.ndarray, joint_set: str = "coco17", size: tuple[int, int] = (640, 480)):
    n = len(keypoints)
    frames = {"name": ["a.jpg"], "size": np.array([size]), "K": default_K(np.array([size], float))}
    rows = {"frame": np.zeros(n, int), "box": np.tile([0.0, 0, *size], (n, 1))}
    columns = {"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]}
    attrs = {"joints": list(joint_sets.SETS[joint_set]), "joint_set": joint_set, "score_definition": "test"}
    return in_memory("detections", frames=frames, rows=rows, columns=columns, group_attrs={"keypoints": attrs})


def people(n: int, count: int = 17, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(100, 380, (n, count, 2)), rng.uniform(0.1, 1, (n, count, 1))], -1)


def test_the_recorded_inputs_of_dpmesh() -> None:
    recorded = np.load(PARITY / "dpmesh" / "prep.npz")
    size = recorded["image_hw"][:, ::-1]
    keypoints = heatmap.dpmesh_keypoints(recorded["openpose"], joint_sets.SETS["openpose18"])
    np.testing.assert_array_equal(keypoints[..., 2], recorded["out.joints"][..., 2])
    made = heatmap.joints_in_crop(keypoints, size)
    np.testing.assert_allclose(made.xy, recorded["out.joints"][..., :2], atol=2e-5)
    np.testing.assert_array_equal(made.visible, recorded["out.joints_mask"][..., 0] > 0)
    box = crops.dpmesh_boxes(keypoints, size)
    np.testing.assert_allclose(np.c_[box[:, :2], box[:, 2:] - box[:, :2]], recorded["out.bbox"], rtol=1e-5, atol=1e-4)
    crowd = heatmap.dpmesh_keypoints(recorded["hhrnet_coco"], joint_sets.SETS["coco17"])
    made = heatmap.joints_in_crop(crowd, size[:2])
    np.testing.assert_allclose(made.xy, recorded["out.crowd_joints"][:2, :, :2], atol=2e-5)
    np.testing.assert_array_equal(made.visible, recorded["out.crowd_joints_mask"][:2, :, 0] > 0)


def test_maps_are_gaussians_where_the_crop_puts_the_joints(tmp_path: Path) -> None:
    table = detections(people(5))
    path = heatmaps.run(table, tmp_path / "h.h5")
    assert isinstance(path, Path)
    with open_artefact(path, "heatmaps") as made:
        value, xy, mask = (made.read(f"heatmaps/{n}") for n in ("value", "xy", "mask"))
        assert value.shape == (5, 30, 32, 32) and made.group_attrs("heatmaps")["sigma"] == 2.5
        names = made.group_attrs("heatmaps")["joints"]
        assert names == list(joint_sets.SETS["dpmesh30"])
        in_picture = crops.apply(made.read("heatmaps/crop").astype(float), table.read("keypoints/xy").astype(float))
    nose = names.index("nose")
    np.testing.assert_allclose(xy[:, nose], in_picture[:, 0], atol=1e-4)
    assert not value[mask == 0].any() and (value[mask == 1].max((1, 2)) > 0.9).all()
    assert mask[:, names.index("pelvis")].any() and not mask[:, names.index("head_top")].any()
    y, x = np.mgrid[:32, :32]
    expected = np.exp(-((x - xy[2, nose, 0]) ** 2 + (y - xy[2, nose, 1]) ** 2) / (2 * 2.5**2)) * mask[2, nose]
    np.testing.assert_allclose(value[2, nose], expected, atol=1e-3)


@pytest.mark.parametrize("joint_set", ["body25", "openpose18", "smpl24", "h36m17", "blazepose33"])
def test_any_joint_set_is_taken_by_name(joint_set: str) -> None:
    keypoints = people(2, len(joint_sets.SETS[joint_set]))
    made = heatmaps.run(detections(keypoints, joint_set), None)
    mask = made.read("heatmaps/mask")
    knee = joint_sets.SETS["dpmesh30"].index("left_knee")
    np.testing.assert_allclose(
        made.read("heatmaps/xy")[:, knee],
        crops.apply(
            made.read("heatmaps/crop").astype(float), keypoints[:, [joint_sets.SETS[joint_set].index("left_knee")], :2]
        )[:, 0],
        atol=1e-3,
    )
    assert mask[:, knee].all()


def test_unseen_people_fail_with_a_reason_and_the_others_go_on() -> None:
    keypoints = people(4)
    keypoints[1, :, 2] = 0
    keypoints[2] = np.nan
    keypoints[3, 5:] = [np.nan, np.nan, 0]
    made = heatmaps.run(detections(keypoints), None)
    assert made.rows["status"].tolist() == [OK, FAILED, FAILED, OK]
    assert "no keypoint" in made.rows["error"][1]
    value = made.read("heatmaps/value")
    assert np.isnan(value[1]).all() and np.isfinite(value[3]).all()


def test_batch_size_and_parts_change_nothing(tmp_path: Path) -> None:
    table = detections(people(300))
    whole = heatmaps.run(table, None)
    for batch in (1, 7, 64):
        made = heatmaps.run(table, None, run=RunOptions(batch_size=batch))
        for name in whole.columns():
            np.testing.assert_array_equal(made.read(name), whole.read(name))


def test_nobody() -> None:
    made = heatmaps.run(detections(people(0)), None)
    assert made.n_rows == 0 and made.shape("heatmaps/value") == (0, 30, 32, 32)


def test_other_sets_sizes_and_bad_settings() -> None:
    params = HeatmapsParams(joint_set="coco17", size=64, sigma=4.0)
    assert heatmaps.run(detections(people(2)), None, params).shape("heatmaps/value") == (2, 17, 64, 64)
    with pytest.raises(UsageError):
        heatmaps.run(detections(people(1)), None, HeatmapsParams(sigma=0.0))
