"""PCT as a detector: the way from box to crop and back, files that are not its own, a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.errors import AssetError
from stages.files.checkpoints import write_checkpoint
from stages.models.detectors.base import Detector
from stages.models.detectors.pct import MEAN, STD, PctPose
from stages.models.pct import network as pct
from stages.models.tables import DETECTORS


class Brightest:
    """Says that every joint is at the brightest pixel of the crop."""

    def pose(self, images: torch.Tensor, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        grey = (images.permute(0, 2, 3, 1) * torch.from_numpy(STD) + torch.from_numpy(MEAN)).sum(-1)
        at = grey.flatten(1).argmax(1)
        xy = torch.stack([at % 256, at // 256], -1).float()
        return xy[:, None].expand(-1, 17, -1), torch.full((len(images),), 0.7)


def test_joints_come_back_to_the_picture(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not read here")
    detector = PctPose.load(file, device="cpu")
    assert isinstance(detector, Detector) and DETECTORS["pct"].endswith(type(detector).__name__)
    detector._network = Brightest()  # type: ignore[assignment]
    image = np.zeros((200, 300, 3), np.uint8)
    image[95:106, 195:206] = 255 - 20 * np.abs(np.arange(-5, 6))[:, None, None] - 2 * np.abs(np.arange(-5, 6))[:, None]
    empty = np.zeros((50, 50, 3), np.uint8)
    boxes = [np.array([[150.0, 60, 240, 150], [np.nan] * 4, [180, 70, 220, 180]]), np.zeros((0, 4))]
    found = detector([image, empty], boxes)
    assert [len(f) for f in found] == [3, 0]
    assert np.abs(found[0].keypoints[[0, 2], :, :2] - [200, 100]).max() < 0.6
    assert np.allclose(found[0].keypoints[[0, 2], :, 2], 0.7)
    assert np.isnan(found[0].keypoints[1]).all()
    with pytest.raises(AssetError, match="finds no people"):
        detector([image])


def test_a_file_that_is_not_there_or_not_pct(tmp_path: Path) -> None:
    with pytest.raises(AssetError):
        PctPose.load(tmp_path / "nothing.pth", device="cpu")
    file = write_checkpoint(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {})
    with pytest.raises(AssetError, match="no pose model of PCT"):
        PctPose.load(file, device="cpu")([np.zeros((9, 9, 3), np.uint8)], [np.array([[0.0, 0, 8, 8]])])


@pytest.mark.slow
def test_its_own_file_is_read_and_flip_is_an_average(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = pct.PCT(32, (1, 1, 1, 1)).eval()
    tensors = {f"state_dict.{n}": t for n, t in network.state_dict().items()}
    file = write_checkpoint(tmp_path / "pct.safetensors", tensors, {})
    detector = PctPose.load(file, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    box = np.array([[20.0, 20, 220, 240]])
    both = detector([image], [box])[0].keypoints
    detector.flip = False
    plain = detector([image], [box])[0].keypoints
    assert np.isfinite(both).all() and np.abs(both - plain)[..., :2].max() > 1e-3
