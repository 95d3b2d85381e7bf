"""Settings: what is refused, what "not given" is, and what older artefacts stored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stages.errors import UsageError
from stages.params import (
    DetectParams,
    ExportParams,
    HeatmapsParams,
    ImportParams,
    RecoverParams,
    RefineParams,
    SynthParams,
    TrainEmbeddedParams,
    TrainPostoMetroParams,
    ViewParams,
)
from stages.params.rules import check
from stages.params.stored import from_json, to_json
from tests.helpers.cli import hmr

# How the first version stored its defaults, which fingerprints cover. Settings that came later are not in here.
STORED = {
    SynthParams: '{"noise": true, "pictures": 0, "poses": ""}',
    RecoverParams: '{"body": "", "focal": "row", "gender": "neutral", "model": ""}',
    ImportParams: '{"focal": 0.0, "joint_set": "", "margin": 0.1, "min_keypoints": 1, "min_score": 0.0, "size": ""}',
    DetectParams: '{"detector": "auto", "detector_config": "", "every": 1, "focal": null, "fov": null, "max_people": '
    '0, "max_pixels": 100000000, "min_score": null, "tracks": "video", "views": false}',
    RefineParams: '{"body": "", "cameras": "", "fill_gaps": false, "fit_prior": 0.0, "fit_steps": 60, "hips": true, '
    '"hypotheses": 1, "keypoint_weight": 0.0, "loops": 0, "max_gap": 30, "method": "score", "min_joints": 3, '
    '"min_score": 0.0, "mode": "frame", "preset": "default", "shape": "track", "smooth": 30.0, "stats": ""}',
}


@pytest.mark.parametrize("cls", STORED)
def test_defaults_are_stored_as_before_and_read_back_as_not_given(cls: type) -> None:
    assert json.loads(to_json(cls())).items() >= json.loads(STORED[cls]).items()
    assert from_json(cls, STORED[cls]) == cls()
    unset = [name for name, value in vars(cls()).items() if value is None]
    assert unset and from_json(cls, json.dumps(dict.fromkeys(unset))) == cls()


def test_what_stands_for_not_given_becomes_none() -> None:
    assert check(DetectParams(max_people=0, detector_config="")) == DetectParams()
    assert check(ViewParams(limit=0, root="", body="")) == ViewParams()
    assert check(TrainPostoMetroParams(rate=0.0)).rate is None
    assert check(RefineParams(fit_prior=0.0)).fit_prior == 0.0  # a weight of nothing, not a weight that is not given


@pytest.mark.parametrize(
    ("params", "says", "hint"),
    [
        (RefineParams(mode="up"), "--mode up: no such choice", "one of frame, views, video"),
        (RefineParams(smooth=math.inf), "--smooth inf: must be 0 or more", ""),
        (RefineParams(smooth=math.nan), "--smooth nan: must be 0 or more", ""),
        (RefineParams(min_score=math.nan), "--min-score nan: must be a finite number", ""),
        (RefineParams(min_joints=0), "--min-joints 0: must be 1 or more", ""),
        (RefineParams(loops=-1), "--loops -1: must be 1 or more", ""),
        (DetectParams(fov=180.0), "--fov 180.0: must be above 0, below 180 (degrees)", ""),
        (DetectParams(fov=0.0), "--fov 0.0: must be above 0, below 180 (degrees)", ""),
        (DetectParams(min_score=1.5), "--min-score 1.5: must be from 0 to 1", ""),
        (HeatmapsParams(threshold=1.0), "--threshold 1.0: must be 0 or more, below 1", ""),
        (HeatmapsParams(sigma=0.0), "--sigma 0.0: must be above 0 (heatmap px)", ""),
        (TrainEmbeddedParams(blocks=(1, 0)), "--blocks 0: must be 1 or more", ""),
        (ExportParams(max_gap=-1.0), "--max-gap -1.0: must be 0 or more (s)", ""),
        (ViewParams(supersample=5), "--supersample 5: must be from 1 to 4", ""),
    ],
)
def test_values_out_of_range_are_refused_by_flag(params: Any, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(params)
    assert caught.value.message == says and caught.value.hint == hint


def test_limits_themselves_and_a_gap_without_end_are_allowed() -> None:
    for params in (DetectParams(min_score=0.0), DetectParams(min_score=1.0), ExportParams(max_gap=math.inf)):
        assert check(params) is params


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"max_people": "three"}, "it must be a whole number"),
        ({"max_people": 1e400}, "it must be a whole number"),
        ({"detector_config": 3}, "it must be a text"),
        ({"views": 1}, "it must be true or false"),
        ({"focal": True}, "it must be a number"),
    ],
)
def test_stored_values_of_another_type_are_refused(stored: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_json(DetectParams, json.dumps(stored))
    assert caught.value.hint == says


def test_flags_are_checked_before_any_file_is_read(tmp_path: Path) -> None:
    """`hmr import` reads the other program's file before the stage runs."""
    done = hmr("import", "coco", tmp_path / "none.json", "-o", tmp_path / "a.h5", "--margin", "-1")
    assert (done.returncode, done.stderr) == (2, "hmr: --margin -1.0: must be 0 or more\n")


def test_the_command_line_and_a_file_of_settings_are_checked_alike(tmp_path: Path) -> None:
    """Before any input is opened: neither file exists."""
    (tmp_path / "bad.json").write_text('{"mode": "up"}')
    for flags in (["--mode", "up"], ["--params-from", tmp_path / "bad.json"]):
        done = hmr("refine", tmp_path / "a.h5", "--detections", tmp_path / "b.h5", "-o", tmp_path / "c.h5", *flags)
        assert done.returncode == 2
        assert done.stderr == "hmr: --mode up: no such choice -> one of frame, views, video\n"
