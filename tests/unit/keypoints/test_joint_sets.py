"""Joint sets: names, mirrors, bones and conversion by name."""

import numpy as np
import pytest

from stages.errors import InputError
from stages.keypoints import joint_sets


@pytest.mark.parametrize("name", list(joint_sets.SETS))
def test_sets_are_whole(name):
    names = joint_sets.get(name)
    digits = int("".join(c for c in name if c.isdigit())[-2:])
    assert len(names) == len(set(names)) == digits
    flip = joint_sets.flip(names)
    assert (flip >= 0).all() and (flip[flip] == np.arange(len(names))).all()
    assert all((joint_sets.side(names[i]) == "middle") == (flip[i] == i) for i in range(len(names)))


@pytest.mark.parametrize("name", list(joint_sets.SETS))
def test_bones_connect_limbs_and_mirror(name):
    names, bones = joint_sets.get(name), joint_sets.bones(joint_sets.get(name))
    flip = joint_sets.flip(names)
    lines = {frozenset(b) for b in bones}
    assert len(lines) == len(bones)
    assert {frozenset((flip[a], flip[b])) for a, b in bones} == lines
    for limb in ("shoulder-elbow", "elbow-wrist", "hip-knee", "knee-ankle"):
        ends = ["left_" + part for part in limb.split("-")]
        if set(ends) <= set(names):
            assert frozenset(names.index(end) for end in ends) in lines


def test_smpl_tree():
    parents = joint_sets.SMPL_PARENTS
    assert len(parents) == 24 and all(p < j for j, p in enumerate(parents))
    names = joint_sets.SETS["smpl24"]
    assert names[parents[names.index("left_hand")]] == "left_wrist"
    assert names[parents[names.index("right_hip")]] == "pelvis"


def test_index_marks_the_absent():
    assert joint_sets.index(("a", "b"), ("b", "c", "a")).tolist() == [1, -1, 0]


def test_identify_and_unknown_set():
    assert joint_sets.identify(joint_sets.SETS["body25"]) == "body25"
    assert joint_sets.identify(("nose",)) is None
    with pytest.raises(InputError) as error:
        joint_sets.get("coco18")
    assert "coco17" in error.value.hint


def test_convert_by_name_fills_neck_and_mid_hip():
    names = joint_sets.SETS["coco17"]
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(1, 100, (3, 17, 3))
    keypoints[..., 2] = rng.uniform(0.2, 1, (3, 17))
    keypoints[1, names.index("left_shoulder"), 2] = 0
    out = joint_sets.convert(keypoints, names, "body25")
    to = joint_sets.SETS["body25"]
    assert np.array_equal(out[:, to.index("left_knee")], keypoints[:, names.index("left_knee")])
    a, b = keypoints[:, names.index("left_shoulder")], keypoints[:, names.index("right_shoulder")]
    neck = out[:, to.index("neck")]
    assert np.allclose(neck[0, :2], (a[0, :2] + b[0, :2]) / 2) and neck[0, 2] == min(a[0, 2], b[0, 2])
    assert neck[1, 2] == 0 and np.isnan(neck[1, :2]).all()
    hips = keypoints[:, [names.index("left_hip"), names.index("right_hip")]]
    assert np.allclose(out[:, to.index("mid_hip"), :2], hips[..., :2].mean(1))
    assert np.isnan(out[:, to.index("left_heel"), :2]).all() and (out[:, to.index("left_heel"), 2] == 0).all()


def test_convert_there_and_back_and_alias():
    names = joint_sets.SETS["body25"]
    keypoints = np.random.default_rng(1).uniform(0, 1, (2, 25, 3))
    back = joint_sets.convert(joint_sets.convert(keypoints, names, "coco17"), joint_sets.SETS["coco17"], "body25")
    shared = [i for i, n in enumerate(names) if n in joint_sets.SETS["coco17"]]
    assert np.array_equal(back[:, shared], keypoints[:, shared])
    pelvis = joint_sets.convert(keypoints, names, "h36m17")[:, 0]
    assert np.array_equal(pelvis, keypoints[:, names.index("mid_hip")])


def test_convert_refuses_another_number_of_joints():
    with pytest.raises(InputError):
        joint_sets.convert(np.zeros((1, 18, 3)), joint_sets.SETS["coco17"], "body25")


def test_convert_of_nobody():
    assert joint_sets.convert(np.zeros((0, 17, 3)), joint_sets.SETS["coco17"], "smpl24").shape == (0, 24, 3)
