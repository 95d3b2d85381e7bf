"""hmr view: bodies land where they project, reports hold everything, failed rows and nobody are fine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import view
from stages.artefacts.kinds import FAILED
from stages.engine.job import RunOptions
from stages.errors import AssetError, InputError, UsageError
from stages.geometry.cameras import project
from stages.media.frames import open_frame
from stages.media.images import write_image
from stages.params import ViewParams
from stages.smpl.body import load_body
from stages.visualization.viewer import Viewer
from tests.helpers.people import images_with_people

CPU = RunOptions(device="cpu")
STILL = ViewParams(supersample=1, report=False)


def test_body_of_the_row_reprojects_onto_the_drawn_overlay(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 1)
    viewer = Viewer(meshes, detections, STILL)
    scene = viewer.frame_view(0)
    drawn = (viewer.overlay(scene) != scene.image).any(-1)
    row = {k: torch.from_numpy(meshes.read(f"smpl/{k}")) for k in ("global_orient", "body_pose", "betas", "transl")}
    uv = project(load_body()(**row).vertices.detach().numpy()[0].astype(float), meshes.frames["K"][0].astype(float))
    y, x = np.nonzero(drawn)
    for low, high, at in ((x.min(), x.max(), uv[:, 0]), (y.min(), y.max(), uv[:, 1])):
        assert abs(low - at.min()) <= 1.5 and abs(high - at.max()) <= 1.5
    near = sum(np.roll(drawn, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) > 0
    at = np.round(uv).astype(int)
    assert near[at[:, 1], at[:, 0]].all() and drawn[at[:, 1], at[:, 0]].mean() > 0.9  # the outline may round outside


def test_files_of_photos(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 2, frames=2)
    meshes.frames["status"][1] = FAILED
    params = ViewParams(side=True, turn=True, style="both", supersample=1)
    made = view.run(meshes, detections, tmp_path / "out", params, CPU)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(["picture 0_overlay.jpg", "picture 0_side.jpg", "picture 0_turn.mp4", "report.html"])
    assert open_frame(made["pictures"][0]).shape == (240, 320, 3)
    assert open_frame(tmp_path / "out" / "picture 0_side.jpg").shape == (240, 320 * 3 + 8, 3)
    assert (tmp_path / "out" / "picture 0_turn.mp4").stat().st_size > 10_000


def test_report_is_one_file_and_tells_the_truth(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 2, frames=2)
    meshes.rows["status"][3] = FAILED
    meshes.rows["error"][3] = "<b>no keypoints</b>"
    view.run(meshes, detections, tmp_path / "r.html", ViewParams(supersample=1), CPU)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["r.html"]
    page = (tmp_path / "r.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "http" not in page
    assert page.count('class="card"') == 2 and page.count("data:image/jpeg") == 2 * 4
    assert "&lt;b&gt;no keypoints" in page and "<b>no keypoints" not in page
    fits = [float(f) for f in re.findall(r"<td>([\d.]+) %</td>", page)]
    assert len(fits) == 3 and max(fits) < 0.5  # the keypoints are the bodies' own
    assert page.count("4.0 m") == 3 and page.count("0.75") >= 3
    assert meshes.fingerprint in page


def test_colours_stay_with_the_track(tmp_path: Path) -> None:
    meshes, _ = images_with_people(tmp_path, 2, frames=2)
    meshes.rows["track"][:] = [4, 9, 9, 4]
    viewer = Viewer(meshes, None, STILL)
    np.testing.assert_array_equal(viewer.colour[0], viewer.colour[3])
    assert (viewer.colour[0] != viewer.colour[1]).any()


def test_video_in_video_out(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from stages.media.frames import list_frames
    from stages.media.video import write_video

    rng = np.random.default_rng(0)
    write_video(tmp_path / "clip.mp4", (rng.integers(0, 90, (240, 320, 3)).astype(np.uint8) for _ in range(5)), fps=10)
    listing = list_frames([tmp_path / "clip.mp4"])
    meshes, _ = images_with_people(tmp_path, 1, frames=5)
    meshes.frames["name"][:] = listing.name
    meshes.frames["source"][:] = 0
    meshes.frames["time"][:] = listing.time
    meshes.frames["file"][:] = listing.files[0].fingerprint
    meshes.frames["status"][2] = FAILED
    made = view.run(meshes, None, tmp_path / "out", ViewParams(supersample=1), CPU)
    assert made["pictures"] == [] and [Path(v).name for v in made["videos"]] == ["clip_overlay.mp4"]
    with av.open(made["videos"][0]) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == 5 and float(container.streams.video[0].average_rate) == pytest.approx(10)
    assert frames[0][120, 160, 2] > 90  # a blue body in the middle
    assert "data:video/mp4" in (tmp_path / "out" / "report.html").read_text()


def test_nobody_and_no_pictures(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 0)
    made = view.run(meshes, detections, tmp_path / "a", ViewParams(), CPU)
    assert len(made["pictures"]) == 1 and "Nobody was found" in Path(made["report"]).read_text()
    np.testing.assert_allclose(open_frame(made["pictures"][0]).mean(), 45, atol=3)
    none, _ = images_with_people(tmp_path, 0, frames=0)
    made = view.run(none, None, tmp_path / "b", ViewParams(turn=True, side=True), CPU)
    assert made["pictures"] == [] and "No images" in Path(made["report"]).read_text()


def test_skeletons_alone_need_no_body(tmp_path: Path) -> None:
    _, detections = images_with_people(tmp_path, 2)
    viewer = Viewer(None, detections, ViewParams(style="skeleton", labels=False))
    scene = viewer.frame_view(0)
    drawn = (viewer.overlay(scene) != scene.image).any(-1)
    xy = np.round(detections.read("keypoints/xy")).astype(int).reshape(-1, 2)
    assert drawn[xy[:, 1], xy[:, 0]].all() and drawn.mean() < 0.2


def test_large_photos_are_reduced_and_still_fit(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 1)
    big = Viewer(meshes, detections, STILL).frame_view(0)
    small = Viewer(meshes, detections, ViewParams(supersample=1, max_side=160)).frame_view(0)
    assert small.size == (160, 120)
    a, b = (Viewer(meshes, detections, STILL).overlay(s) != s.image for s in (big, small))
    low, high = (np.array([m.any(-1).nonzero()[k].mean() for k in (0, 1)]) for m in (b, a))
    np.testing.assert_allclose((high + 0.5) / 2 - 0.5, low, atol=0.6)


def test_changed_or_missing_photos_are_refused_and_blank_needs_none(tmp_path: Path) -> None:
    meshes, detections = images_with_people(tmp_path, 1)
    photo = tmp_path / "shots" / "picture 0.png"
    write_image(photo, np.zeros((240, 320, 3), np.uint8))
    with pytest.raises(InputError, match="has changed"):
        view.run(meshes, detections, tmp_path / "out", STILL, CPU)
    photo.unlink()
    with pytest.raises(InputError, match="is not below"):
        view.run(meshes, detections, tmp_path / "out", STILL, CPU)
    assert view.run(meshes, detections, tmp_path / "out", ViewParams(blank=True, supersample=1), CPU)["pictures"]


def test_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    meshes, _ = images_with_people(tmp_path, 0)
    for params in (ViewParams(style="comic"), ViewParams(opacity=2.0), ViewParams(supersample=0)):
        with pytest.raises(UsageError):
            view.run(meshes, None, tmp_path / "x", params, CPU)
    with pytest.raises(UsageError):
        view.run(meshes, None, tmp_path / "x", ViewParams(), RunOptions(device="cpu", shard=(0, 2)))
    with pytest.raises(AssetError):
        view.run(meshes, None, tmp_path / "x", ViewParams(body="no-such-body"), CPU)


def test_same_base_names_stay_apart() -> None:
    from stages.loaders.bodies import stems

    names = ["a/x.jpg", "b/x.jpg", "b/X.png", "-odd\n*.jpg", "v.mp4#000001", "ü" * 200 + ".jpg", "..jpg"]
    made = stems(names)
    assert len({m.casefold() for m in made}) == len(names) and made[:2] == ["x", "x-2"]
    assert all(0 < len(m) <= 90 and "/" not in m and "\n" not in m and not m.startswith("-") for m in made)


def test_rerun_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rerun", None)
    meshes, _ = images_with_people(tmp_path, 1)
    with pytest.raises(AssetError) as error:
        view.run(meshes, None, tmp_path / "out", ViewParams(rerun=True), CPU)
    assert "hmr-toolchain[rerun]" in error.value.hint and not (tmp_path / "out").exists()
