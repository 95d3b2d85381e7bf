"""The faults that hmr must survive: where each is tested, and those that need a process of their own.

| fault | tests |
|---|---|
| 1, 2 nothing there | test_faults_files, unit/media/test_frames |
| 3-8, 10 bad pictures, names | test_faults_files, unit/media/test_frames |
| 9 EXIF orientation | test_pictures_turned_renamed_and_changed, unit/media/test_frames |
| 11 names that are not UTF-8 | test_names_that_are_not_utf8, unit/media/test_frames |
| 12 changed or lost images | test_pictures_turned_renamed_and_changed, unit/media/test_frames, stages/test_detect |
| 13, 14 video | unit/media/test_video |
| 15 nobody | cli/test_run, unit/engine/test_run_frames, stages/test_detect, stages/test_refine |
| 16 200 people in one picture | test_a_crowd_with_unusable_people, stages/test_detect |
| 17 unusable boxes | test_a_crowd_with_unusable_people, cli/test_import, stages/test_detect |
| 18 keypoints without evidence | test_a_crowd_with_unusable_people, stages/test_refine |
| 19 NaN from a network | test_networks_that_fail, unit/engine/test_runner |
| 20 impossible K | test_cameras_that_cannot_be, unit/engine/test_parts, stages/test_detect |
| 21 several views | stages/test_refine |
| 22 wrong joint set | cli/test_import, unit/keypoints/test_joint_sets |
| 23, 24 foreign, damaged, different rows | test_faults_files, unit/artefacts/test_hdf5_hostile, cli/test_check |
| 25 hostile HDF5 | test_hdf5_that_points_elsewhere, unit/artefacts/test_hdf5_hostile |
| 26, 29 targets and writers | test_faults_files, unit/engine/test_parts |
| 27 parts of other parameters | test_parts_of_other_settings, unit/engine/test_parts |
| 28 killed at any moment | test_faults_files, stages/test_kill |
| 30 disk full, read-only | test_disks_that_take_nothing, unit/engine/test_full_disks |
| 31 no locks, links, fsync | test_a_file_system_without_links_and_fsync |
| 32 clocks | unit/engine/test_parts |
| 33 SMPL | test_files_of_bodies_and_weights, cli/test_body_model, cli/test_hostile_pickles, unit/smpl/test_body_files |
| 34 checkpoints | test_files_of_bodies_and_weights, unit/files/test_checkpoints, cli/test_dpmesh |
| 35 downloads | test_a_download_without_network, unit/files/test_cache |
| 36 incomplete data sets | stages/test_datasets |
| 37 no CUDA; memory of the GPU | test_networks_that_fail, unit/engine/test_runner (the batch is halved) |
| 38 GPU lost | test_networks_that_fail (an error in mid-run; real hardware: by hand) |
| 39 extras not installed | test_extras_that_are_not_installed |
| 40 streams, HOME, terminal | cli/test_streams; no display: every test runs without; libGL: by hand |
| 41 versions | the matrix of the pipeline, not tests |
| 42 killed for memory | stages/test_kill; hmr has no worker processes; MemoryError: test_networks_that_fail |
| 43 arguments | test_faults_files, cli/test_app, unit/media/test_frames |
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK
from tests.helpers.bad_images import SCENE
from tests.helpers.cli import hmr
from tests.helpers.people import standing_people
from tests.helpers.small_artefacts import detections, save

ROOT = Path(__file__).parents[1]
ORIENTATION = 0x0112  # EXIF


def fails(code: int, words: str, *args: Any, lines: int = 1, **env: str) -> str:
    """`hmr ARGS` ends with `code`, nothing on stdout and (at most) `lines` on stderr, the last of which has `words`."""
    done = hmr(*args, **env)
    said = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert said[-1].startswith("hmr: ") and words in said[-1] and len(said) <= lines and not done.stdout, done.stderr
    return done.stderr


def works(*args: Any, **env: str) -> str:
    """What `hmr ARGS` says to people."""
    done = hmr(*args, **env)
    assert done.returncode == 0, done.stderr
    return done.stderr


def patched(folder: Path, code: str) -> dict[str, str]:
    """An environment whose processes run `code` first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def boxes(path: Path, names: list[str]) -> Path:
    path.write_text(json.dumps([{"name": n, "x1": 5, "y1": 5, "x2": 40, "y2": 50} for n in names]))
    return path


