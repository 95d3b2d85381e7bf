"""meshes -> files for other programs: npz (AMASS layout), OBJ, GLB with skinned skeletons.

An image gives one GLB with everybody in it and one npz and OBJ per person; a video one GLB and one npz per track.

    hmr export photos.meshes.h5 -o models/ --format glb,npz
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import RunOptions
from stages.errors import AssetError, InputError, UsageError
from stages.formats.amass import to_amass, write_amass
from stages.formats.glb import GltfScene
from stages.formats.obj import ObjWriter
from stages.loaders.bodies import BodyLoader
from stages.loaders.motion import Sequence, even, has_time, motion, sequences
from stages.loaders.people import as_artefact
from stages.params import ExportParams
from stages.params.rules import check
from stages.visualization import draw

# A file to write: its name, and the function that writes it to a path.
Output = tuple[str, Callable[[Path], Path]]


def run(
    meshes: Path | Artefact, out: Path, params: ExportParams = ExportParams(), run: RunOptions = RunOptions()
) -> dict[str, Any]:
    """Write the files to the folder `out`, or to the file `out` when its suffix is a format and there is one file.

    Returns {"out", "files", "people", "note"}. Raises UsageError, InputError (no such parameters in the table),
    AssetError (body missing, or its licence does not let shapes be passed on).
    """
    params = check(params)
    formats, single = _formats(params, out)
    if run.shard != (0, 1) or run.fresh:
        raise UsageError("hmr export writes files, not an artefact: it has no --shard and no --fresh")
    people = BodyLoader(as_artefact(meshes, "meshes"), params.body, resolve_device(run.device))
    licence_note = people.licence_note() if set(formats) - {"npz"} else ""
    _check_contents(people, formats, params, licence_note)
    everybody = sequences(people)
    outputs = [output for name in formats for output in WRITERS[name](people, everybody, params)]
    if not outputs:
        run.report.note("nobody is in these meshes: no file was written")
        return {"out": str(out), "files": [], "people": 0, "note": "nobody"}
    if single and len(outputs) != 1:
        raise UsageError(f"-o {out}: {len(outputs)} files would be written", "name a folder")
    if run.dry_run:
        run.report.note(f"would write {len(outputs)} files to {out}")
        return {"out": str(out)}
    if not single and out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file", f"name a folder, or a file that ends in .{', .'.join(WRITERS)}")
    (out.parent if single else out).mkdir(parents=True, exist_ok=True)
    run.report.start("export", len(outputs), unit="files")
    files = []
    for name, write in outputs:
        files.append(str(write(out if single else out / name)))
        run.report.advance(1)
    run.report.finish()
    note = f"{licence_note}: do not pass these files on without a licence" if licence_note else ""
    if note:
        run.report.warn(note)
    return {"out": str(out), "files": files, "people": len(everybody), "note": note}


def _formats(params: ExportParams, out: Path) -> tuple[list[str], bool]:
    """The formats to write, and whether `out` is a single file (its suffix then decides)."""
    suffix = out.suffix[1:].lower()
    if suffix in WRITERS and not out.is_dir():
        return [suffix], True
    names = [name for name in params.format.replace(" ", "").lower().split(",") if name]
    if not names or not set(names) <= set(WRITERS):
        raise UsageError(f"--format {params.format}: no such format", f"one or more of {', '.join(WRITERS)}")
    return list(dict.fromkeys(names)), False


def _check_contents(people: BodyLoader, formats: list[str], params: ExportParams, licence_note: str) -> None:
    """Raise AssetError for shapes that must not be passed on, InputError for parameters that are not there."""
    if not people.table.n_rows:
        return
    if licence_note and not params.licensed_body:
        raise AssetError(
            f"glb and obj would hold shapes of {people.body.name} ({people.body.licence or 'licence unknown'})",
            "npz holds parameters alone; if your licence of the body allows it: --licensed-body",
        )
    if "npz" in formats and not people.has_smpl:
        raise InputError("the meshes hold vertices without SMPL parameters, npz needs those", "export glb or obj")


def _glb(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> Iterator[Output]:
    """One file per image or video. Rows of a video that belong to no track are left out."""
    table = people.table
    timed = has_time(table.frames)
    groups: dict[str, list[Sequence]] = {}
    for person in everybody:
        if not timed[_first_frame(table, person)] or person.tracked:
            groups.setdefault(person.scene, []).append(person)
    for name, group in groups.items():
        yield f"{name}.glb", functools.partial(_write_glb, people, group, params)


def _write_glb(people: BodyLoader, group: list[Sequence], params: ExportParams, path: Path) -> Path:
    """Everybody of one image or video, with its camera."""
    table = people.table
    first = _first_frame(table, group[0])
    extras = {"picture": str(table.frames["name"][first]), "body": people.body.name, "licence": people.body.licence}
    scene = GltfScene(people.body, extras | {"fingerprint": table.fingerprint}, people.licence_note())
    scene.add_camera(table.frames["K"][first].astype(np.float64), tuple(table.frames["size"][first].tolist()))
    # Keyframes of all people share the clock of the video.
    begin = [float(table.frames["time"][_first_frame(table, person)]) for person in group]
    start = float(np.nan_to_num(begin).min())
    for order, person in enumerate(group):
        colour = draw.colours(np.array([person.number if person.tracked else order]))[0]
        if not people.has_smpl:
            scene.add_mesh(people.vertices(person.rows)[0], person.name, colour)
            continue
        poses = motion(people, person)
        if len(person.rows) > 1:
            poses = dataclasses.replace(poses, time=poses.time + (begin[order] - start))
        scene.add_person(poses, person.name, colour, bind="t" if params.bind == "t" else "pose")
    return scene.write(path)


def _npz(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> Iterator[Output]:
    """One file per person, several where a track has long gaps."""
    for person in everybody:
        gaps = np.diff(person.time)
        fps = float(np.round(1 / np.median(gaps[gaps > 0]), 3)) if (gaps > 0).any() else 30.0
        pieces = even(motion(people, person), fps, params.max_gap)
        for number, piece in enumerate(pieces):
            ending = f"_{number}" if len(pieces) > 1 else ""
            arrays = to_amass(piece, people.body, fps, camera=params.axes == "camera")
            yield f"{person.scene}_{person.name}{ending}.npz", functools.partial(write_amass, arrays=arrays)


def _obj(people: BodyLoader, everybody: list[Sequence], params: ExportParams) -> Iterator[Output]:
    """One file per row."""
    writer = ObjWriter(people.body)

    def write(row: int, name: str, path: Path) -> Path:
        return writer.write(path, people.vertices(np.array([row]))[0], name)

    for person in everybody:
        for k, row in enumerate(person.rows):
            ending = f"_{k:06d}" if len(person.rows) > 1 else ""
            name = f"{person.scene}_{person.name}{ending}"
            yield f"{name}.obj", functools.partial(write, int(row), name)


def _first_frame(table: Artefact, person: Sequence) -> int:
    return int(table.rows["frame"][person.rows[0]])


WRITERS: dict[str, Callable[[BodyLoader, list[Sequence], ExportParams], Iterator[Output]]] = {
    "glb": _glb,
    "npz": _npz,
    "obj": _obj,
}
