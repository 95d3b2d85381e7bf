"""Where parity cases come from: `pytest tests/parity --fixtures DIR`, by default ../shared/parity.

DIR is a folder like ../shared/parity (sub-folders dpmesh, scorehmr, postometro) or one such sub-folder. Index files and
.npz cases are read in DIR alone; manifests, bodies and weights.py in DIR or else in ../shared/parity. A family that DIR
does not hold is skipped.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"


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
    """The parity files of one family (dpmesh, scorehmr or postometro)."""

    def __init__(self, family: str, root: Path) -> None:
        self.family = family
        self.held = holds(root, family)
        self.folder = root / family if (root / family).is_dir() else root
        self.shared = SHARED / family
        self.weights = self._weights(root)

    def _weights(self, root: Path) -> ModuleType:
        path = next(
            p
            for p in (
                self.folder / "weights.py",
                root / "weights.py",
                root.parent / "weights.py",
                SHARED / "weights.py",
            )
            if p.exists()
        )
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
        """An index file (fixtures.json, cases.json, tolerances.json), in DIR, else the shared one."""
        return json.loads(self.find(name).read_text())

    def find(self, name: str) -> Path:
        """A manifest, body or index file: in DIR, else in ../shared/parity."""
        return next((p for p in (self.folder / name, self.shared / name) if p.exists()), self.shared / name)


def fixtures_of(config: pytest.Config, family: str) -> Fixtures:
    return Fixtures(family, Path(config.getoption("--fixtures")).resolve())