def test_pictures_turned_renamed_and_changed(tmp_path: Path) -> None:
    """9, 12: EXIF orientations 1 to 8 end upright; a picture that is another one later is named with both prints."""
    photos, out = tmp_path / "photos", tmp_path / "a.detections.h5"
    photos.mkdir()
    upright = Image.fromarray(SCENE)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera must have done (PIL's transpositions)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        picture = upright.transpose(Image.Transpose(back[turn])) if turn in back else upright
        picture.save(photos / f"{turn}.png", exif=exif)
    works(
        "import", "boxes", boxes(tmp_path / "b.json", [f"{k}.png" for k in range(1, 9)]), "--images", photos, "-o", out
    )
    with open_artefact(out) as table:
        assert (table.frames["status"] == OK).all() and (table.frames["size"] == upright.size).all()
        was = str(table.frames["file"][0])[:12] if "file" in table.frames else ""
    changed = SCENE.copy()
    changed[:9] = 0
    Image.fromarray(changed).save(photos / "1.png")
    (photos / "2.png").unlink()
    said = hmr("view", out, "-o", tmp_path / "seen", "--root", photos).stderr
    assert f"1.png has changed since detection (was {was}" in said and "Traceback" not in said


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """11, with OpenPose's files, which are named like the pictures."""
    folder, photos = os.fsencode(tmp_path / "poses"), os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    os.mkdir(photos)
    Image.fromarray(SCENE).save(tmp_path / "photos" / "x.png")
    try:
        os.rename(os.path.join(photos, b"x.png"), os.path.join(photos, b"\xff\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open(os.path.join(folder, b"\xff\xe9_keypoints.json"), "w") as file:
        json.dump({"people": [{"pose_keypoints_2d": [30.0, 20.0, 0.9] * 25}]}, file)
    out = tmp_path / "a.h5"
    works("import", "openpose", tmp_path / "poses", "--images", tmp_path / "photos", "-o", out)
    with open_artefact(out) as table:
        assert table.frames["name"].tolist() == ["\\xff\\xe9.png"] and table.rows["status"].tolist() == [OK]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 people in one picture, the first of whom cannot be used for one reason each."""
    keypoints, _ = standing_people(200)
    box = np.concatenate([keypoints[..., :2].min(1) - 5, keypoints[..., :2].max(1) + 5], 1).clip(0, (640, 480) * 2)
    box[:5] = [[700, 0, 800, 90], [9, 9, 9, 9], [np.nan, 0, 9, 9], [90, 90, 20, 20], [-500, -500, 5000, 5000]]
    keypoints[5, :, 2] = 0
    keypoints[6, 1:, 2] = 0
    keypoints[7] = np.nan
    folder = tmp_path_factory.mktemp("crowd")
    entries = [
        {"image_id": 1, "category_id": 1, "score": 1.0, "keypoints": k.ravel().tolist(),
         "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]}
        for k, b in zip(keypoints, box, strict=True)
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(entries))
    (folder / "book.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "crowd.jpg", "width": 640, "height": 480}], "annotations": []})
    )
    out = folder / "crowd.detections.h5"
    said = works("import", "coco", folder / "results.json", "--annotations", folder / "book.json",
                 "--min-keypoints", 0, "-o", out)  # fmt: skip
    assert "4 of 200 rows failed, first row 0: the box is outside the picture" in said
    return out


def test_a_crowd_with_unusable_people(crowd: Path, tmp_path: Path) -> None:
    """16, 17, 18: each is a failed row with its reason, the other 193 are bodies."""
    with open_artefact(crowd) as table:
        assert table.rows["box"][4].tolist() == [0, 0, 640, 480]
    out = tmp_path / "crowd.meshes.h5"
    done = hmr("recover", crowd, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"out": str(out), "rows": 200, "failed": 7, "frames": 1, "frames_failed": 0}
    with open_artefact(out) as made:
        assert np.flatnonzero(made.rows["status"] == FAILED).tolist() == [0, 1, 2, 3, 5, 6, 7]
        reasons = made.rows["error"][[0, 1, 2, 3, 5, 6, 7]]
        words = [
            "outside",
            "smaller than a pixel",
            "not finite",
            "x2 < x1",
            "0 keypoints",
            "1 keypoints",
            "0 keypoints",
        ]
        assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
        pose = made.read("smpl/body_pose")
        assert np.isnan(pose[[0, 7]]).all() and np.isfinite(pose[8:]).all()
    assert "rows: 2 x 0 keypoints" in hmr("info", out).stdout


NETWORK = """
import numpy as np
from stages.artefacts.kinds import SMPL_COLUMNS
from stages.models.base import PersonModel

class Nan(PersonModel):
    name, licence, batch_size, uses, columns = "own", "none", 64, (), SMPL_COLUMNS
    group_attrs = {"smpl": {"body_model": "embedded", "gender": "neutral"}}

    @classmethod
    def load(cls, checkpoint, *, device, body):
        return cls()

    def needs_images(self, given):
        return False

    def __call__(self, people):
        made = {c.name: np.zeros((len(people), *map(int, c.shape[1:]))) for c in self.columns}
        made["smpl/transl"][np.asarray(people.row) % 2 == 0] = np.nan
        return made

class Memory(Nan):
    def __call__(self, people):
        raise MemoryError

class Lost(Nan):
    def __call__(self, people):
        import torch
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""


def test_networks_that_fail(crowd: Path, tmp_path: Path) -> None:
    """19, 37, 38, 42: NaN fails its row alone; no device, no memory: exit 5 and no target."""
    (tmp_path / "own.py").write_text(NETWORK)
    env, out = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, tmp_path / "o.meshes.h5"
    said = works("recover", crowd, "-o", out, "--model", "own:Nan", **env)
    assert "of 200 rows failed" in said
    with open_artefact(out) as made:
        assert (
            made.rows["error"][8] == "non-finite output in smpl/transl" and np.isnan(made.read("smpl/transl")[8]).all()
        )
        assert made.rows["status"][9] == OK and np.isfinite(made.read("smpl/transl")[9]).all()
    for model in ("own:Memory", "own:Lost"):
        other = tmp_path / f"{model[4:]}.meshes.h5"
        said = fails(5, "memory", "recover", crowd, "-o", other, "--model", model, lines=9, **env)
        assert "Traceback" not in said and not other.exists()
    fails(5, "CUDA devices -> --device cpu", "recover", crowd, "-o", other, "--device", "cuda:99", lines=1)


@pytest.mark.parametrize(
    ("K", "words"),
    [
        (np.full((3, 3), np.nan), "not finite"),
        (np.zeros((3, 3)), "not a camera"),
        (np.array([[-800, 0, 319.5], [0, 800, 239.5], [0, 0, 1]]), "not a camera"),
        (np.array([[800, 0, 3000.0], [0, 800, 239.5], [0, 0, 1]]), "outside the image"),
    ],
)
def test_cameras_that_cannot_be(tmp_path: Path, K: np.ndarray, words: str) -> None:
    """20: `hmr check` and every stage say which frame (they share the function; the stage is tested once)."""
    bad = save(detections(4), tmp_path / "bad.detections.h5")
    with h5py.File(bad, "a") as file:
        file["frames/K"][1] = K
    said = fails(3, words, "check", bad)
    assert "/frames/K of frame 1 (1.jpg)" in said
    if words == "not finite":
        assert "frame 1 (1.jpg)" in fails(3, words, "heatmaps", bad, "-o", tmp_path / "x.h5")


def test_hdf5_that_points_elsewhere(tmp_path: Path) -> None:
    """25, and JSON, pictures and artefacts in each other's place."""
    good = save(detections(4), tmp_path / "good.h5")
    with h5py.File(good, "a") as file:
        file["extra/elsewhere"] = h5py.ExternalLink("/etc/hostname", "/x")
    said = fails(3, "extra/elsewhere", "info", good)
    assert "link" in said
    (tmp_path / "r.json").write_text('[{"image_id": 1}]')
    said = fails(3, "hmr import coco", "info", tmp_path / "r.json")
    assert "b'" not in said
    fails(3, "not an HDF5 file but JSON", "check", tmp_path / "r.json")
    fails(3, "did you mean hmr recover", "detect", save(detections(4), tmp_path / "d.h5"), "-o", tmp_path / "x.h5")


def test_parts_of_other_settings(tmp_path: Path) -> None:
    """27: refused with the differences; --fresh discards them."""
    source, out = boxes(tmp_path / "b.json", [f"{i}.jpg" for i in range(130)]), tmp_path / "a.h5"
    line = ("import", "boxes", source, "-o", out)
    works(*line, "--size", "64x64", "--shard", "0/2")
    assert len(list((tmp_path / "a.h5.parts").glob("part-*"))) == 2 and not out.exists()
    said = fails(3, "size '64x64' -> '65x65'", *line, "--size", "65x65")
    assert "--fresh discards them" in said
    works(*line, "--size", "65x65", "--fresh")
    works("check", out)


def test_disks_that_take_nothing(tmp_path: Path) -> None:
    """30: full, read-only, and a folder that is none: exit 5, the space needed, no word of parts that are not there."""
    source = boxes(tmp_path / "b.json", ["a.jpg"])
    line = ("import", "boxes", source, "--size", "64x64", "-o")
    full = patched(tmp_path / "full", "import os\ndef f(n):\n    raise OSError(28, 'No space left')\nos.fsync = f\n")
    said = fails(5, "the disk is full", *line, tmp_path / "a.h5", **full)
    assert "are free" in said and "parts are kept" not in said
    small = "import shutil\nshutil.disk_usage = lambda p: type('', (), {'free': 10, 'total': 99, 'used': 89})()\n"
    said = fails(5, "are needed", *line, tmp_path / "a.h5", **patched(tmp_path / "small", small))
    assert "0 MB" not in said
    said = fails(5, "choose another place", *line, "/proc/hmr-test.h5")
    assert "MB" not in said and "parts are kept" not in said
    locked = patched(
        tmp_path / "ro", "import os\nd = os.mkdir\ndef f(*a, **k):\n    raise OSError(30, 'x')\nos.mkdir = f\n"
    )
    said = fails(5, "read-only", *line, tmp_path / "a.h5", **locked)
    assert "parts are kept" not in said and not (tmp_path / "a.h5").exists()


def test_a_file_system_without_links_and_fsync(tmp_path: Path) -> None:
    """31: hard links and locks refused, folders that cannot be synced: the same file."""
    code = """
import fcntl, os, stat
real = os.fsync
def link(*a, **k): raise PermissionError(1, "no links here")
def lock(*a, **k): raise OSError(95, "no locks here")
def fsync(n):
    if stat.S_ISDIR(os.fstat(n).st_mode): raise OSError(22, "no fsync of folders here")
    real(n)
os.link, os.fsync, fcntl.flock, fcntl.lockf = link, fsync, lock, lock
"""
    source = boxes(tmp_path / "b.json", [f"{i}.jpg" for i in range(70)])
    works("import", "boxes", source, "--size", "64x64", "-o", tmp_path / "a.h5", **patched(tmp_path / "nfs", code))
    works("import", "boxes", source, "--size", "64x64", "-o", tmp_path / "b.h5")
    with open_artefact(tmp_path / "a.h5") as a, open_artefact(tmp_path / "b.h5") as b:
        assert a.fingerprint == b.fingerprint and a.rows_fingerprint == b.rows_fingerprint
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.h5", "b.h5", "b.json"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("evil.pkl", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0dtouch pwned.xx\x85R.", "refused"),
    ],
)
def test_files_of_bodies_and_weights(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """33, 34: exit 4, one line, nothing run, none of torch's or numpy's advice to read it in an unsafe way."""
    file = tmp_path / name
    file.write_bytes(content)
    env = {"HMR_CACHE": str(tmp_path / "cache")}
    said = fails(4, words, "checkpoint", file)
    if name == "evil.pkl":
        said += fails(4, name, "body-model", "add", file, **env)
        said += fails(4, name, "train", "embedded", "--poses", file, "-o", tmp_path / "t.safetensors")
        fails(4, "no checkpoint at", "checkpoint", tmp_path / "absent.pth")
        fails(4, "no such file", "body-model", "add", tmp_path / "absent.pkl", **env)
    assert "unsafe" not in said and "file an issue" not in said and "UserWarning" not in said
    assert not list(Path.cwd().glob("pwned*")) and not (tmp_path / "cache").exists()


def test_a_download_without_network(tmp_path: Path) -> None:
    """35: exit 4 with the hint; nothing under the final name."""
    env = {"HMR_CACHE": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": ""}
    fails(4, "could not be downloaded", "assets", "get", "blazepose", lines=2, **env)  # the first says what is fetched
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_extras_that_are_not_installed(tmp_path: Path) -> None:
    """39: the command that needs one names it, the others work."""
    photo = tmp_path / "a.png"
    Image.fromarray(SCENE).save(photo)
    gone = patched(
        tmp_path / "gone",
        "import sys\nfor name in ('mmpose', 'rerun', 'onnxruntime', 'av'):\n    sys.modules[name] = None\n",
    )
    fails(
        4,
        'pip install "hmr-toolchain[mmpose]"',
        "detect",
        photo,
        "-o",
        tmp_path / "x.h5",
        "--detector",
        "mmpose",
        **gone,
    )
    works(
        "import", "boxes", boxes(tmp_path / "b.json", ["a.png"]), "--images", tmp_path, "-o", tmp_path / "a.h5", **gone
    )
    table = save(detections(4), tmp_path / "d.h5")
    fails(4, 'pip install "hmr-toolchain[rerun]"', "view", table, "-o", tmp_path / "seen", "--rerun", **gone)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 3, "No such file"),
        ("{bad", 3, "not JSON"),
        ("[1, 2]", 3, "no JSON object"),
        ('{"size": 3}', 2, "stored parameter size is 3"),
        ('{"sise": "9x9"}', 2, "sise"),
    ],
)
def test_settings_from_a_file(tmp_path: Path, content: str | None, code: int, words: str) -> None:
    settings = tmp_path / "settings.json"
    if content is not None:
        settings.write_text(content)
    said = fails(
        code, words, "import", "boxes", tmp_path / "b.json", "-o", tmp_path / "x.h5", "--params-from", settings
    )
    assert str(settings) in said


def test_frames_that_failed_are_listed_and_empty_tables_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    fails(3, "it is empty", "import", "boxes", tmp_path / "empty.csv", "--size", "9x9", "-o", tmp_path / "x.h5")
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    source, out = boxes(tmp_path / "b.json", ["a.png", "broken.png"]), tmp_path / "a.h5"
    works("import", "boxes", source, "--images", tmp_path, "-o", out)
    (failure,) = json.loads(hmr("info", out, "--json").stdout)["failures"]
    assert failure.startswith("frame broken.png: ") and "none" not in failure
    fails(3, "0 keypoints", "recover", out, "-o", tmp_path / "m.h5", lines=3)  # boxes alone: no bug, no body
