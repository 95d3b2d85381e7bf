"""hmr recover: a body that falls on its keypoints, whoever stands beside it, from any joint set; who fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import recover
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK, SMPL_COLUMNS
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import RunOptions
from stages.errors import AssetError, UsageError
from stages.geometry import cameras
from stages.geometry.rotations import about, axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.models.base import PersonBatch, PersonModel
from stages.params import RecoverParams
from stages.smpl.body import Body, load_body
from tests.helpers.people import POSITION, SMPL, standing_people


def detections(keypoints: np.ndarray, names: tuple[str, ...] = joint_sets.get("coco17"), **rows: Any) -> Artefact:
    n, size = len(keypoints), np.array([[640, 480]])
    frames = {"name": ["nowhere.jpg"], "size": size, "K": cameras.default_K(size * 1.0)}
    attrs = {"joints": list(names), "joint_set": joint_sets.identify(names) or "own", "score_definition": "test"}
    return in_memory(
        "detections",
        frames=frames,
        rows={"frame": np.zeros(n, int), "box": np.tile([0.0, 0, 640, 480], (n, 1)), **rows},
        columns={"keypoints/xy": keypoints[..., :2], "keypoints/score": keypoints[..., 2]},
        group_attrs={"keypoints": attrs},
    )


def recovered(table: Artefact, **given: Any) -> Artefact:
    made = recover.run(table, None, **given)
    assert isinstance(made, Artefact)
    return made


def posed(made: Artefact, joint_set: str) -> np.ndarray:
    """Joints of a set from the stored SMPL columns: what `body(**row)` gives."""
    pose = np.concatenate([made.read("smpl/global_orient")[:, None], made.read("smpl/body_pose")], 1)
    betas, transl = (torch.from_numpy(made.read(f"smpl/{name}")) for name in ("betas", "transl"))
    return load_body("embedded").joints(axis_angle_to_matrix(torch.from_numpy(pose)), betas, transl, joint_set).numpy()


def test_the_body_falls_on_its_keypoints_and_near_the_truth() -> None:
    keypoints, truth = standing_people(40)
    made = recovered(detections(keypoints))
    assert (made.rows["status"] == OK).all() and made.kind == "meshes"
    np.testing.assert_allclose(posed(made, "smpl24"), made.read("joints/xyz"), atol=2e-4)
    drawn = cameras.project(posed(made, "coco17"), made.frames["K"][made.rows["frame"]])
    height = np.ptp(keypoints[..., 1], axis=1)[:, None]
    assert (np.linalg.norm(drawn - keypoints[..., :2], axis=-1) / height).mean() < 0.02
    xyz = made.read("joints/xyz")
    off = (xyz - xyz[:, :1]) - (truth - truth[:, :1])
    assert np.linalg.norm(off, axis=-1).mean() < 0.09
    assert abs(np.median(xyz[:, 0, 2]) - POSITION[2]) < 0.5
    confidence = made.read("joints/confidence")
    assert confidence.min() >= 0 and confidence.max() <= 1 and made.group_attrs("joints")["joints"] == list(SMPL)
    assert made.group_attrs("smpl")["body_model"] == "embedded"


def test_a_person_elsewhere_in_the_picture_has_the_same_pose() -> None:
    """Seen under the same angle, that is: the person is turned with the ray."""
    keypoints, _ = standing_people(6)
    K = cameras.default_K(np.array([[640.0, 480.0]]))[0]
    turn = about("y", torch.tensor(0.2)).numpy()
    rays = np.linalg.inv(K) @ np.concatenate([keypoints[..., :2], np.ones((6, 17, 1))], -1).transpose(0, 2, 1)
    moved = K @ turn @ rays
    shifted = keypoints.copy()
    shifted[..., :2] = (moved[:, :2] / moved[:, 2:]).transpose(0, 2, 1)
    a, b = (recovered(detections(k)).read("joints/xyz") for k in (keypoints, shifted))
    assert np.abs(shifted - keypoints).max() > 50
    off = (b - b[:, :1]) - ((a - a[:, :1]) @ turn.T)
    assert np.linalg.norm(off, axis=-1).mean() < 0.02


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_and_shards_do_not_change_a_bit(tmp_path: Path, batch: int) -> None:
    table = detections(standing_people(33)[0])
    whole = recovered(table)
    made = recovered(table, run=RunOptions(batch_size=batch))
    for name in whole.columns():
        np.testing.assert_array_equal(made.read(name), whole.read(name), err_msg=name)


def test_shards_and_resuming_give_the_same_file(tmp_path: Path) -> None:
    table = detections(standing_people(515)[0])
    out = tmp_path / "m.h5"
    for shard in range(3):
        recover.run(table, out, run=RunOptions(shard=(shard, 3)))
    if not out.exists():
        recover.run(table, out)
    whole = recovered(table)
    with open_artefact(out, "meshes") as made:
        for name in whole.columns():
            np.testing.assert_array_equal(made.read(name), whole.read(name), err_msg=name)
        assert made.attrs["model"]["name"] == "embedded" and len(made.attrs["model"]["sha256"]) == 64


@pytest.mark.parametrize("joint_set", ["body25", "openpose18", "smpl24", "dpmesh30", "h36m17", "lsp14"])
def test_any_joint_set(joint_set: str) -> None:
    keypoints, truth = standing_people(12, joint_set)
    made = recovered(detections(keypoints, joint_sets.get(joint_set)))
    assert (made.rows["status"] == OK).all()
    xyz = made.read("joints/xyz")
    off = np.linalg.norm((xyz - xyz[:, :1]) - (truth - truth[:, :1]), axis=-1)
    assert off.mean() < 0.12


def test_unseen_joints_get_a_plausible_pose_and_less_confidence() -> None:
    keypoints, _ = standing_people(30)
    coco = joint_sets.get("coco17")
    legs = [i for i, name in enumerate(coco) if name.endswith(("knee", "ankle"))]
    cut = keypoints.copy()
    cut[:, legs] = np.nan
    full, half = (recovered(detections(k)) for k in (keypoints, cut))
    assert (half.rows["status"] == OK).all()
    below = [SMPL.index(name) for name in ("left_knee", "right_knee", "left_ankle", "right_ankle")]
    confidence = [made.read("joints/confidence")[:, below].mean() for made in (full, half)]
    assert confidence[1] < confidence[0] - 0.05
    xyz = half.read("joints/xyz")
    length = np.linalg.norm(xyz[:, SMPL.index("left_ankle")] - xyz[:, SMPL.index("left_hip")], axis=-1)
    assert ((length > 0.3) & (length < 1.1)).all()


def test_people_who_cannot_be_recovered_keep_their_row() -> None:
    keypoints, _ = standing_people(6)
    keypoints[1, 4:, 2] = 0  # four left
    keypoints[2, 5:, 2] = 0  # five left
    keypoints[3, :, :2] = 100.0  # all in one place
    keypoints[4, :, :2] = np.nan
    made = recovered(detections(keypoints))
    np.testing.assert_array_equal(made.rows["status"], [OK, FAILED, OK, FAILED, FAILED, OK])
    assert made.rows["error"][1] == "4 keypoints with a score above 0.05; at least 5 are needed"
    assert "one place" in made.rows["error"][3] and made.rows["error"][4].startswith("0 keypoints")
    assert (
        np.isnan(made.read("smpl/transl")[[1, 3, 4]]).all() and np.isfinite(made.read("smpl/transl")[[0, 2, 5]]).all()
    )
    alone = recovered(detections(keypoints[[5]]))
    np.testing.assert_array_equal(alone.read("smpl/body_pose")[0], made.read("smpl/body_pose")[5])


def test_nobody_is_a_result(tmp_path: Path) -> None:
    out = recover.run(detections(np.zeros((0, 17, 3))), tmp_path / "none.h5")
    assert isinstance(out, Path)
    with open_artefact(out, "meshes") as made:
        assert made.n_rows == 0 and made.read("smpl/body_pose").shape == (0, 23, 3)


class Constant(PersonModel):
    """A recoverer of one's own: everybody stands one metre ahead; needs no picture and no weights."""

    name, licence, batch_size, columns = "constant", "none", 5, SMPL_COLUMNS
    group_attrs = {"smpl": {"body_model": "embedded", "gender": "neutral"}}  # noqa: RUF012

    @classmethod
    def load(cls, checkpoint: Any, *, device: str, body: Body | None) -> Constant:
        return cls()

    def needs_images(self, available: frozenset[str]) -> bool:
        return False

    def __call__(self, people: PersonBatch) -> dict[str, Any]:
        sizes = {c.name: np.zeros((len(people), *map(int, c.shape[1:]))) for c in self.columns}
        sizes["smpl/transl"][:, 2] = 1.0
        return sizes


