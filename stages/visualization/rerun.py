"""`hmr view --rerun`: the frames, cameras, bodies and keypoints as a recording for the rerun viewer (extra `rerun`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.errors import AssetError


def require_rerun() -> Any:
    """The module. Raises AssetError naming the extra where it is missing."""
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise AssetError("--rerun needs the rerun-sdk package", 'pip install "hmr[rerun]"') from error


def write_scene(viewer: Any, frames: np.ndarray, path: Path) -> Path:
    """A .rrd file: timeline `frame`; photo in its camera, one mesh per person (metres, OpenCV camera), keypoints."""
    rr = require_rerun()
    recording = rr.RecordingStream("hmr")
    recording.save(str(path))
    recording.log("camera", rr.ViewCoordinates.RDF, static=True)
    everyone: set[str] = set()
    for frame in frames:
        recording.set_time("frame", sequence=int(frame))
        if viewer.table.frames["status"][frame] != OK:
            continue
        scene = viewer.scene(int(frame))
        recording.log("camera/photo", rr.Pinhole(image_from_camera=scene.K, resolution=scene.size))
        recording.log("camera/photo", rr.Image(scene.photo).compress(jpeg_quality=85))
        here = _people(rr, recording, viewer, scene)
        # What is logged stays until it is cleared.
        for gone in everyone - here:
            recording.log(gone, rr.Clear(recursive=True))
        everyone |= here
    recording.flush()
    return path


def _people(rr: Any, recording: Any, viewer: Any, scene: Any) -> set[str]:
    """Log the people of a frame; returns their entity paths."""
    paths = set()
    for k, row in enumerate(scene.rows):
        name = viewer.label[row].lstrip("#")
        colour = np.round(255 * scene.colour[k]).astype(np.uint8)
        if scene.vertices is not None:
            body = viewer.bodies.body
            paint = np.broadcast_to(colour, (len(body.v_template), 3))
            mesh = rr.Mesh3D(
                vertex_positions=scene.vertices[k].cpu().numpy(),
                triangle_indices=body.faces.cpu().numpy().astype(np.uint32),
                vertex_colors=paint,
            )
            recording.log(f"camera/person/{name}", mesh)
            paths.add(f"camera/person/{name}")
        if scene.sticks is not None:
            xy, seen, bones, _ = scene.sticks
            lines = [xy[k, [a, b]] for a, b in bones if seen[k, a] and seen[k, b]]
            recording.log(f"camera/photo/{name}", rr.LineStrips2D(lines, colors=colour))
            paths.add(f"camera/photo/{name}")
    return paths
