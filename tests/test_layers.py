"""Who may import whom (docs/design.md, section 3), read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("stages/**/*.py"), *ROOT.glob("hmr_cli/**/*.py")])
VERBS = {"detect", "heatmaps", "features", "recover", "refine", "evaluate", "export", "view"}
# package -> the only places that may import it
ONLY = {
    "h5py": ("stages/artefacts/hdf5.py",),
    "cv2": ("stages/visualization/draw.py", "stages/geometry/crops.py"),
    "typer": ("hmr_cli/",),
    "rich": ("hmr_cli/",),
    "diffusers": ("stages/models/dpmesh/",),
    "peft": ("stages/models/dpmesh/",),
    "mmpose": ("stages/models/detectors/mmpose",),
    "mmengine": ("stages/models/detectors/mmpose",),
    "smplx": (),  # non-commercial: the reference in tests, never under the product
    "chumpy": (),
    "torchvision": (),
    "anny": ("stages/training/free_body/build.py",),
    "pickle": ("stages/smpl/body_files.py", "stages/files/pickles.py"),
}
MODELS_MAY_NOT = {"stages.artefacts.table", "stages.media.frames", "stages.engine.runner"} | {
    f"stages.{verb}" for verb in VERBS
}


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_one_way(path: Path) -> None:
    here, wanted = name(path), imports(path)
    for module in wanted:
        places = ONLY.get(module.split(".")[0])
        assert places is None or here.startswith(places), f"{here} imports {module}"
    if here.startswith("stages/"):
        assert not {m for m in wanted if m.split(".")[0] == "hmr_cli"}
    if here.startswith("stages/models/"):
        assert not wanted & MODELS_MAY_NOT
        package = here.split("/")[2]
        if package != "__init__.py" and not package.endswith(".py"):
            others = {m.split(".")[2] for m in wanted if m.startswith("stages.models.") and len(m.split(".")) > 2}
            siblings = {
                p.name
                for p in (ROOT / "stages/models").iterdir()
                if p.is_dir() and p.name not in ("__pycache__", "backbones", "pct")
            }
            assert not (others & siblings) - {package}, f"{here} imports another model: {others}"
    if path.stem in VERBS and path.parent.name == "stages":
        assert not wanted & {f"stages.{verb}" for verb in VERBS - {path.stem}}, f"{here}: a verb imports a verb"


def test_files_are_small() -> None:
    long = {name(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"two rooms in one file: {long}"
