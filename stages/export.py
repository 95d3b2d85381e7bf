"""meshes -> files for other programs: npz (AMASS layout), OBJ, GLB with skinned skeletons.

A photo gives one GLB with everybody in it and one npz and OBJ per person; a video one GLB and one npz per track.

    hmr export photos.meshes.h5 -o models/ --format glb,npz
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import RunOptions
from stages.errors import AssetError, InputError, UsageError
from stages.files.atomic import write_bytes
from stages.formats.amass import to_amass, write_amass
from stages.formats.glb import FLIP, GltfScene
from stages.loaders.bodies import BodyLoader
from stages.loaders.motion import Sequence, even, has_time, motion, sequences
from stages.params import ExportParams, check
from stages.visualization import draw

FORMATS = ("glb", "npz", "obj")


def run(
    meshes: Path | Artefact, out: Path, params: ExportParams = ExportParams(), run: RunOptions = RunOptions()
) -> dict[str, Any]:
    """Write the files to the folder `out`, or to the file `out` when its suffix is a format and one file comes of it.

    Returns {"out", "files", "people", "note"}. Raises UsageError, InputError (no such parameters in the table),
    AssetError (body missing, or its licence does not let shapes be passed on).
    """
    params = check(params)
    formats, alone = _formats(params, out)
    _check(run)
    table = meshes if isinstance(meshes, Artefact) else open_artefact(meshes, "meshes")
    people = BodyLoader(table, params.body, resolve_device(run.device))
    shapes = people.licence_note()
    if shapes and not params.licensed_body and table.n_rows and set(formats) - {"npz"}:
        raise AssetError(
            f"glb and obj would hold shapes of {people.body.name} ({people.body.licence or 'licence unknown'})",
            "npz holds parameters alone; if your licence of the body allows it: --licensed-body",
        )
    if table.n_rows and "npz" in formats and not people.has_smpl:
        raise InputError("the meshes hold vertices without SMPL parameters, npz needs those", "export glb or obj")
    everybody = sequences(people)
    jobs = [job for name in formats for job in MAKERS[name](people, everybody, params)]
    if not jobs:
        run.report.note("nobody is in these meshes: no file was written")
        return {"out": str(out), "files": [], "people": 0, "note": "nobody"}
    if alone and len(jobs) != 1:
        raise UsageError(f"-o {out}: {len(jobs)} files would be written", "name a folder")
    if run.dry_run:
        run.report.note(f"would write {len(jobs)} files to {out}")
        return {"out": str(out)}
    if not alone and out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file", f"name a folder, or a file that ends in .{', .'.join(FORMATS)}")
    (out.parent if alone else out).mkdir(parents=True, exist_ok=True)
    run.report.start("export", len(jobs), unit="files")
    files = []
    for name, write in jobs:
        files.append(str(write(out if alone else out / name)))
        run.report.advance(1)
    run.report.finish()
    note = f"{shapes}: do not pass these files on without a licence" if shapes and set(formats) - {"npz"} else ""
    if note:
        run.report.warn(note)
    return {"out": str(out), "files": files, "people": len(everybody), "note": note}


Job = tuple[str, Callable[[Path], Path]]


def _glb(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> list[Job]:
    """One file per photo or video. Rows of a video that belong to no track are left out."""
    table = people.table
    timed = has_time(table.frames)
    scenes: dict[str, list[Sequence]] = {}
    for one in everybody:
        if not timed[table.rows["frame"][one.rows[0]]] or one.name.startswith("track"):
            scenes.setdefault(one.scene, []).append(one)

    def write(path: Path, group: list[Sequence]) -> Path:
        first = int(table.rows["frame"][group[0].rows[0]])
        about = {"picture": str(table.frames["name"][first]), "body": people.body.name, "licence": people.body.licence}
        about |= {"fingerprint": table.fingerprint}
        scene = GltfScene(people.body, about, people.licence_note())
        scene.add_camera(table.frames["K"][first].astype(np.float64), tuple(table.frames["size"][first].tolist()))
        # Keyframes of all people share the clock of the video.
        start = min(float(np.nan_to_num(table.frames["time"][table.rows["frame"][one.rows[0]]])) for one in group)
        for place, one in enumerate(group):
            key = one.number if one.name.startswith("track") else place
            colour = draw.colours(np.array([key]))[0]
            if not people.has_smpl:
                scene.add_mesh(people.vertices(one.rows)[0], one.name, colour)
                continue
            moved = motion(people, one)
            if len(one.rows) > 1:
                began = float(table.frames["time"][table.rows["frame"][one.rows[0]]]) - start
                moved = dataclasses.replace(moved, time=moved.time + began)
            scene.add_person(moved, one.name, colour, bind="t" if params.bind == "t" else "pose")
        return scene.write(path)

    return [(f"{name}.glb", lambda path, group=group: write(path, group)) for name, group in scenes.items()]  # type: ignore[misc]


def _npz(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> list[Job]:
    """One file per person, per stretch where a track has long gaps."""
    jobs: list[Job] = []
    for one in everybody:
        gaps = np.diff(one.time)
        fps = float(np.round(1 / np.median(gaps[gaps > 0]), 3)) if (gaps > 0).any() else 30.0
        pieces = even(motion(people, one), fps, params.max_gap)
        for number, piece in enumerate(pieces):
            ending = f"_{number}" if len(pieces) > 1 else ""
            arrays = to_amass(piece, people.body, fps, camera=params.axes == "camera")
            jobs.append((f"{one.scene}_{one.name}{ending}.npz", lambda path, a=arrays: write_amass(path, a)))  # type: ignore[misc]
    return jobs


def _obj(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> list[Job]:
    """One file per row: the posed mesh, y up, looking along -z, as OBJ readers take it."""
    faces = (people.body.faces.cpu().numpy() + 1).tolist()
    tail = "".join(f"f {a} {b} {c}\n" for a, b, c in faces)

    def write(path: Path, row: int, name: str) -> Path:
        vertices = (people.vertices(np.array([row]))[0].cpu() @ FLIP.T).tolist()
        head = f"# hmr: {people.body.name} ({people.body.licence}); metres, y up, camera at the origin\no {name}\n"
        text = head + "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in vertices) + tail
        write_bytes(path, text.encode())
        return path

    jobs: list[Job] = []
    for one in everybody:
        for k, row in enumerate(one.rows):
            ending = f"_{k:06d}" if len(one.rows) > 1 else ""
            name = f"{one.scene}_{one.name}{ending}"
            jobs.append((f"{name}.obj", lambda path, r=int(row), n=name: write(path, r, n)))  # type: ignore[misc]
    return jobs


MAKERS = {"glb": _glb, "npz": _npz, "obj": _obj}


def _formats(params: ExportParams, out: Path) -> tuple[list[str], bool]:
    """The formats asked for, and whether `out` is one file (its suffix then decides)."""
    if out.suffix[1:].lower() in FORMATS and not out.is_dir():
        return [out.suffix[1:].lower()], True
    names = [name for name in params.format.replace(" ", "").lower().split(",") if name]
    wrong = [name for name in names if name not in FORMATS]
    if wrong or not names:
        raise UsageError(f"--format {params.format}: no such format", f"one or more of {', '.join(FORMATS)}")
    return list(dict.fromkeys(names)), False


def _check(run: RunOptions) -> None:
    if run.shard != (0, 1) or run.fresh:
        raise UsageError("hmr export writes files, not an artefact: it has no --shard and no --fresh")
