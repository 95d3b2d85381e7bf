"""Wavefront OBJ: one posed mesh as text, y up, seen along -z, as OBJ readers take it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from stages.files.atomic import write_bytes
from stages.formats.glb import CAMERA_TO_GLTF
from stages.smpl.body import Body


class ObjWriter:
    """Writes meshes of one body. The faces are formatted once."""

    def __init__(self, body: Body) -> None:
        self.body = body
        faces = (body.faces.cpu().numpy() + 1).tolist()
        self.faces = "".join(f"f {a} {b} {c}\n" for a, b, c in faces)

    def write(self, path: Path, vertices: Tensor, name: str) -> Path:
        """The file of vertices (V, 3) in the camera frame, whole or not at all."""
        points = (vertices.cpu() @ CAMERA_TO_GLTF.T).tolist()
        head = f"# hmr: {self.body.name} ({self.body.licence}); metres, y up, camera at the origin\no {name}\n"
        text = head + "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in points) + self.faces
        write_bytes(path, text.encode())
        return path
