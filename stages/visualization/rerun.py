"""`hmr view --rerun`: the frames, cameras, bodies and keypoints as a recording for the rerun viewer (extra `rerun`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.errors import AssetError
from stages.visualization.viewer import FrameView, Viewer


def require_rerun() -> Any:
    """The module. Raises AssetError naming the extra where it is missing."""
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise AssetError("--rerun needs the rerun-sdk package", 'pip install "hmr-toolchain[rerun]"') from error


def write_scene(viewer: Viewer, frames: np.ndarray, path: Path) -> Path:
    """A .rrd file: timeline `frame`; image in its camera, one mesh per person (metres, OpenCV camera), keypoints."""
    rr = require_rerun()
    recording = rr.RecordingStream("hmr")
    recording.save(str(path))
    recording.log("camera", rr.ViewCoordinates.RDF, static=True)
    logged: set[str] = set()
    for frame in frames:
        recording.set_time("frame", sequence=int(frame))
        if viewer.table.frames["status"][frame] != OK:
            continue
        view = viewer.frame_view(int(frame))
        recording.log("camera/photo", rr.Pinhole(image_from_camera=view.K, resolution=view.size))
        recording.log("camera/photo", rr.Image(view.image).compress(jpeg_quality=85))
        paths = _log_people(rr, recording, viewer, view)
        # What is logged stays until it is cleared.
        for path_of_absent in logged - paths:
            recording.log(path_of_absent, rr.Clear(recursive=True))
        logged |= paths
    recording.flush()
    return path


def _log_people(rr: Any, recording: Any, viewer: Viewer, view: FrameView) -> set[str]:
    """Log the people of a frame; returns their entity paths."""
    paths = set()
    for k, row in enumerate(view.rows):
        name = viewer.label[row].lstrip("#")
        colour = np.round(255 * view.colour[k]).astype(np.uint8)
        if view.vertices is not None and viewer.bodies is not None:
            body = viewer.bodies.body
            paint = np.broadcast_to(colour, (len(body.v_template), 3))
            mesh = rr.Mesh3D(
                vertex_positions=view.vertices[k].cpu().numpy(),
                triangle_indices=body.faces.cpu().numpy().astype(np.uint32),
                vertex_colors=paint,
            )
            recording.log(f"camera/person/{name}", mesh)
            paths.add(f"camera/person/{name}")
        if view.sticks is not None:
            visible = view.sticks.visible[k]
            lines = [view.sticks.xy[k, [a, b]] for a, b in view.sticks.bones if visible[a] and visible[b]]
            recording.log(f"camera/photo/{name}", rr.LineStrips2D(lines, colors=colour))
            paths.add(f"camera/photo/{name}")
    return paths
