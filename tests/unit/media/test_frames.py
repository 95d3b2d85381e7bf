"""Pictures in: any mode to RGB, orientation, causes of failure, names, lists, finding them again."""

from __future__ import annotations

import io
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, K_DEFAULT, K_EXIF, OK
from stages.artefacts.table import in_memory
from stages.errors import InputError, UsageError
from stages.media.frames import FrameSource, frame_columns, list_frames, open_frame, read_frames
from stages.media.images import intrinsics, read_image, write_image
from stages.media.inputs import escape, unescape
from tests.helpers.bad_images import SCENE, bad_images
from tests.helpers.coded_video import frames_without_people

# How a camera stores the upright picture under each orientation (EXIF 2.32, table 6: where row 0 and column 0 are).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def png(path: Path, rgb: np.ndarray = SCENE, **options: object) -> Path:
    Image.fromarray(rgb).save(path, **options)
    return path


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_exif_orientation_gives_the_upright_picture(tmp_path: Path, turn: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[turn](SCENE)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    options = {"quality": 95} if suffix in ("jpg", "webp") else {}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    picture = read_image(tmp_path / f"a.{suffix}")
    assert picture.size == (80, 60)
    assert np.abs(picture.rgb[::59, ::79].astype(int) - SCENE[::59, ::79]).max() < 60


def test_every_mode_and_depth_becomes_rgb(tmp_path: Path) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (40, 1))
    image = Image.fromarray(SCENE)
    cases = {
        "l.png": Image.fromarray(grey),
        "i16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "f.tiff": Image.fromarray(grey.astype(np.float32) / 255),
        "cmyk.jpg": image.convert("CMYK"),
        "p.png": image.quantize(16),
        "p.gif": image.quantize(16),
        "one.png": image.convert("1"),
        "la.png": Image.fromarray(grey).convert("LA"),
        "ycbcr.jpg": image.convert("YCbCr"),
    }
    for name, each in cases.items():
        each.save(tmp_path / name)
        rgb = open_frame(tmp_path / name)
        assert rgb.dtype == np.uint8 and rgb.shape == (each.height, each.width, 3) and rgb.flags.c_contiguous, name
        if name in ("l.png", "i16.png", "la.png", "f.tiff"):
            assert np.abs(rgb.astype(int) - grey[:, :, None]).max() <= 1, name
        if name in ("cmyk.jpg", "p.png", "p.gif", "ycbcr.jpg"):
            assert np.abs(rgb[10, 10].astype(int) - SCENE[10, 10]).max() < 40, name


