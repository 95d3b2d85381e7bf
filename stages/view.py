"""meshes (and detections) -> images for people: overlays, views from elsewhere, skeletons, videos, an HTML report.

Bodies are drawn over the images by a z-buffer in torch (geometry/rasterizer.py), so no display or OpenGL is needed.

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
from stages.loaders.people import as_artefact
from stages.params import ViewParams
from stages.params.rules import check
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
    """Write images and videos to the folder `out` (or, where its name ends in .html, the report alone).

    At least one of meshes and detections. Returns what was written: out, report, pictures, videos, rerun. Raises
    InputError (an image is missing or has changed), AssetError (body or extra missing), UsageError.
    """
    params = check(params)
    _check(run)
    viewer = _viewer(meshes, detections, params, run.device)
    frames = np.arange(viewer.table.n_frames)[: params.limit]
    if run.dry_run:
        run.report.note(f"would draw {len(frames)} frames into {out}")
        return {"out": str(out)}
    report_only = out.suffix.lower() in (".html", ".htm")
    folder = out.parent if report_only else out
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder} is a file", "name a folder, or a file that ends in .html")
    folder.mkdir(parents=True, exist_ok=True)
    report = HtmlReport(viewer, frames) if params.report or report_only else None
    writer = OverlayWriter(viewer, folder, files=params.pictures and not report_only, report=report)
    run.report.start("view", len(frames), unit="frames")
    for source, group in by_source(viewer.table, frames):
        writer.draw(source, group, run.report)
    run.report.finish()
    result: dict[str, Any] = {"out": str(out), "pictures": writer.images, "videos": writer.videos}
    if report is not None:
        result["report"] = str(report.write(out if report_only else folder / "report.html", writer.videos))
    if params.rerun:
        result["rerun"] = str(write_scene(viewer, frames, folder / "scene.rrd"))
    return result


def run_files(
    table: Path,
    detections: Path | None,
    out: Path,
    params: ViewParams = ViewParams(),
    options: RunOptions = RunOptions(),
) -> dict[str, Any]:
    """As `run`, for a file that holds either meshes or detections."""
    first = open_artefact(table)
    if first.kind == "detections" and detections is None:
        return run(None, first, out, params, options)
    if first.kind != "meshes":
        other = " first, then --detections" if first.kind == "detections" else ""
        raise ArtefactError(f"{table} holds {first.kind}, meshes are needed here{other}")
    return run(first, detections, out, params, options)


def _viewer(
    meshes: Path | Artefact | None, detections: Path | Artefact | None, params: ViewParams, device: str
) -> Viewer:
    """The viewer of tables that belong together, after all that can be refused before a body is loaded."""
    inputs = {"meshes": meshes, "detections": detections}
    tables = {role: as_artefact(table, role) for role, table in inputs.items() if table is not None}
    if not tables:
        raise UsageError("nothing to look at", "give a meshes or a detections file")
    check_rows_agree(tables)
    if params.rerun:
        require_rerun()
    return Viewer(tables.get("meshes"), tables.get("detections"), params, resolve_device(device))


def _check(run: RunOptions) -> None:
    """Refuse options that mean nothing here before anything is loaded."""
    if run.shard != (0, 1) or run.fresh:
        raise UsageError("hmr view writes images, not an artefact: it has no --shard and no --fresh")
