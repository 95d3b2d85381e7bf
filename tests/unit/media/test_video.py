"""Video in and out: true times, every frame in its place, damage that shows as failed frames, constant memory."""

from __future__ import annotations

import resource
from pathlib import Path

import av
import numpy as np
import pytest

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED
from stages.errors import InputError
from stages.media.frames import FrameSource, frame_columns, list_frames, read_frames
from stages.media.video import write_video
from tests.helpers.coded_video import SIZE, coded_image, frames_without_people, number_of, write_coded_video


def media_data(path: Path) -> tuple[int, int]:
    """Offset and size of the mp4's mdat box."""
    content, at = path.read_bytes(), 0
    while content[at + 4 : at + 8] != b"mdat":
        at += int.from_bytes(content[at : at + 4], "big")
    return at, int.from_bytes(content[at : at + 4], "big")


VARIABLE = np.cumsum([0, 40, 40, 10, 200, 33, 33, 34, 500, 1, 40] + [37] * 40).tolist()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_keeps_its_true_times_and_order(tmp_path: Path, suffix: str) -> None:
    path = write_coded_video(tmp_path / f"v.{suffix}", VARIABLE, bf="3")
    listing = list_frames([path])
    assert len(listing) == len(VARIABLE) and (listing.source == 0).all()
    assert np.allclose(listing.time, np.array(VARIABLE) / 1000, atol=6e-4)
    assert listing.name[3] == f"v.{suffix}#000003"
    forward = [number_of(read_frames(listing, [i])[0].rgb) for i in range(len(listing))]
    assert forward == list(range(len(listing)))
    order = np.random.default_rng(1).permutation(len(listing))
    assert [number_of(p.rgb) for p in read_frames(listing, order)] == order.tolist()
    assert list_frames([path], every=7).index.tolist() == list(range(0, len(VARIABLE), 7))


def rotated(path: Path, degrees: int) -> Path:
    """Ask in the mp4's track header for a clockwise turn (ISO 14496-12, 8.3.2: the matrix of tkhd)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version and flags, times, id, reserved, layer, group, volume
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    for place, value in ((0, a), (1, b), (3, c), (4, d)):
        content[at + 4 * place : at + 4 * place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = rotated(write_coded_video(tmp_path / "v.mp4", [0, 40, 80]), degrees)
    picture = read_frames(list_frames([path]), [1])[0]
    upright = np.rot90(coded_image(1), -degrees // 90)
    assert picture.size == (upright.shape[1], upright.shape[0])
    assert np.abs(picture.rgb.astype(int) - upright).mean() < 12


def test_video_without_index_names_the_mend(tmp_path: Path) -> None:
    path = write_coded_video(tmp_path / "v.mp4", list(range(0, 2000, 40)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"v.mp4: not a readable video") as caught:
        list_frames([path])
    assert "ffmpeg" in caught.value.hint


def test_text_audio_only_and_zero_frames(tmp_path: Path) -> None:
    (tmp_path / "t.mp4").write_text("no video\n" * 100)
    with pytest.raises(InputError, match=r"t\.mp4"):
        list_frames([tmp_path / "t.mp4"])
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="no pictures"):
        list_frames([tmp_path / "a.mp4"])
    with av.open(str(tmp_path / "z.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        container.start_encoding()
    with pytest.raises(InputError, match=r"z.mkv: (has no frames|not a readable)"):
        list_frames([tmp_path / "z.mkv"])


def test_damaged_middle_fails_there_and_shifts_nothing(tmp_path: Path) -> None:
    path = write_coded_video(tmp_path / "v.mp4", list(range(0, 4000, 40)), gop=10)
    at, size = media_data(path)
    content = bytearray(path.read_bytes())
    middle = slice(at + size // 2, at + size // 2 + 700)
    content[middle] = np.random.default_rng(0).integers(0, 256, 700, np.uint8).tobytes()
    path.write_bytes(content)
    listing = list_frames([path])
    assert len(listing) == 100  # announced
    pictures = read_frames(listing, range(100))
    good = [i for i, p in enumerate(pictures) if p.rgb is not None]
    assert 50 <= len(good) < 95 and good[0] == 0 and good[-1] == 99
    assert [number_of(pictures[i].rgb) for i in good] == good
    table = frame_columns(listing, range(100), pictures)
    assert (table["status"] == FAILED).sum() == 100 - len(good)
    assert "announced" in table["error"][next(i for i in range(100) if i not in good)]
    # the same frames fail when they are asked for alone, out of order
    again = read_frames(list_frames([path]), list(range(99, -1, -9)))
    assert [p.rgb is not None for p in again] == [i in good for i in range(99, -1, -9)]


def test_later_stages_find_video_frames(tmp_path: Path) -> None:
    path = write_coded_video(tmp_path / "v.mp4", VARIABLE)
    whole = frames_without_people(list_frames([path], every=5), tmp_path / "a.h5")
    with open_artefact(whole) as artefact:
        source = FrameSource(artefact)
        assert [number_of(source(i)) for i in (0, 3, 1)] == [0, 15, 5]
        write_coded_video(path, VARIABLE[:-1])
        with pytest.raises(InputError, match="has changed since detection"):
            FrameSource(artefact)(0)


def test_long_video_in_constant_memory(tmp_path: Path) -> None:
    path = write_coded_video(tmp_path / "v.mp4", list(range(0, 40 * 3000, 40)), preset="ultrafast")
    listing = list_frames([path])
    read_frames(listing, range(10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = 0
    for start in range(0, 3000, 50):
        seen += sum(p.rgb is not None for p in read_frames(listing, range(start, start + 50)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert seen == 3000 and grown < 30, f"{grown:.0f} MB"  # 3,000 frames are 55 MB


def test_written_video_is_h264_of_the_right_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "o.mp4", (coded_image(i)[:, :95] for i in range(20)), fps=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, float(stream.average_rate)) == (
            "h264",
            96,
            64,
            12.5,
        )
    listing = list_frames([path])
    assert np.allclose(np.diff(listing.time), 0.08) and number_of(read_frames(listing, [13])[0].rgb) == 13
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "none.mp4", [], fps=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mp4"]