def test_alpha_lies_over_white_and_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:, 20:] = (255, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    rgb = open_frame(tmp_path / "a.png")
    assert rgb[0, 0].tolist() == [255, 255, 255] and rgb[0, 30].tolist() == [255, 127, 127]
    first, second = (Image.new("RGB", (40, 40), c) for c in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert open_frame(tmp_path / "a.gif")[5, 5].tolist() == [255, 0, 0]


def test_bad_pictures_are_failed_frames_with_their_cause(tmp_path: Path) -> None:
    words = bad_images(tmp_path)
    png(tmp_path / "good.png")
    listing = list_frames([tmp_path])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pictures = read_frames(listing, np.arange(len(listing)), workers=2)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100, f"{grown:.0f} MB"
    for name, picture in zip(listing.name, pictures, strict=True):
        if name == "good.png":
            assert np.array_equal(picture.rgb, SCENE)
        else:
            assert picture.rgb is None and words[name] in picture.error and "\n" not in picture.error, picture.error
            assert name in picture.error
    table = frame_columns(listing, np.arange(len(listing)), pictures)
    good = listing.name.index("good.png")
    assert table["status"].tolist() == [OK if i == good else FAILED for i in range(len(listing))]
    assert table["size"][good].tolist() == [80, 60] and np.isnan(table["K"][1 - good if good < 2 else 0]).all()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission_is_a_failed_frame(tmp_path: Path) -> None:
    png(tmp_path / "a.png").chmod(0)
    assert "ermission" in read_frames(list_frames([tmp_path]), [0])[0].error


def test_focal_length_from_exif(tmp_path: Path) -> None:
    def saved(name: str, tags: dict[int, float], size: tuple[int, int] = (600, 400)) -> Path:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif).update(tags)
        Image.new("RGB", size, "grey").save(tmp_path / name, exif=exif)
        return tmp_path / name

    base = ExifTags.Base
    film = read_image(saved("film.jpg", {base.FocalLengthIn35mmFilm: 50}))
    assert film.focal == pytest.approx(50 / np.hypot(36, 24) * np.hypot(600, 400), rel=1e-5)
    # a 5 mm lens and 200 pixels per mm of sensor; the picture may have been reduced to half since
    plane = {base.FocalLength: 5.0, base.FocalPlaneXResolution: 2000.0, base.FocalPlaneResolutionUnit: 3}
    assert read_image(saved("plane.jpg", plane)).focal == pytest.approx(1000)
    assert read_image(saved("half.jpg", plane | {base.ExifImageWidth: 1200})).focal == pytest.approx(500)
    assert read_image(saved("none.jpg", {})).focal is None
    assert read_image(saved("odd.jpg", {base.FocalLengthIn35mmFilm: 65535})).focal is None  # no such lens
    K, source = intrinsics((600, 400), 500.0)
    assert source == K_EXIF and K.tolist() == [[500, 0, 299.5], [0, 500, 199.5], [0, 0, 1]]
    K, source = intrinsics((600, 800))
    assert source == K_DEFAULT and K[0, 0] == K[1, 1] == 1000


def test_names_are_relative_sorted_by_number_and_distinct(tmp_path: Path) -> None:
    names = [
        "b/frame 10.png",
        "b/frame 9.png",
        "a/x.png",
        "c/x.png",
        "-dash.png",
        "new\nline.png",
        "ümlaut.png",
        "X.png",
        "x.png",
    ]
    names += ["n" * 251 + ".png", "back\\slash.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        png(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    listing = list_frames([tmp_path])
    assert sorted(listing.name) == sorted(escape(n) for n in names) and len(set(listing.name)) == len(names)
    assert listing.name.index("b/frame 9.png") < listing.name.index("b/frame 10.png")
    assert all(p.rgb is not None for p in read_frames(listing, range(len(listing))))
    # the same pictures by glob, in another order, and from another folder: the same list
    (tmp_path / "w").mkdir()
    here = os.getcwd()
    os.chdir(tmp_path / "w")
    try:
        assert list_frames(["../[!w]*/**/*.png", "..", "../X.png"]).name == listing.name
        assert list_frames([".."]).fingerprint == listing.fingerprint
    finally:
        os.chdir(here)


def test_names_that_are_not_utf8_survive_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    raw = os.fsencode(str(folder)) + b"/caf\xe9.png"
    with open(raw, "wb") as file:
        Image.fromarray(SCENE).save(file, "PNG")
    listing = list_frames([folder])
    assert listing.name == ["caf\\xe9.png"] and os.fsencode(unescape(listing.name[0])) == b"caf\xe9.png"
    out = frames_without_people(listing, tmp_path / "a.h5")
    with open_artefact(out) as artefact:
        assert artefact.frames["name"].tolist() == ["caf\\xe9.png"]
        assert np.array_equal(FrameSource(artefact)(0), SCENE)


@pytest.mark.parametrize("name", ["plain", "a\\b", "a\\\\x41", "\udce9\\x\udcff", "日本"])
def test_escape_round_trips(name: str) -> None:
    assert unescape(escape(name)) == name
    escape(name).encode("utf-8")


def test_lists_from_stdin_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b c.png", "d\ne.png"):
        png(tmp_path / name)
    text = f"{tmp_path}/a.png\n{tmp_path}/b c.png\n{tmp_path}/a.png\n".encode()
    monkeypatch.setattr(sys, "stdin", type("", (), {"buffer": io.BytesIO(text)}))
    assert list_frames(["-"]).name == ["a.png", "b c.png"]
    (tmp_path / "list").write_bytes(f"{tmp_path}/d\ne.png\0{tmp_path}/a.png\0".encode())
    assert list_frames([], tmp_path / "list").name == ["a.png", "d\ne.png"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images or videos in"):
        list_frames([tmp_path])
    with pytest.raises(InputError, match="no file matches"):
        list_frames([str(tmp_path / "*.jpg")])
    with pytest.raises(InputError, match="no such file") as caught:
        list_frames([tmp_path / "sub" / "deep" / "a.jpg"])
    assert str(tmp_path) in caught.value.hint and "deep" not in caught.value.hint
    png(tmp_path / "a.png")
    with pytest.raises(UsageError, match="given twice"):
        list_frames([tmp_path, tmp_path])
    (tmp_path / "[1].png").write_bytes((tmp_path / "a.png").read_bytes())
    assert list_frames([tmp_path / "[1].png"]).name == ["[1].png"]  # a file before a glob


def test_later_stages_find_the_pictures_and_notice_changes(tmp_path: Path) -> None:
    photos, results = tmp_path / "photos", tmp_path / "results" / "today"
    photos.mkdir()
    results.mkdir(parents=True)
    for k in range(3):
        png(photos / f"{k}.png", np.roll(SCENE, k, 1))
    out = frames_without_people(list_frames([photos]), results / "a.h5")
    with open_artefact(out) as artefact:
        assert artefact.attrs["root"] == "../../photos" and str(tmp_path) not in str(artefact.attrs["inputs"])
        source = FrameSource(artefact)
        assert np.array_equal(source(1), np.roll(SCENE, 1, 1))
        assert [p.rgb is not None for p in read_frames(artefact, [0, 1, 2], workers=2)] == [True] * 3
        png(photos / "2.png", np.roll(SCENE, 7, 1))
        with pytest.raises(
            InputError, match=r"2.png has changed since detection \(was [0-9a-f]{12}, is [0-9a-f]{12}\)"
        ):
            FrameSource(artefact)(2)
        (photos / "2.png").unlink()
        with pytest.raises(InputError, match=r"2\.png is not below"):
            FrameSource(artefact)(2)
        photos.rename(tmp_path / "moved")
        assert np.array_equal(FrameSource(artefact, root=tmp_path / "moved")(0), SCENE)
        with pytest.raises(InputError, match="is not below"):
            FrameSource(artefact)(0)
    whole = frames_without_people(list_frames([tmp_path / "moved" / "0.png"]), None)
    assert np.array_equal(FrameSource(whole)(0), SCENE)


def test_picture_of_another_size_than_the_artefact_says(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    table = in_memory(
        "detections",
        frames={"name": ["a.png"], "size": [[60, 80]], "K": np.eye(3)[None]},
        rows={"frame": [], "box": np.zeros((0, 4))},
        columns={"keypoints/xy": np.zeros((0, 0, 2)), "keypoints/score": np.zeros((0, 0))},
        group_attrs={"keypoints": {"joints": []}},
    )
    with pytest.raises(InputError, match="80 x 60, the artefact says 60 x 80"):
        FrameSource(table, root=tmp_path)(0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_written_pictures_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a.{suffix}", SCENE)
    assert np.abs(open_frame(path)[10, 10].astype(int) - SCENE[10, 10]).max() < 12
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
