"""Where a fixture is: in tests/fixtures, or else, for what may not be passed on, in ../shared beside the repository.

`--fixtures DIR` tests other parity cases: DIR is a folder like tests/fixtures/parity (sub-folders dpmesh, scorehmr,
postometro) or one such sub-folder. Index files and .npz cases are then read in DIR alone; manifests, bodies and
weights.py in DIR or else in the repository. A family that DIR does not hold is skipped.

    python -m tests.helpers.fixtures        writes tests/fixtures/SHA256SUMS anew
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1] / "fixtures"
SUMS = ROOT / "SHA256SUMS"
PARITY, CASES, PHOTOS, VIDEOS = (ROOT / name for name in ("parity", "cases", "photos", "videos"))
BESIDE = ROOT.parents[2] / "shared"


def find(relative: str) -> Path:
    """A file or folder like "photos/free": of the repository, else of ../shared, else the test is skipped."""
    places = ROOT / relative, BESIDE / relative, BESIDE / "testdata" / relative
    path = next((p for p in places if p.exists()), None)
    return path or pytest.skip(f"no ../shared/testdata/{relative}")


def sums() -> dict[str, str]:
    """The SHA-256 of every file of tests/fixtures but SHA256SUMS itself, by its path there."""
    files = sorted(p for p in ROOT.rglob("*") if p.is_file() and p != SUMS and "__pycache__" not in p.parts)
    return {p.relative_to(ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# An index file says whose cases a folder holds; PostoMETRO's have none.
MARKS = {"dpmesh": ("fixtures.json",), "scorehmr": ("cases.json", "tolerances.json")}


def holds(root: Path, family: str) -> bool:
    """Does DIR hold cases of this family, in a sub-folder of its name or directly?"""
    if (root / family).is_dir() or root.name == family:
        return True
    marked = {name for name, files in MARKS.items() if any((root / file).exists() for file in files)}
    others = any((root / name).is_dir() for name in (*MARKS, "postometro"))
    return family in marked or (family == "postometro" and not marked and not others)


class Fixtures:
    """The parity files of one family (dpmesh, scorehmr or postometro): the repository's, or those of another folder."""

    def __init__(self, family: str, root: Path = PARITY) -> None:
        self.family = family
        self.held = holds(root, family)
        self.folder = root / family if (root / family).is_dir() else root
        self.ours = PARITY / family
        self.weights = self._weights(root)

    def _weights(self, root: Path) -> ModuleType:
        places = (self.folder, root, root.parent, PARITY)
        path = next(p for folder in places if (p := folder / "weights.py").exists())
        spec = importlib.util.spec_from_file_location("parity_weights", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def cases(self, stem: str) -> list[Path]:
        """The files of one case and its suffixed siblings: model_r50.npz, model_r50_2.npz, ..."""
        if not self.held:
            return []
        return sorted(
            p for p in self.folder.glob(f"{stem}*.npz") if p.stem == stem or p.stem[len(stem) + 1 :].isdigit()
        )

    def index(self, name: str) -> Any:
        """An index file (fixtures.json, cases.json, tolerances.json) or manifest, read."""
        return json.loads(self.find(name).read_text())

    def find(self, name: str) -> Path:
        """A manifest, body or index file: in DIR, else in the repository."""
        return next((p for p in (self.folder / name, self.ours / name) if p.exists()), self.ours / name)


def fixtures_of(config: pytest.Config, family: str) -> Fixtures:
    return Fixtures(family, Path(config.getoption("--fixtures")).resolve())


def main() -> None:
    SUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in sums().items()))


if __name__ == "__main__":
    main()
