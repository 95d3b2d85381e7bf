"""What Python users may rely on: the docstring's example runs, every name is there, the import is cheap."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stages
from stages import open_artefact

HEAVY = ("torch", "numpy", "h5py", "cv2", "scipy", "PIL")


def example() -> str:
    """The indented lines of the docstring."""
    lines = (stages.__doc__ or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))


def test_the_example_of_the_docstring_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example(), "stages.__doc__", "exec"), names)
    assert names["pose"].shape == (3, 23, 3) and names["transl"].shape == (3, 3)
    assert (names["transl"][:, 2] > 1).all()  # before the camera
    assert (tmp_path / "out" / "report.html").is_file() and list((tmp_path / "out" / "models").iterdir())
    printed = float(capsys.readouterr().out.splitlines()[-1])
    assert 30 < printed < 250 and printed == pytest.approx(names["scores"].attrs["summary"]["mpjpe"])
    with open_artefact(names["written"]["refined"]) as whole:  # the chain and the stages say the same
        np.testing.assert_allclose(names["refined"].read("joints/xyz"), whole.read("joints/xyz"), atol=1e-5)


def test_every_public_name_is_there() -> None:
    assert set(stages.__all__) <= set(dir(stages))
    for name in stages.__all__:
        assert getattr(stages, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = stages.nonsense


def test_importing_stages_imports_nothing_heavy() -> None:
    code = f"import sys, stages, stages.params, stages.errors; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
