"""hmr eval and hmr synth through the command line, on shortened synthetic sets."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_cli.app import main
from tests.helpers.cli import hmr

WEIGHTS = Path(__file__).parents[2] / "stages" / "data" / "embedded.safetensors"
ROWS = 6  # in one of the first seven pictures too little of the person is seen
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded recoverer's weights are not there")


@pytest.fixture(scope="module")
def oc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "synth-oc.detections.h5"
    done = hmr("synth", "synth-oc", "--pictures", 7, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="module")
def scored(oc: Path) -> dict[str, Any]:
    plain, picture = oc.with_name("plain.scores.h5"), oc.with_name("errors.svg")
    done = hmr("eval", oc, "--json", "-o", plain, "--plot", picture)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"file": plain, "picture": picture}


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """In this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in args])
    seen = capsys.readouterr()
    return int(end.value.code or 0), seen.out, seen.err


def test_synth_oc_on_the_embedded_default(scored: dict[str, Any]) -> None:
    assert scored["rows"] == scored["scored"] == ROWS and scored["failed"] == 0
    # An estimate, not the truth and not noise.
    assert 20 < scored["pa_mpjpe"] < scored["mpjpe"] < 250
    assert 20 < scored["occ_mpjpe"] < 400 and 10 < scored["mpve"] < 300
    assert 0 < scored["error_2d"] < 60 and 0.5 < scored["pck"] <= 1
    assert "shortened" in scored["dataset"] and "version 1" in scored["dataset"]
    assert "protocol body: 14 joints of lsp14" in scored["line"] and "Regressor" in scored["line"]


def test_the_plot_shows_every_joint(scored: dict[str, Any]) -> None:
    svg = ET.fromstring(scored["picture"].read_text())
    texts = [t.text or "" for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "right ankle" in texts and "head top" in texts and "hidden" in texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}rect"))) > 14


@pytest.mark.parametrize(("style", "mark"), [("latex", r"\begin{tabular}{lrrrrrrr}"), ("markdown", "| method")])
def test_tables(oc: Path, capsys: pytest.CaptureFixture[str], style: str, mark: str) -> None:
    code, out, err = call(capsys, "eval", oc, "--table", style)
    assert code == 0, err
    assert mark in out and "MPJPE" in out and f"{ROWS} of {ROWS} rows scored" in out


def test_compare_and_table_of_both_rows(
    oc: Path, scored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "eval", "table", "--sets", oc, "-o", tmp_path)
    assert code == 0, err
    assert "| synth-oc, embedded  " in out and "synth-oc, embedded + refine, frame |" in out
    assert (tmp_path / "table.md").read_text().strip() in out
    files = [tmp_path / f"synth-oc{part}.scores.h5" for part in ("", "-refined")]
    code, out, err = call(capsys, "eval", "compare", scored["file"], files[1], "--json")
    assert code == 0, err
    found = json.loads(out)["mpjpe"]
    assert found["a"] == pytest.approx(scored["mpjpe"]) and found["rows"] == ROWS
    assert found["low"] <= found["difference"] <= found["high"] and found["low"] < found["high"]
    code, out, _ = call(capsys, "eval", "compare", *files)
    assert code == 0 and "MPJPE:" in out and f"{ROWS} rows" in out
    code, out, _ = call(capsys, "eval", "compare", files[0], files[0], "--json")
    same = json.loads(out)["pa_mpjpe"]
    assert same["difference"] == same["low"] == same["high"] == 0
    code, _, _ = call(capsys, "eval", oc, "--protocol", "emdb", "-o", tmp_path / "emdb.scores.h5")
    assert code == 0
    code, _, err = call(capsys, "eval", "compare", files[0], tmp_path / "emdb.scores.h5")
    assert code == 3 and "different protocols: body and emdb" in err


def test_occlusion_map(oc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.png"
    code, text, err = call(capsys, "eval", "occlusion-map", oc, "--grid", 3, "--limit", 4, "-o", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    with np.load(out.with_suffix(".npz")) as numbers:
        errors, plain, names = numbers["errors"], numbers["plain"], numbers["joints"]
    assert errors.shape == (14, 3, 3) and np.isfinite(errors).all() and found["rows"] == 4
    # Hiding something hurts on average, and where is not everywhere the same.
    assert errors.mean() > plain.mean() and errors.mean(0).std() > 0.1
    assert found["hurt_most"] in names and found["by_mm"] == pytest.approx((errors.mean((1, 2)) - plain).max())
    from stages.media.images import read_image

    assert min(read_image(out).size) > 100


def test_wrong_words(oc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, code, say in (
        (("synth-foo",), 2, "no data set 'synth-foo'"),
        (("3dpw-pc",), 2, "--data FOLDER"),
        (("3dpw-pc", "--data", oc.parent / "nowhere"), 4, "no such file or folder"),
        (("3dpw-pc", "--data", oc.parent), 4, "sequenceFiles"),
        ((oc, "--protocol", "mine"), 2, "no protocol 'mine'"),
        ((oc, "--protocol", "scorehmr"), 4, "thorax"),
        ((oc, "--table", "html"), 2, "markdown or latex"),
        (("rows", "synth", "-o", "x.h5"), 2, "hmr synth"),
        (("synth-oc", "--protocol", "mine"), 2, "no protocol 'mine'"),
        (("synth-oc", "--meshes", oc.parent / "none.meshes.h5"), 3, "no such file"),
        ((oc, "--meshes", oc), 3, "meshes are needed"),
        ((oc, "--meshes", oc, "--refine"), 2, "scored as it is"),
        ((oc, "--plot", oc.parent / "nowhere" / "x.svg"), 2, "no folder"),
        ((oc, "--plot", oc.parent / "x.png"), 2, ".svg"),
        ((oc, "--shard", "0/2"), 2, "give -o"),
        (("table", "--sets", "synth,mine"), 2, "no synthetic set 'mine'"),
        (("compare", oc, oc), 3, "scores are needed"),
        (("occlusion-map", oc, "--grid", 0, "-o", "x.png"), 2, "--grid"),
        (("occlusion-map", oc, "--limit", 0, "-o", "x.png"), 2, "--limit"),
        (("occlusion-map", oc, "-o", "x.gif"), 2, ".png"),
        (("occlusion-map", oc, "-o", "x.png", "--shard", "0/2"), 2, "in one piece"),
        (("table", "--shard", "0/2"), 2, "in one piece"),
    ):
        got, out, err = call(capsys, "eval", *args)
        assert (got, out) == (code, ""), (args, err)
        assert say in err, err


def test_shards_meet_and_a_dry_run_writes_nothing(
    oc: Path, scored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.scores.h5"
    for args in ((oc,), ("synth-oc", "--refine"), ("table",), ("occlusion-map", oc)):
        place = tmp_path / "x.png" if args[0] == "occlusion-map" else out
        code, _, err = call(capsys, "eval", *args, "--dry-run", "-o", place)
        assert code == 0 and "would " in err
    assert list(tmp_path.iterdir()) == []
    code, text, err = call(capsys, "eval", oc, "--shard", "1/2", "-o", out, "--json")
    assert code == 0 and "parts" in text and not out.exists(), err
    code, text, err = call(capsys, "eval", oc, "--shard", "0/2", "-o", out, "--json")
    assert code == 0, err
    same = ("mpjpe", "pa_mpjpe", "mpve", "occ_mpjpe", "error_2d", "rows")
    assert {n: json.loads(text)[n] for n in same} == {n: scored[n] for n in same}
