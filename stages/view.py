"""meshes (and detections) -> pictures for people: overlays, side and turning views, skeletons, videos, an HTML report.

Bodies are drawn over the photos by a z-buffer in torch (geometry/rasterizer.py), so no display or OpenGL is needed.

    hmr view photos.meshes.h5 --detections photos.detections.h5 -o pictures/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact
from stages.engine.device import resolve_device
from stages.engine.job import RunOptions
from stages.engine.provenance import check_rows_agree
from stages.errors import ArtefactError, UsageError
from stages.params import ViewParams, check
from stages.visualization.report import HtmlReport
from stages.visualization.rerun import require_rerun, write_scene
from stages.visualization.viewer import OverlayWriter, Viewer, by_source


def run(
    meshes: Path | Artefact | None,
    detections: Path | Artefact | None,
    out: Path,
    params: ViewParams = ViewParams(),
    run: RunOptions = RunOptions(),
) -> dict[str, Any]:
    """Write pictures to the folder `out` (or, where its name ends in .html, the report alone).

    At least one of meshes and detections. Returns what was written: folder, report, pictures, videos. Raises
    InputError (a photo is gone or has changed), AssetError (body or extra missing), UsageError.
    """
    params = check(params)
    _check(run)
    tables = {"meshes": _open(meshes, "meshes"), "detections": _open(detections, "detections")}
    given = {role: table for role, table in tables.items() if table is not None}
    if not given:
        raise UsageError("nothing to look at", "give a meshes or a detections file")
    check_rows_agree(given)
    if params.rerun:
        require_rerun()
    viewer = Viewer(tables["meshes"], tables["detections"], params, resolve_device(run.device))
    alone = out.suffix.lower() in (".html", ".htm")
    folder = out.parent if alone else out
    written = OverlayWriter(viewer, folder, pictures=params.pictures and not alone)
    frames = np.arange(viewer.table.n_frames)[: params.limit]
    if run.dry_run:
        run.report.note(f"would draw {len(frames)} frames into {out}")
        return {"out": str(out)}
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder} is a file", "name a folder, or a file that ends in .html")
    folder.mkdir(parents=True, exist_ok=True)
    report = HtmlReport(viewer, frames) if params.report or alone else None
    run.report.start("view", len(frames), unit="frames")
    for sort, group in by_source(viewer.table, frames):
        written.draw(sort, group, report, run.report)
    run.report.finish()
    result: dict[str, Any] = {"out": str(out), "pictures": written.pictures, "videos": written.videos}
    if report is not None:
        path = out if alone else folder / "report.html"
        result["report"] = str(report.write(path, written.videos))
    if params.rerun:
        result["rerun"] = str(write_scene(viewer, frames, folder / "scene.rrd"))
    return result


def run_files(
    table: Path, detections: Path | None, out: Path, params: ViewParams = ViewParams(), how: RunOptions = RunOptions()
) -> dict[str, Any]:
    """As `run`, for a file that holds either meshes or detections."""
    first = open_artefact(table)
    if first.kind == "detections" and detections is None:
        return run(None, first, out, params, how)
    if first.kind != "meshes":
        other = " first, then --detections" if first.kind == "detections" else ""
        raise ArtefactError(f"{table} holds {first.kind}, meshes are needed here{other}")
    return run(first, detections, out, params, how)


def _open(given: Path | Artefact | None, kind: str) -> Artefact | None:
    return given if given is None or isinstance(given, Artefact) else open_artefact(given, kind)


def _check(run: RunOptions) -> None:
    """Refuse options that mean nothing here before anything is loaded."""
    if run.shard != (0, 1) or run.fresh:
        raise UsageError("hmr view writes pictures, not an artefact: it has no --shard and no --fresh")
