"""The embedded detector: its networks against an independent walk over the published graphs, and what uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.files.checkpoints import read_checkpoint
from stages.geometry import crops
from stages.keypoints.joint_sets import SETS
from stages.keypoints.oks import iou
from stages.media.frames import open_frame
from stages.models.detectors import movenet, nanodet
from stages.models.detectors.convolution import Conv2d, depthwise, for_inference
from stages.models.detectors.movenet import Candidates, MoveNetDetector, distinct, hidden, paint_over
from stages.models.detectors.movenet_network import HEADS, MoveNet, decode
from stages.models.detectors.nanodet import letterbox
from stages.models.detectors.nanodet_network import BINS, NanoDet, cells
from tests.helpers import fixtures

COCO = SETS["coco17"]


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(fixtures.find("detector/reference.npz")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def detector() -> MoveNetDetector:
    return MoveNetDetector.load(None, device="cpu")


def network(kind: type, path: object, packed: bool) -> torch.nn.Module:
    made = kind()
    made.load_state_dict({k: v.float() for k, v in read_checkpoint(path).tensors.items()})  # type: ignore[arg-type]
    return for_inference(made, "cpu") if packed else made.eval()


def image_of(reference: dict[str, np.ndarray], name: str) -> np.ndarray:
    return reference[f"{name}_image"].repeat(4, 0).repeat(4, 1)


# ---- the networks against the walk in float64 (tests/helpers/tfjs_graph.py)


@pytest.mark.parametrize("packed", [False, True])
def test_thunder_is_the_published_graph(reference: dict[str, np.ndarray], packed: bool) -> None:
    x = torch.from_numpy(image_of(reference, "movenet")).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        heads = network(MoveNet, movenet.WEIGHTS, packed)(x.contiguous(memory_format=torch.channels_last))
        # With the whole crop as the box nothing is outside, and the box's middle is the crop's: Google's own rule.
        xy, score = decode(heads, torch.tensor([[0.0, 0, 64, 64]]))
    for name in HEADS:
        ours = heads[name][0, :, ::8, 3::8].numpy()
        np.testing.assert_allclose(ours, reference[f"movenet_{name}"], atol=2e-3 * np.ptp(ours), err_msg=name)
    joints = reference["movenet_joints"]  # y, x, score
    np.testing.assert_allclose(xy[0].numpy() / 64, joints[:, 1::-1], atol=1e-3)
    np.testing.assert_allclose(score[0].numpy(), joints[:, 2], atol=1e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_nanodet_is_the_published_graph(reference: dict[str, np.ndarray], packed: bool) -> None:
    x = torch.from_numpy(image_of(reference, "nanodet")).flip(-1).float()
    x = (x - torch.tensor(nanodet.MEAN)) / torch.tensor(nanodet.STD)
    with torch.inference_mode():
        made = network(NanoDet, nanodet.WEIGHTS, packed)
        score, sides = made(x.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last))
    assert reference["nanodet_score"].max() > 0.25  # there is somebody, in coarse pixels
    np.testing.assert_allclose(score[0].numpy(), reference["nanodet_score"], atol=1e-4)
    bins = reference["nanodet_bins"].reshape(-1, 4, BINS)
    share = np.exp(bins) / np.exp(bins).sum(-1, keepdims=True)
    stride = np.repeat([8, 16, 32], [52**2, 26**2, 13**2])[::7, None]
    np.testing.assert_allclose(sides[0, ::7].numpy(), share @ np.arange(BINS) * stride, atol=2e-3)


def test_packed_convolutions_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    for layer in (Conv2d(8, 16, activation="relu6"), Conv2d(8, 8, 3, 2, activation="leaky_relu"), depthwise(8, 2)):
        x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            plain = layer(x)
            torch.testing.assert_close(for_inference(layer, "cpu")(x), plain, atol=1e-5, rtol=1e-5)


# ---- NanoDet's boxes


def test_cells_are_centres_of_squares() -> None:
    centers = cells(64, 96)
    assert len(centers) == 8 * 12 + 4 * 6 + 2 * 3
    np.testing.assert_array_equal(centers[[0, 1, 12, 96, -1]], [[4, 4], [12, 4], [4, 12], [8, 8], [80, 48]])


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1600, 900), (33, 20), (5000, 40), (640, 640)])
def test_boxes_come_back_through_the_letterbox(size: tuple[int, int]) -> None:
    affine, (width, height) = letterbox(*size, 512)
    assert width % 32 == height % 32 == 0 and max(width, height) == 512
    assert min(size) * 512 / max(size) <= min(width, height) < min(size) * 512 / max(size) + 32
    box = np.array([[0.0, 0, size[0] - 1, size[1] - 1], [size[0] / 4, size[1] / 4, size[0] / 2, size[1] / 2]])
    there = crops.apply(affine[None], box.reshape(1, -1, 2)).reshape(-1, 4) + 0.5  # from the corner, as cells count
    np.testing.assert_allclose(nanodet.to_image(there, affine, size), box, atol=1e-9)


def test_of_overlapping_boxes_the_better_stays() -> None:
    box = np.array([[0.0, 0, 100, 100], [0, 0, 100, 90], [0, 0, 100, 52], [300, 300, 400, 400]])
    kept, score = nanodet.distinct(box, np.array([0.5, 0.9, 0.7, 0.3]))  # IoU with the second: 0.9, 0.58, 0
    np.testing.assert_array_equal(score, [0.9, 0.7, 0.3])
    np.testing.assert_array_equal(kept, box[1:])


def test_a_person_who_is_missed_at_one_size_is_found_at_the_other() -> None:
    """The man at the left of this photo: 0.18 at 640 px, 0.85 at 512."""
    levels = [crops.halvings(open_frame(fixtures.find("photos/free_unannotated/flickr_secdef_17790319373.jpg")))]
    box, score = nanodet.PersonBoxes("cpu")(levels)[0]
    him = iou(box, np.array([[188.0, 191, 272, 447]]))[:, 0]
    assert him.max() > 0.8 and score[him.argmax()] > 0.8
    assert (np.diff(score) <= 0).all() and (score >= 0.3).all()


# ---- decoding, by hand


def empty_heads(n: int = 1) -> dict[str, torch.Tensor]:
    heads = {name: torch.zeros(n, count, 64, 64) for name, count in HEADS.items()}
    heads["heatmap"] -= 9
    heads["center"] -= 9
    return heads


def test_a_joint_is_the_peak_near_where_the_centre_expects_it() -> None:
    heads = empty_heads()
    heads["center"][0, 0, 30, 20] = 5
    heads["regress"][0, 2 * 3, 30, 20], heads["regress"][0, 2 * 3 + 1, 30, 20] = -10, 6  # joint 3: y 20, x 26
    heads["heatmap"][0, 3, 21, 27] = 0.0  # a half, near
    heads["heatmap"][0, 3, 50, 50] = 3.0  # higher, far
    heads["offset"][0, 2 * 3, 21, 27], heads["offset"][0, 2 * 3 + 1, 21, 27] = 0.25, 0.75
    xy, score = decode(heads, torch.tensor([[8.0, 8, 40, 56]]))
    np.testing.assert_allclose(xy[0, 3], [27.75, 21.25])
    assert score[0, 3] == 0.5


def test_the_box_says_whose_centre_and_joints_count() -> None:
    heads = empty_heads(2)
    for x, logit in ((12, 1.0), (50, 3.0)):  # two people in both crops, the right one clearer
        heads["center"][:, 0, 32, x] = logit
        heads["heatmap"][:, :, 32, x] = logit
    box = torch.tensor([[2.0, 4, 24, 60], [40, 4, 62, 60]])
    xy, _ = decode(heads, box)
    assert (xy[0, :, 0] == 12).all() and (xy[1, :, 0] == 50).all()
    heads["heatmap"][0, 0, 32, 34] = 3.0  # clearer than the own nose and not far, but not in the box
    heads["regress"][0, 1, 32, 12] = 12  # expected half way
    xy, _ = decode(heads, box)
    assert xy[0, 0, 0] == 12


# ---- who is one person, who is behind another


def people(*rows: tuple[list[float], float, float]) -> Candidates:
    """Of (box, box score, shift of the joints in px): all joints on a diagonal of the box, scores 0.8."""
    made = Candidates.of([(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))])
    steps = np.linspace(0.1, 0.9, 17)[:, None]
    made.xy = np.stack([b[:2] + steps * (b[2:] - b[:2]) + row[2] for b, row in zip(made.box, rows, strict=True)])
    made.score[:] = 0.8
    return made


def test_the_better_of_two_with_the_same_joints_stays() -> None:
    twice = people(([0, 0, 100, 200], 0.5, 0), ([2, 0, 102, 200], 0.9, -1), ([300, 0, 400, 200], 0.4, 0))
    np.testing.assert_array_equal(distinct(twice, np.arange(3), {}), [1, 2])
    assert hidden(twice, np.arange(3)) == {}  # nearly the same box: one person, found twice


def test_the_same_joints_in_another_box_are_somebody_behind() -> None:
    pair = people(([0, 0, 100, 200], 0.9, 0), ([60, 0, 180, 200], 0.7, 0), ([400, 0, 500, 200], 0.8, 0))
    pair.xy[1] = pair.xy[0]
    in_front = hidden(pair, np.arange(3))
    assert list(in_front) == [1] and in_front[1].tolist() == [0]
    np.testing.assert_array_equal(distinct(pair, np.arange(3), in_front), [0, 2])  # still the same joints: dropped
    pair.xy[1] += 60
    pair.score[1] = 1.0  # now the best of all, but only because others were painted over
    np.testing.assert_array_equal(distinct(pair, np.arange(3), in_front), [0, 2, 1])  # its own: kept, last


def test_the_unlikely_are_dropped() -> None:
    pair = people(([0, 0, 100, 200], 0.9, 0), ([300, 0, 400, 200], movenet.MIN_SCORE, 0))
    np.testing.assert_array_equal(distinct(pair, np.arange(2), {}), [0])


def test_two_passes_are_averaged_where_they_agree() -> None:
    one = people(([0, 0, 100, 200], 0.5, 0))
    first = one.xy.copy()
    second, score = first + 1, np.full((1, 17), 0.8)
    second[0, 0] += 150  # the nose is elsewhere, and weaker
    score[0, 0] = 0.3
    one.fuse(np.arange(1), second, score)
    np.testing.assert_allclose(one.xy[0, 1:], first[0, 1:] + 0.5, atol=0.01)
    np.testing.assert_allclose(one.xy[0, 0], first[0, 0], atol=1e-3)
    np.testing.assert_allclose(one.score[0, :2], [0.4, 0.8], atol=0.01)
    assert 0.9 < one.agreement[0] < 16 / 17


def test_a_painted_limb_is_as_thick_as_it_should_be() -> None:
    view = np.zeros((100, 100, 3), np.float32)
    view[:50] = 200
    paint_over(view, np.array([[[20.0, 30], [60, 30]]]), np.array([5.0]))
    painted = (view == 100).all(-1)  # the mean color
    assert painted[26:35, 20:61].all() and painted[30, 16:65].all() and painted.sum() < 41 * 9 + 80


# ---- on photos


def test_others_in_the_batch_change_nothing(detector: MoveNetDetector) -> None:
    folder = fixtures.find("photos/free")
    images = [open_frame(folder / name) for name in ("000000000790.jpg", "000000000785.jpg")]
    together = detector([images[0], np.zeros((90, 120, 3), np.uint8), images[1]])
    assert len(together[1]) == 0 and len(together[0]) >= 4
    for image, found in zip(images, together[::2], strict=True):
        alone = detector([image])[0]
        for name in ("box", "score", "keypoints"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(found, name))


def test_a_mirrored_photo_gives_mirrored_people(detector: MoveNetDetector) -> None:
    """Joints of a left side stay on it: the second pass undoes its mirror, names included."""
    image = open_frame(fixtures.find("photos/free") / "000000000785.jpg")
    plain, mirrored = (each.take(np.arange(1)) for each in detector([image, image[:, ::-1]]))
    back = mirrored.keypoints[:, movenet.MIRROR]
    back[..., 0] = image.shape[1] - 1 - back[..., 0]
    side = (plain.box[0, 2:] - plain.box[0, :2]).max()
    assert np.median(np.linalg.norm(back - plain.keypoints, axis=-1)) < 0.03 * side


def test_the_mirrored_pass_sees_the_same_joints(detector: MoveNetDetector) -> None:
    levels = [crops.halvings(open_frame(fixtures.find("photos/free") / "000000000785.jpg"))]
    skier = Candidates.of([(detector._boxes(levels)[0][0][:1], np.ones(1))])
    plain, mirrored = (detector._see(levels, skier, np.arange(1), 1.25, mirror=m)[0][0] for m in (False, True))
    assert np.linalg.norm(plain - mirrored, axis=-1).max() < 0.06 * skier.longer(np.arange(1))


def test_whoever_is_in_front_is_painted_over(detector: MoveNetDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second box over half of the skier: he is found in both, so he is painted over in the crops of the other one."""
    image = open_frame(fixtures.find("photos/free") / "000000000785.jpg")
    him = detector([image])[0].take(np.arange(1))
    box, painted = him.box.repeat(2, 0), []
    box[1] += [0, 0.35 * (box[0, 3] - box[0, 1]), 0.1 * (box[0, 2] - box[0, 0]), 0]

    def record(view: np.ndarray, ends: np.ndarray, radius: np.ndarray) -> None:
        painted.append((ends, radius))

    monkeypatch.setattr(movenet, "paint_over", record)
    detector([image], [box])
    assert len(painted) == 2  # in both passes, of one of the two
    for (ends, radius), grow in zip(painted, (movenet.FIRST, movenet.SECOND), strict=True):
        scale = movenet.SIZE / grow / (box[1, 2:] - box[1, :2]).max()
        to_crop = (him.keypoints[0, :, :2] - (box[1, :2] + box[1, 2:]) / 2) * scale + (movenet.SIZE - 1) / 2
        expected = to_crop[np.array(movenet.LIMBS)]
        nearest = np.abs(ends[:, None] - expected[None]).max((-1, -2)).min(1)
        assert len(ends) > 8 and np.median(nearest) < 0.05 * movenet.SIZE
        np.testing.assert_allclose(radius, movenet.LIMB * (box[0, 2:] - box[0, :2]).max() * scale)


def test_given_boxes_are_kept_in_their_order(detector: MoveNetDetector) -> None:
    image = open_frame(fixtures.find("photos/free") / "000000000790.jpg")
    box = detector([image])[0].box[:3]
    bad = np.array([[np.nan] * 4, [50.0, 50, 50, 50]])
    given = np.concatenate([bad[:1], box[::-1], box[:1], bad[1:]])
    found = detector([image, image], [given, np.zeros((0, 4))])
    assert [len(each) for each in found] == [6, 0] and np.isnan(found[0].score).all()
    np.testing.assert_array_equal(found[0].box, given)
    assert np.isnan(found[0].keypoints[[0, -1]]).all() and np.isfinite(found[0].keypoints[1:-1]).all()


def test_nobody_in_an_empty_image(detector: MoveNetDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    for found in detector([np.zeros((480, 640, 3), np.uint8), noise, np.full((1, 1, 3), 255, np.uint8)]):
        assert not (found.score >= detector.min_score).any() and found.keypoints.shape[1:] == (17, 3)
