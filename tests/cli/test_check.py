"""`hmr check`: one line and exit code 0 for a valid file, one sentence and 3 for any other."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.cli import hmr
from tests.helpers.small_artefacts import detections, save


def test_good_and_bad_files(tmp_path: Path) -> None:
    good = save(detections(5), tmp_path / "good.h5")
    done = hmr("check", good)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{good}: ok, 5 rows of detections\n", "")
    (tmp_path / "page.h5").write_text("<html>")
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:3000])
    names = ("good", "page", "cut", "none")
    done = hmr("check", *(tmp_path / f"{n}.h5" for n in names))
    assert done.returncode == 3 and done.stdout.count("\n") == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and "page.h5 is not an HDF5 file" in lines[0] and "cut.h5 is damaged" in lines[1]
    assert "no such file" in lines[2] and all(line.startswith("hmr: ") for line in lines)
    done = hmr("check", "--json", tmp_path / "good.h5", tmp_path / "cut.h5")
    found = json.loads(done.stdout)
    assert done.returncode == 3 and [f["ok"] for f in found["files"]] == [True, False] and not found["ok"]


def test_same_rows(tmp_path: Path) -> None:
    a, b = save(detections(5), tmp_path / "a.h5"), save(detections(5, seed=2), tmp_path / "b.h5")
    assert hmr("check", "--same-rows", a, a).returncode == 0
    done = hmr("check", "--same-rows", a, b)
    assert done.returncode == 3 and "row 0 has box" in done.stderr and done.stderr.count("\n") == 1
