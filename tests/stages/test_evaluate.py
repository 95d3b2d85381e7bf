"""Scores: zero on the truth, known offsets give known errors, batches change nothing, failures are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import evaluate, synth
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact, in_memory
from stages.datasets.protocols import PROTOCOLS
from stages.datasets.synthetic import SynthData
from stages.engine.job import RunOptions
from stages.errors import ArtefactError, UsageError
from stages.evaluate import run
from stages.evaluation.scorer import neighbours
from stages.params import EvaluateParams, SynthParams
from stages.smpl.body import load_body


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SynthData:
    out = tmp_path_factory.mktemp("set") / "video.detections.h5"
    return SynthData(synth.run("synth-video", out, SynthParams(pictures=8), RunOptions()))


def meshes(data: SynthData, *, change: str = "", by: float = 0.0, **attrs: str) -> Artefact:
    """The truth as somebody's estimate, one parameter off."""
    table = data.detections
    smpl = {n: table.read(f"extra/{n}").copy() for n in ("global_orient", "body_pose", "betas", "transl")}
    if change:
        smpl[change] += np.float32(by)
    body = load_body("embedded")
    with torch.no_grad():
        xyz = body(*(torch.from_numpy(v) for v in smpl.values())).joints.numpy()
    columns = {f"smpl/{n}": v for n, v in smpl.items()}
    columns |= {"joints/xyz": xyz, "joints/confidence": np.ones(xyz.shape[:2], np.float32)}
    groups = {
        "smpl": {"body_model": "embedded", "gender": "neutral", **attrs},
        "joints": {"joints": list(body.joint_names)},
    }
    rows = {name: values.copy() for name, values in table.rows.items()}
    return in_memory("meshes", frames=table.frames, rows=rows, columns=columns, group_attrs=groups)


@pytest.mark.parametrize("protocol", [n for n in PROTOCOLS if n not in ("scorehmr", "keypoints")])
def test_zero_on_the_truth_wherever_it_stands(data: SynthData, protocol: str) -> None:
    for estimate in (meshes(data), meshes(data, change="transl", by=0.7)):
        scores = run(estimate, data, None, EvaluateParams(protocol=protocol), RunOptions())
        for name in ("mpjpe", "pa_mpjpe", "mpve"):
            assert scores.read(f"errors/{name}").max() < 0.01
        assert scores.attrs["summary"]["scored"] == scores.n_rows == 8


def test_a_wrong_shape_has_vertex_error_and_a_taller_body_no_pa_error_to_speak_of(data: SynthData) -> None:
    summary = run(meshes(data, change="betas", by=0.5), data, None, EvaluateParams(), RunOptions()).attrs["summary"]
    assert summary["mpve"] > 5
    assert summary["pa_mpjpe"] < summary["mpjpe"]
    # a wrong shape that stays the same does not shake
    assert summary["acceleration"] < 2


def test_batches_and_threads_change_no_digit(data: SynthData, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, threads = meshes(data, change="body_pose", by=0.05), torch.get_num_threads()
    whole = run(estimate, data, None, EvaluateParams(), RunOptions())
    for batch, chunk, count in ((1, 128, 1), (3, 1, 3), (8, 4, 2)):
        monkeypatch.setattr("stages.evaluation.scorer.CHUNK", chunk)
        torch.set_num_threads(count)
        again = run(estimate, data, None, EvaluateParams(), RunOptions(batch_size=batch))
        assert torch.get_num_threads() == count
        assert whole.attrs["summary"] == again.attrs["summary"]
        for name in whole.columns():
            np.testing.assert_array_equal(whole.read(name), again.read(name))
    torch.set_num_threads(threads)


def test_shards_give_the_same_to_the_last_digit(
    data: SynthData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.engine.runner.PART_ROWS", 3)
    estimate, summaries = meshes(data, change="body_pose", by=0.05), []
    for count in (1, 3):
        out = tmp_path / f"{count}.scores.h5"
        for shard in range(count):
            run(estimate, data, out, EvaluateParams(), RunOptions(shard=(shard, count)))
        with open_artefact(out) as table:
            summaries.append(table.attrs["summary"])
    assert summaries[0] == summaries[1]


def test_failed_rows_are_left_out_and_counted(data: SynthData) -> None:
    estimate = meshes(data)
    estimate.rows["status"][3], estimate.rows["error"][3] = 1, "for the test"
    summary = run(estimate, data, None, EvaluateParams(), RunOptions()).attrs["summary"]
    assert (summary["rows"], summary["scored"], summary["failed"]) == (8, 7, 1)


def test_acceleration_needs_both_neighbours(data: SynthData) -> None:
    before, after = neighbours(data.detections)
    assert before.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert after.tolist() == [1, 2, 3, 4, 5, 6, 7, -1]
    scores = run(meshes(data), data, None, EvaluateParams(), RunOptions())
    assert np.isnan(scores.read("errors/acceleration")).tolist() == [True] + 6 * [False] + [True]


@pytest.mark.parametrize("of", ["source", "view"])
def test_two_clips_or_views_share_no_acceleration(data: SynthData, of: str) -> None:
    """The second half of the frames comes from another clip, or camera: three frames of each have both neighbours."""
    table, estimate = data.detections, meshes(data)
    number = table.frames[of].copy()
    try:
        table.frames[of][4:] = estimate.frames[of][4:] = number[4:] + 1
        scores = run(estimate, data, None, EvaluateParams(), RunOptions())
    finally:
        table.frames[of][:] = number
    missing = np.isnan(scores.read("errors/acceleration")).tolist()
    assert missing == [True, False, False, True, True, False, False, True]


def test_what_cannot_be_compared_is_refused(data: SynthData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no protocol"):
        run(meshes(data), data, None, EvaluateParams(protocol="mine"), RunOptions())
    with pytest.raises(ArtefactError, match="rows"):
        other = SynthData(synth.run("synth-video", tmp_path / "x.detections.h5", SynthParams(pictures=3), RunOptions()))
        run(meshes(data), other, None, EvaluateParams(), RunOptions())
    assert evaluate.mean_rows(run(meshes(data), data, None, EvaluateParams(), RunOptions()))["protocol"] == "body"
