"""`hmr body-model` as people use it."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from tests.helpers import body_files
from tests.helpers.cli import hmr


def test_list_add_export(tmp_path):
    env = {"HMR_CACHE": str(tmp_path / "cache")}
    source = body_files.write(tmp_path / "basicmodel_m_lbs_10_207_0_v1.1.0.pkl", body_files.arrays())
    added = hmr("body-model", "add", source, **env)
    assert added.returncode == 0, added.stderr
    assert added.stdout.strip() == str(tmp_path / "cache" / "bodies" / "smpl_male.npz")
    listed = hmr("body-model", "list", "--json", **env)
    bodies = json.loads(listed.stdout)["bodies"]
    assert [(b["name"], b["gender"], b["topology"]) for b in bodies] == [
        ("embedded", "neutral", "hmr-body-1"),
        ("smpl", "male", "smpl"),
    ]

    refused = hmr("body-model", "export", added.stdout.strip(), "-o", tmp_path / "no.pkl", **env)
    assert refused.returncode == 2 and not (tmp_path / "no.pkl").exists()
    out = hmr("body-model", "export", "-o", tmp_path / "body.pkl", **env)
    assert out.returncode == 0, out.stderr
    smplx = pytest.importorskip("smplx")
    with (tmp_path / "body.pkl").open("rb") as file:
        data = pickle.load(file)
    model = smplx.SMPL(
        out.stdout.strip(), vertex_ids=dict(zip(data["vertex_id_names"], data["vertex_ids"], strict=True))
    )
    result = model()
    assert result.vertices.shape == (1, 6890, 3) and result.joints.shape == (1, 45, 3)


class Bomb:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_faults_exit_4_with_one_line(tmp_path):
    env = {"HMR_CACHE": str(tmp_path / "cache")}
    hostile = body_files.write(tmp_path / "hostile.pkl", {"v_template": Bomb(f"touch {tmp_path / 'mark'}")})
    for file, word in ((hostile, "nothing in it was executed"), (tmp_path / "absent.pkl", "no such file")):
        done = hmr("body-model", "add", file, **env)
        assert done.returncode == 4 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) <= 3 and not done.stdout
    assert not (tmp_path / "mark").exists() and not (tmp_path / "cache").exists()
