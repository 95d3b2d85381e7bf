"""Faults of shared/spec/reliability.md, section 5, through the command line: exit code and one line, never a traceback.

Those of pictures, videos, artefacts, disks and writers that need no process of their own are in tests/unit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK
from tests.helpers.bad_images import SCENE, bad_images
from tests.helpers.cli import hmr
from tests.helpers.small_artefacts import detections, same, save


def fails(code: int, words: str, *args: object, **env: str) -> str:
    """`hmr ARGS` ends with `code` and a last line on stderr that has `words`; nothing on stdout."""
    done = hmr(*args, **env)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("hmr: ")
    return done.stderr


def boxes(path: Path, names: list[str]) -> Path:
    path.write_text(json.dumps([{"name": n, "x1": 5, "y1": 5, "x2": 40, "y2": 50} for n in names]))
    return path


def test_nothing_found_and_paths_that_are_not_there(tmp_path: Path) -> None:
    """Faults 1, 2."""
    out = tmp_path / "a.h5"
    text = fails(3, "nearest folder that exists", "import", "boxes", tmp_path / "no" / "b.json", "-o", out)
    assert f"exists is {tmp_path}" in text
    empty = boxes(tmp_path / "b.json", ["a.jpg"])
    fails(3, "no such file or folder", "import", "boxes", empty, "--images", tmp_path / "none", "-o", out)
    fails(3, "is a folder, an artefact file is needed", "info", tmp_path)
    fails(3, "is not a folder of OpenPose files", "import", "openpose", tmp_path / "b.json", "-o", out)


def test_bad_pictures_among_good_ones(tmp_path: Path) -> None:
    """Faults 3 to 8, 10: the rest is done, the causes are named, --strict counts them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    words = bad_images(photos)
    good = ["a b.png", "-dash.png", "new\nline.png", "x/same.png", "y/same.png", "A.png", "a.png"]
    for name in good:
        (photos / name).parent.mkdir(exist_ok=True)
        Image.fromarray(SCENE).save(photos / name)
    source, out = boxes(tmp_path / "b.json", [*words, *good, "gone.png"]), tmp_path / "a.h5"
    done = hmr("import", "boxes", source, "--images", photos, "-o", out)
    assert done.returncode == 0 and f"{len(words) + 1} of {len(words) + 8} rows failed" in done.stderr
    with open_artefact(out) as artefact:
        status = dict(zip(artefact.frames["name"], artefact.frames["status"], strict=True))
        error = dict(zip(artefact.frames["name"], artefact.frames["error"], strict=True))
        assert {n for n, s in status.items() if s == OK} == set(good)
        assert all(word in error[name] for name, word in words.items()) and "No such file" in error["gone.png"]
        assert (artefact.rows["status"] == FAILED).sum() == len(words) + 1 and len(artefact.rows["track"]) == len(
            status
        )
    again = fails(6, "rows failed, first row", "import", "boxes", source, "--images", photos, "-o", out, "--strict")
    assert again.startswith(f"{out} is up to date")


def test_the_place_and_the_settings_of_the_shell_do_not_matter(tmp_path: Path) -> None:
    """Section 4: locale, time zone, working directory and hash seed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b.png", "é.png", "a10.png", "a9.png"):
        Image.fromarray(SCENE).save(photos / name)
    source = boxes(tmp_path / "b.json", ["b.png", "é.png", "a10.png", "a9.png"])
    first = None
    for k, (folder, env) in enumerate(
        [(tmp_path, {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"}),
         (photos, {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"})]
    ):  # fmt: skip
        out = tmp_path / f"{k}.h5"
        here = os.path.relpath(photos, folder)
        done = hmr("import", "boxes", os.path.relpath(source, folder), "--images", here, "-o", out, cwd=folder, **env)
        assert done.returncode == 0, done.stderr
        with open_artefact(out) as artefact:
            first = first or artefact
            assert artefact.frames["name"].tolist() == ["a9.png", "a10.png", "b.png", "é.png"]
            assert artefact.fingerprint == first.attrs["fingerprint"]
    with open_artefact(tmp_path / "0.h5") as a, open_artefact(tmp_path / "1.h5") as b:
        same(a, b)


def test_targets_inputs_and_writers_in_each_others_way(tmp_path: Path) -> None:
    """Faults 26, 29, 43."""
    source, out = boxes(tmp_path / "b.json", ["a.jpg"]), tmp_path / "a.h5"
    assert hmr("import", "boxes", source, "--size", "64x64", "-o", out).returncode == 0
    text = fails(3, "size '64x64' -> '65x64'", "import", "boxes", source, "--size", "65x64", "-o", out)
    assert "--force" in text
    assert hmr("import", "boxes", source, "--size", "65x64", "-o", out, "--force").returncode == 0
    fails(2, "is also the input", "import", "boxes", source, "--size", "64x64", "-o", source, "--force")
    fails(2, "is a folder", "import", "boxes", source, "--size", "64x64", "-o", tmp_path)
    fails(2, "--shard 4/3", "import", "boxes", source, "-o", out, "--shard", "4/3")
    folder = tmp_path / "c.h5.parts"
    folder.mkdir()
    from stages.files.locks import process_start

    mark = {"host": os.uname().nodename, "pid": os.getpid(), "started": process_start(os.getpid())}
    (folder / "writer-0-of-1").write_text(json.dumps(mark))
    text = fails(5, f"process {os.getpid()}", "import", "boxes", source, "--size", "64x64", "-o", tmp_path / "c.h5")
    assert "delete" in text


def test_foreign_and_damaged_artefacts_are_refused_by_every_reader(tmp_path: Path) -> None:
    """Faults 23, 24."""
    good = save(detections(4), tmp_path / "good.h5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(good.read_bytes()[:-200])
    fails(3, "cut.h5 is damaged", "heatmaps", cut, "-o", tmp_path / "h.h5")
    fails(3, "cut.h5 is damaged", "info", cut)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_a_command(tmp_path: Path, number: int, code: int) -> None:
    """Fault 28: the part is finished, the exit code is the shell's, the same command goes on."""
    photos, out = tmp_path / "photos", tmp_path / "a.h5"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
    Image.fromarray(noise).save(photos / "0.jpg", quality=85)
    for i in range(1, 200):
        os.link(photos / "0.jpg", photos / f"{i}.jpg")
    command = ["import", "boxes", boxes(tmp_path / "b.json", [f"{i}.jpg" for i in range(200)]), "--images", photos]
    process = subprocess.Popen(
        [sys.executable, "-m", "hmr_cli.app", *map(str, command), "-o", str(out)],
        cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "a.h5.parts" / "job.npz").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "finishing this part" in said and "the same command resumes" in said and "Traceback" not in said
    assert not out.exists() and 1 <= len(list((tmp_path / "a.h5.parts").glob("part-*.npz"))) < 4
