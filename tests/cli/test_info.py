"""`hmr info`: counts and provenance, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from stages.engine.job import RunOptions
from stages.engine.runner import run_rows
from tests.helpers.cli import hmr
from tests.helpers.small_artefacts import detections, recover_job, recover_load


def test_info(tmp_path: Path) -> None:
    table = detections(5)

    def load() -> object:
        compute = recover_load(table)()
        return lambda rows: {**compute(rows), "error": ["dark" if r == 2 else "" for r in rows]}

    out = run_rows(recover_job(table, 2.0), load, tmp_path / "a.meshes.h5", RunOptions())
    done = hmr("info", out)
    assert done.returncode == 0
    for words in (
        "kind: meshes",
        "failed: 1",
        "scale: 2.0",
        "joints/xyz: float32 (5, 24, 3)",
        "1 x dark",
        "body_model: test",
    ):
        assert words in done.stdout, words
    found = json.loads(hmr("info", out, "--json").stdout)
    assert found["rows"] == {"all": 5, "ok": 4, "failed": 1, "skipped": 0} and found["params"] == {"scale": 2.0}
    assert found["model"]["name"] == "test" and found["inputs"][0]["fingerprint"] == table.fingerprint


def test_not_an_artefact(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    done = hmr("info", tmp_path / "a.h5")
    assert done.returncode == 3 and done.stderr.count("\n") == 1 and "is empty" in done.stderr and not done.stdout
