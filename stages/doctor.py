"""`hmr doctor`: what works on this machine, what is missing, and the fix for each.

    hmr doctor --json

Nothing is downloaded and nothing is written; every check is independent: one that breaks does not stop the others.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# module -> (distribution, lowest version, needed for). The floors for torch, OpenCV and h5py are security floors.
CORE = {
    "torch": ("torch", "2.10", "every network"),
    "numpy": ("numpy", "1.26.4", "everything"),
    "scipy": ("scipy", "1.11", "matching, SMPL files"),
    "h5py": ("h5py", "3.12", "artefacts"),
    "cv2": ("opencv-python", "4.12", "images"),
    "PIL": ("pillow", "10.3", "images"),
    "av": ("av", "13", "video"),
    "ai_edge_litert": ("ai-edge-litert", "2.0", "detector blazepose"),
    "roma": ("roma", "1.5", "rotations"),
    "diffusers": ("diffusers", "0.35", "DPMesh"),
    "peft": ("peft", "0.17", "DPMesh"),
    "transformers": ("transformers", "4.56", "ViTPose, RT-DETR"),
    "safetensors": ("safetensors", "0.4.5", "weights"),
    "pygltflib": ("pygltflib", "1.16", "GLB export"),
}
EXTRAS = (
    ("onnxruntime", 'pip install "hmr-toolchain[rtmpose]"', "detector rtmpose"),
    ("mmpose", 'pip install "hmr-toolchain[mmpose]" && pip install --no-deps mmpose==1.3.2', "detector mmpose"),
    ("rerun-sdk", 'pip install "hmr-toolchain[rerun]"', "hmr view --rerun"),
    ("smplx", 'pip install "hmr-toolchain[smplx]"', "the reference body layer in tests (non-commercial licence)"),
)
SPACE, MEMORY = 5e9, 4e9  # bytes below which doctor says so


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: `ready`, what was `found`, what it is `needed_for`, and the `hint` when not ready."""

    name: str
    ready: bool
    found: str
    needed_for: str
    hint: str = ""
    required: bool = False


def run() -> list[Check]:
    """Every check of this machine, required ones first."""
    groups: tuple[Callable[[], Iterable[Check]], ...] = (
        *(_python, _core, _devices, _machine),
        *(_detector, _assets, _bodies, _extras),
    )
    checks: list[Check] = []
    for group in groups:
        try:
            checks += group()
        except Exception as error:  # one broken check must not hide the others
            name, problem = group.__name__.strip("_"), f"{type(error).__name__}: {error}"
            checks.append(Check(name, False, problem, "hmr", "run again with --debug and report it", required=True))
    checks = [dataclasses.replace(check, hint="") if check.ready else check for check in checks]
    return sorted(checks, key=lambda check: not check.required)


def _python() -> Iterator[Check]:
    ready = sys.version_info >= (3, 10)
    yield Check("python", ready, platform.python_version(), "everything", "Python 3.10 or newer", required=True)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


def _core() -> Iterator[Check]:
    for module, (distribution, lowest, why) in CORE.items():
        hint = f'pip install "{distribution}>={lowest}"'
        try:
            importlib.import_module(module)
            version = importlib.metadata.version(distribution)
        except ImportError as error:
            if "libGL" in str(error) or "libgthread" in str(error):
                hint = "apt install libgl1 libglib2.0-0 (or pip install opencv-python-headless instead)"
            yield Check(distribution, False, f"does not import: {error}", why, hint, required=True)
            continue
        old = _version(version) < _version(lowest)
        yield Check(distribution, not old, version, why, hint if old else "", required=True)


def _devices() -> Iterator[Check]:
    import torch

    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if cuda else "none"
    hint = "" if cuda else "install a CUDA build of torch; the embedded default needs none"
    yield Check("CUDA", cuda, name, "DPMesh and PostoMETRO at speed", hint)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and os.getloadavg()[0] > (os.cpu_count() or 1):
        hint = "export OMP_NUM_THREADS=1 on a busy machine, where waiting threads use up the processor"
        yield Check("OMP_NUM_THREADS", False, "not set, and this machine is busy", "speed", hint)


def _machine() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    yield Check("disk", free > SPACE, f"{free / 1e9:.0f} GB free here", "artefacts", "free some space", required=True)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check("memory", memory > MEMORY, f"{memory / 1e9:.0f} GB", "networks", "use a small --batch-size")


def _assets() -> Iterator[Check]:
    from stages.files.cache import status

    for name, ready, where, hint in status():
        yield Check(name, ready, str(where) if ready else f"nothing in {where}", "detectors", hint)


def _detector() -> Iterator[Check]:
    from stages.engine.device import resolve_device
    from stages.models.detectors.choice import best_ready, how_to_get, ranked

    device = resolve_device("auto")
    name, best = best_ready(device), ranked(device)[0]
    found = f"{name}, the best one for {device}" if name == best else f"{name}; {best} finds more people in crowds"
    yield Check("detector", name == best, found, "hmr detect, hmr run", how_to_get(best))


def _bodies() -> Iterator[Check]:
    from stages.smpl.body import load_body

    body = load_body("embedded")
    yield Check("body", True, f"{body.name} ({body.licence})", "every mesh", required=True)


def _extras() -> Iterator[Check]:
    for distribution, hint, why in EXTRAS:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            yield Check(distribution, False, "not installed", why, hint)
            continue
        yield Check(distribution, True, version, why)
