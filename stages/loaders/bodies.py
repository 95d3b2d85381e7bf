"""The bodies of a meshes artefact, row by row, for `hmr view`, `hmr export` and `hmr eval`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.errors import ArtefactError, AssetError
from stages.smpl.body import Body, load_body

SMPL = ("global_orient", "body_pose", "betas", "transl")


class BodyLoader:
    """Vertices and parameters of rows. `body` names another body (or file) than the artefact does.

    Raises AssetError for a body that is not on this machine, ArtefactError for a table that holds no bodies.
    """

    def __init__(self, table: Artefact, body: str | None = None, device: str = "cpu") -> None:
        self.table, self.device = table, device
        self.has_smpl = table.has("smpl/global_orient")
        self.has_vertices = table.has("vertices/xyz")
        if table.n_rows and not (self.has_smpl or self.has_vertices):
            raise ArtefactError(
                f"{table.path or 'the table'} holds neither smpl nor vertices", "hmr info FILE shows what it holds"
            )
        attrs = table.group_attrs("smpl") or table.group_attrs("vertices")
        self.body_name = body or str(attrs.get("body_model", "embedded")).split(" ")[0]
        self.body_name = "embedded" if self.body_name.startswith("hmr-body") else self.body_name
        self.gender = str(attrs.get("gender", "neutral"))
        self.body: Body = load_body(self.body_name, self.gender, device)
        count = table.shape("vertices/xyz")[1] if self.has_vertices else 0
        if table.n_rows and self.has_vertices and count != len(self.body.v_template):
            raise AssetError(
                f"the meshes have {count} vertices, the body {self.body_name} has {len(self.body.v_template)}",
                "--body names the body that they belong to (hmr body-model list)",
            )
        self.ok = table.rows["status"] == OK

    def smpl(self, rows: np.ndarray) -> dict[str, Tensor]:
        """global_orient (n, 3), body_pose (n, 23, 3), betas (n, 10), transl (n, 3); NaN for failed rows."""
        indices = torch.from_numpy(np.asarray(rows, np.int64))
        return {name: value[indices].to(self.device) for name, value in self._smpl.items()}

    @functools.cached_property
    def _smpl(self) -> dict[str, Tensor]:
        """All rows at once: 340 bytes each, and single rows are slow to read. Tensors, because torch aligns what it
        copies from them, and products of small matrices differ in the last bit with the alignment."""
        return {name: torch.from_numpy(self.table.read(f"smpl/{name}")) for name in SMPL}

    def vertices(self, rows: np.ndarray) -> Tensor:
        """(n, V, 3) camera frame, metres: the network's where it predicts them, else the body's; NaN if failed."""
        return self.posed(rows)[0].contiguous()

    @torch.no_grad()
    def posed(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Vertices (n, V, 3), perhaps as the view that `Body.posed` gives, and joints of the kinematic tree (n, 24, 3),
        None where the network predicted vertices."""
        rows = np.asarray(rows, np.int64)
        if self.has_vertices:
            return torch.from_numpy(self.table.read("vertices/xyz", rows)).to(self.device), None
        if not len(rows):
            return torch.zeros(0, len(self.body.v_template), 3, device=self.device), None
        smpl = self.smpl(rows)
        rotmat = self.body.rotmat(smpl["global_orient"], smpl["body_pose"])
        return self.body.posed(rotmat, smpl["betas"], smpl["transl"])

    @torch.no_grad()
    def joints(self, rows: np.ndarray, joint_set: str) -> Tensor | None:
        """(n, J, 3) of a joint set, camera frame, metres; None where this body has no such points."""
        try:
            if self.has_vertices:
                return self.body.regress(self.vertices(rows), joint_set)
            smpl = self.smpl(rows)
            rotmat = self.body.rotmat(smpl["global_orient"], smpl["body_pose"])
            return self.body.joints(rotmat, smpl["betas"], smpl["transl"], joint_set)
        except AssetError:
            return None

    def licence_note(self) -> str:
        """The notice for everything that contains this body's shape; '' for a free body."""
        licence = self.body.licence
        free = licence.lower().startswith(("apache-2.0", "cc0", "mit", "public domain"))
        return "" if free else f"holds shapes of the body {self.body.name} ({licence or 'licence unknown'})"


def body_rows(table: Artefact) -> dict[int, np.ndarray]:
    """Rows of each frame, in order."""
    order = np.argsort(table.rows["frame"], kind="stable")
    frames = table.rows["frame"][order]
    starts = np.searchsorted(frames, np.arange(table.n_frames + 1))
    return {f: order[starts[f] : starts[f + 1]] for f in range(table.n_frames)}


def stems(names: list[str]) -> list[str]:
    """File stems for frames, one each, safe on any file system: same base names in two folders stay apart."""
    result: list[str] = []
    used: set[str] = set()
    for name in names:
        path, _, number = str(name).partition("#")
        text = Path(path).stem + (f"_{number}" if number else "")
        text = "".join(c if c.isalnum() or c in "-_. " else "_" for c in text).strip(" .-")[:80] or "frame"
        stem, k = text, 2
        while stem.casefold() in used:
            stem, k = f"{text}-{k}", k + 1
        used.add(stem.casefold())
        result.append(stem)
    return result