class Unfinished(PersonModel):
    @classmethod
    def load(cls, checkpoint: Any, *, device: str, body: Body | None) -> PersonModel:
        raise AssertionError("is not called")


class Nameless(Constant):
    name = ""


def test_a_recoverer_of_ones_own() -> None:
    table = detections(standing_people(12)[0])
    made = recovered(table, params=RecoverParams(model=f"{__name__}:Constant"))
    np.testing.assert_array_equal(made.read("smpl/transl"), np.tile([0, 0, 1], (12, 1)))
    assert not made.has("joints/xyz")
    with pytest.raises(UsageError, match="does not define __call__"):
        recovered(table, params=RecoverParams(model=f"{__name__}:Unfinished"))
    with pytest.raises(UsageError, match="without a name or columns"):
        recovered(table, params=RecoverParams(model=f"{__name__}:Nameless"))


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    table = detections(standing_people(3)[0])
    with pytest.raises(UsageError, match="no model 'nobody'"):
        recovered(table, params=RecoverParams(model="nobody"))
    with pytest.raises(AssetError, match="no checkpoint at"):
        recovered(table, ckpt=tmp_path / "absent.safetensors")
    with pytest.raises(AssetError, match="no body model"):
        recovered(table, params=RecoverParams(body="absent"))
    maps = in_memory(
        "heatmaps",
        frames=table.frames,
        rows=table.rows,
        columns={"heatmaps/value": np.zeros((3, 17, 4, 4), "f2"), "heatmaps/crop": np.zeros((3, 2, 3), "f4")},
        group_attrs={"heatmaps": {"joints": list(joint_sets.get("coco17")), "sigma": 1.0}},
    )
    with pytest.raises(UsageError, match="does not use heatmaps"):
        recovered(table, heatmaps=maps)


def test_a_body_of_another_topology_is_refused() -> None:
    from stages.models.embedded import EmbeddedRecoverer

    own = load_body("embedded")
    other = Body.from_arrays(
        own.v_template, own.shapedirs, None, own.J_regressor, own.weights, own.parents, own.faces, topology="smpl"
    )
    with pytest.raises(AssetError, match="trained for the body 'hmr-body-1'"):
        EmbeddedRecoverer.load(None, body=other)
