"""The body: SMPL's function from pose, shape and translation to vertices and joints, batched, on tensors.

Method: linear blend skinning with shape and pose blend shapes (Loper et al., "SMPL: a skinned multi-person linear
model", 2015, eq. 2 to 10). Conventions are those of the SMPL files: y up, facing +z, left = +x, metres; rotations
relative to the parent; the root rotates about the pelvis joint; the translation is added last. One class for real SMPL
files and for the free body that comes with the package; `topology` names the mesh, and regressors of another mesh are
refused.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stages.errors import AssetError
from stages.geometry.rotations import axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.smpl import body_files

# Sets whose points were annotated on photos; the others are centres of rotation and surface points.
_ANNOTATED = {"coco17", "body25", "openpose18", "blazepose33"}
CACHED = 32_768  # vertices skinned at a time: more do not fit into the processor's cache
BATCH_MULTIPLE = 16  # in batches of a multiple of this, a body's sums do not depend on its index in the batch


class BodyOutput(NamedTuple):
    """vertices (n, V, 3) and the 24 joints (n, 24, 3), metres."""

    vertices: Tensor
    joints: Tensor


class Body(nn.Module):
    """A body model: buffers only, no parameters. `.to()` gives a copy."""

    v_template: Tensor
    directions: Tensor
    num_betas: int
    J_regressor: Tensor
    weights: Tensor
    faces: Tensor
    joint_template: Tensor
    landmark_rows: Tensor
    joint_dirs: Tensor

    def __init__(self, *, parents: Sequence[int], name: str, topology: str, gender: str, licence: str) -> None:
        super().__init__()
        self.name, self.topology, self.gender, self.licence = name, topology, gender, licence
        self.parents = tuple(int(p) for p in parents)
        self.joint_names = joint_sets.SETS["smpl24"]
        self.landmarks: dict[str, int] = {}
        self.vertex_ids: dict[str, int] = {}
        self.added_regressors: set[str] = set()  # joint sets whose regressor was added, not derived
        self._levels = _levels(self.parents)
        self._skinning_groups: dict[Any, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_arrays(
        cls,
        v_template: Any,
        shapedirs: Any,
        posedirs: Any | None,
        J_regressor: Any,
        weights: Any,
        parents: Sequence[int],
        faces: Any,
        *,
        name: str = "body",
        topology: str = "smpl",
        gender: str = "neutral",
        licence: str = "",
        landmarks: Mapping[str, Any] | None = None,
        regressors: Mapping[str, Any] | None = None,
        vertex_ids: Mapping[str, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Body:
        """A body from SMPL's arrays: numpy, or torch on any device, which then is the body's (that of `v_template`).

        v_template (V, 3) · shapedirs (V, 3, B) · posedirs (V, 3, 207), None or all zero = no pose blend shapes ·
        J_regressor (24, V) · weights (V, 24) · parents 24, -1 for the root · faces (F, 3) · landmarks: name -> vertex
        number or weights (V,) of one surface point · regressors: joint set -> (J, V), replacing what is derived.
        """
        body = cls(parents=parents, name=name, topology=topology, gender=gender, licence=licence)
        template = _tensor(v_template).to(dtype)
        put = lambda key, x: body.register_buffer(key, x.to(template.device, dtype).clone())  # noqa: E731
        put("v_template", template)
        put("J_regressor", _tensor(J_regressor))
        put("weights", _tensor(weights))
        blends = [_tensor(x).to(template.device) for x in (shapedirs, posedirs) if x is not None]
        if not blends[-1].any():
            blends = blends[:1]
        put("directions", torch.cat([x.to(dtype) for x in blends], -1))
        body.num_betas = blends[0].shape[-1]
        body.register_buffer("faces", _tensor(faces).to(template.device, torch.int64).clone())
        # Rest joints are linear in the betas: (24, 3) and (24, 3, B).
        put("joint_template", body.J_regressor.double() @ body.v_template.double())
        put("joint_dirs", torch.einsum("jv,vcb->jcb", body.J_regressor.double(), body.shapedirs.double()))
        rows: list[Tensor] = []
        for key, value in (landmarks or {}).items():
            point = _tensor(value).to(template.device)
            if point.ndim == 0:
                point = torch.nn.functional.one_hot(point.long(), len(template))
            body.landmarks[key] = len(rows)
            rows.append(point.double())
        put("landmark_rows", torch.stack(rows) if rows else template.new_zeros(0, len(template)))
        for key, value in (regressors or {}).items():
            matrix, expected = _tensor(value), (len(joint_sets.get(key)), len(template))
            if tuple(matrix.shape) != expected:
                raise AssetError(
                    f"the regressor for {key} has shape {tuple(matrix.shape)}", f"needed: {expected}, joints x vertices"
                )
            put(f"regressor_{key}", matrix)
            body.added_regressors.add(key)
        body.vertex_ids = dict(vertex_ids or {})
        return body.eval()

    def to(self, *args: Any, **kwargs: Any) -> Body:
        """The body on another device or in another floating-point type, as for tensors: a copy, or itself if that
        changes nothing. Bodies are shared within a process, so one user must not move them under another."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device in (None, self.device) and dtype in (None, self.dtype):
            return self
        body = copy.copy(self)
        body._buffers, body._skinning_groups = dict(self._buffers), {}
        return nn.Module.to(body, *args, **kwargs)

    def double(self) -> Body:
        return self.to(torch.float64)

    @property
    def shapedirs(self) -> Tensor:
        """(V, 3, B) metres per unit of a beta."""
        return self.directions[..., : self.num_betas]

    @property
    def posedirs(self) -> Tensor | None:
        """(V, 3, 207) metres per unit of an entry of the rotations minus identity; None: no pose blend shapes."""
        return self.directions[..., self.num_betas :] if self.directions.shape[-1] > self.num_betas else None

    @property
    def dtype(self) -> torch.dtype:
        return self.v_template.dtype

    @property
    def device(self) -> torch.device:
        return self.v_template.device

    def forward(
        self, global_orient: Tensor, body_pose: Tensor, betas: Tensor, transl: Tensor | None = None
    ) -> BodyOutput:
        """Axis-angle global_orient (n, 3), body_pose (n, 23, 3) or (n, 69), betas (n, B), transl (n, 3) metres."""
        return self.forward_rotmat(self.rotmat(global_orient, body_pose), betas, transl)

    @staticmethod
    def rotmat(global_orient: Tensor, body_pose: Tensor) -> Tensor:
        """Rotation matrices (n, 24, 3, 3) relative to the parent, of axis-angle (n, 3) and (n, 23, 3) or (n, 69)."""
        pose = torch.cat([global_orient.reshape(-1, 1, 3), body_pose.reshape(len(body_pose), 23, 3)], 1)
        return axis_angle_to_matrix(pose)

    def forward_rotmat(self, rotmat: Tensor, betas: Tensor, transl: Tensor | None = None) -> BodyOutput:
        """Rotation matrices (n, 24, 3, 3) relative to the parent, betas (n, B), transl (n, 3) metres."""
        vertices, joints = self.posed(rotmat, betas, transl)
        return BodyOutput(vertices.contiguous(), joints)

    def posed(self, rotmat: Tensor, betas: Tensor, transl: Tensor | None = None) -> BodyOutput:
        """The same, but the vertices are a view of (V, 3, n), the layout in which they are computed and in which sums
        over vertices are fast. Making them contiguous costs a tenth of the skinning."""
        joints, transforms = self._kinematics(rotmat, betas)
        vertices = self._skinned(transforms, self._blends(rotmat, betas), None)
        if transl is not None:
            vertices, joints = vertices + transl.T, joints + transl[:, None]
        return BodyOutput(vertices.permute(2, 0, 1), joints)

    def rest_joints(self, betas: Tensor) -> Tensor:
        """Joints of the T pose (n, 24, 3) for betas (n, B)."""
        return self.joint_template + torch.einsum("nb,jcb->njc", betas, self.joint_dirs[..., : betas.shape[-1]])

    def _blends(self, rotmat: Tensor, betas: Tensor) -> Tensor:
        """Coefficients of the blend shapes: betas and, where the body has pose blend shapes, the pose; (B or B+207,
        n)."""
        coefficients = torch.nn.functional.pad(betas, (0, self.num_betas - betas.shape[-1]))
        if self.posedirs is not None:
            feature = (rotmat[:, 1:] - torch.eye(3, dtype=rotmat.dtype, device=rotmat.device)).flatten(1)
            coefficients = torch.cat([coefficients.expand(len(feature), -1), feature], 1)
        return coefficients.T.contiguous()

    def blended_vertices(self, rotmat: Tensor, betas: Tensor, indices: Tensor) -> Tensor:
        """Vertices `indices` with all blend shapes, before skinning: (n, len(indices), 3), metres."""
        template, directions = self.v_template[indices].reshape(-1, 1), self.directions[indices].flatten(0, 1)
        return torch.addmm(template, directions, self._blends(rotmat, betas)).T.unflatten(1, (-1, 3)).contiguous()

    def _skinned(self, transforms: Tensor, blends: Tensor, indices: Tensor | None) -> Tensor:
        """Linear blend skinning: transforms (n, 24, 3, 4), blends (B or B+207, n or 1) -> (V or len(indices), 3, n).

        The batch is the last axis, so that each step is one large product of matrices, and vertices are processed in
        groups that fit into the processor's cache.
        """
        n = len(transforms)
        columns = transforms.permute(1, 3, 2, 0).reshape(len(self.parents), 12 * n)
        template, directions, weights = (
            x if indices is None else x[indices] for x in (self.v_template, self.directions, self.weights)
        )

        def group(part: slice) -> Tensor:
            joints, own_weights = self._skinning_group(part) if indices is None else (slice(None), weights[part])
            rest = torch.addmm(template[part].reshape(-1, 1), directions[part].flatten(0, 1), blends)
            rest = rest.unflatten(0, (-1, 3, 1))
            blended = (own_weights @ columns[joints]).unflatten(1, (4, 3, n))
            out = blended[:, 3]
            for axis in range(3):
                out = torch.addcmul(out, blended[:, axis], rest[:, axis])
            return out

        fitting = 1 << (CACHED // max(n, 1) | 1).bit_length() - 1  # a power of two, so that there are few sizes
        size = max(64, fitting) if weights.device.type == "cpu" else len(weights)
        parts = [slice(i, i + size) for i in range(0, len(weights), size)]
        if torch.is_grad_enabled():
            return torch.cat([group(part) for part in parts])
        vertices = template.new_empty(len(weights), 3, n)
        for part in parts:
            vertices[part] = group(part)
        return vertices

    @torch.inference_mode(False)  # kept for inference and training alike
    def _skinning_group(self, part: slice) -> tuple[Tensor, Tensor]:
        """The joints that move any of these vertices (neighbours share most: a quarter of all), and their weights."""
        key = part.start, part.stop, self.device, self.dtype
        if key not in self._skinning_groups:
            weights = self.weights[part]
            joints = torch.nonzero((weights != 0).any(0))[:, 0]
            self._skinning_groups[key] = joints, weights[:, joints].contiguous()
        return self._skinning_groups[key]

    def _kinematics(self, rotmat: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Posed joints (n, 24, 3) and the transforms of skinning (n, 24, 3, 4): rest position -> posed position."""
        rest = self.rest_joints(betas)
        if len(rest) != len(rotmat):
            rest = rest.expand(len(rotmat), -1, -1)
        rotations: list[Tensor] = [rotmat[:, 0]] * len(self.parents)
        positions: list[Tensor] = [rest[:, 0]] * len(self.parents)
        # One multiplication per depth of the tree, nine in all.
        for level, parents in self._levels:
            above = torch.stack([rotations[p] for p in parents], 1)
            bone = rest[:, level] - rest[:, parents]
            position = torch.stack([positions[p] for p in parents], 1) + (above @ bone[..., None])[..., 0]
            rotation = above @ rotmat[:, level]
            for k, j in enumerate(level):
                rotations[j], positions[j] = rotation[:, k], position[:, k]
        global_rotmat, joints = torch.stack(rotations, 1), torch.stack(positions, 1)
        shift = joints - (global_rotmat @ rest[..., None])[..., 0]
        return joints, torch.cat([global_rotmat, shift[..., None]], -1)

    def regressor(self, joint_set: str) -> Tensor:
        """(J, V) that gives the joints of a set from posed vertices. AssetError where this body lacks such a point.

        For smpl24 it is exact in the T pose only; elsewhere the joints come from the kinematic tree.
        """
        if joint_set in self.added_regressors:
            return getattr(self, f"regressor_{joint_set}")
        return torch.stack([self._row(name, joint_set) for name in joint_sets.get(joint_set)])

    def _row(self, name: str, joint_set: str) -> Tensor:
        def landmark(key: str) -> Tensor | None:
            return self.landmark_rows[self.landmarks[key]] if key in self.landmarks else None

        def centre(key: str) -> Tensor | None:
            return self.J_regressor[self.joint_names.index(key)] if key in self.joint_names else None

        def mean(part: str, of: Any) -> Tensor | None:
            left, right = of(f"left_{part}"), of(f"right_{part}")
            return None if left is None or right is None else (left + right) / 2

        if joint_set in _ANNOTATED:
            middle = {"neck": "shoulder", "mid_hip": "hip"}.get(name)
            row = mean(middle, landmark) if middle else landmark(name)
            row = centre("pelvis" if name == "mid_hip" else name) if row is None else row
        elif joint_set == "h36m17" and name in ("pelvis", "spine"):
            row = mean("hip", centre) if name == "pelvis" else centre("spine2")
        else:
            row = centre(name)
            row = landmark(name) if row is None else row
        if row is None:
            raise AssetError(
                f"the body {self.name} ({self.topology}) has no point {name!r} of the joint set {joint_set}",
                f"give a regressor when adding the body: hmr body-model add FILE --regressor {joint_set}=REGRESSOR.npy",
            )
        return row

    def regress(self, vertices: Tensor, joint_set: str, *, topology: str | None = None) -> Tensor:
        """Joints (n, J, 3) of a set from vertices (n, V, 3) of this topology (AssetError for another)."""
        if (topology is not None and topology != self.topology) or vertices.shape[-2] != len(self.v_template):
            raise AssetError(
                f"vertices of topology {topology or vertices.shape[-2]} meet regressors of {self.topology}",
                "vertex numbers mean different points on different bodies; use the body that the vertices came from",
            )
        return self.regressor(joint_set).to(vertices) @ vertices

    def joints(self, rotmat: Tensor, betas: Tensor, transl: Tensor | None = None, joint_set: str = "smpl24") -> Tensor:
        """Joints (n, J, 3) of a set without the mesh, from rotmat (n, 24, 3, 3), betas (n, B), transl (n, 3).

        smpl24 are the joints of the kinematic tree; every other set equals `regress` on the posed mesh.
        """
        joints, transforms = self._kinematics(rotmat, betas)
        if joint_set != "smpl24" or joint_set in self.added_regressors:
            if self.posedirs is None:
                joints = self._folded_joints(transforms, betas, joint_set)
            else:
                indices, rows = self._regressed_vertices(joint_set)
                vertices = self._skinned(transforms, self._blends(rotmat, betas), indices)
                joints = (rows @ vertices.flatten(1)).unflatten(1, vertices.shape[1:]).permute(2, 0, 1)
        return joints if transl is None else joints + transl[:, None]

    def _folded_joints(self, transforms: Tensor, betas: Tensor, joint_set: str) -> Tensor:
        """Without pose blend shapes a regressor commutes with skinning.

        sum_v r_v w_vj (x_v, 1), J rows by 24 joints by 4, is computed once; after that no vertex is touched.
        """
        base, dirs = self._fold(joint_set)
        n, J = len(transforms), base.shape[0]
        # (n, J, 24, 3) weighted rest positions; the weights themselves (J, 24) multiply the translations.
        rest = base[..., :3] + torch.einsum("nb,jkcb->njkc", betas, dirs[..., : betas.shape[-1]])
        rotations = transforms[..., :3].permute(0, 2, 1, 3).reshape(n, 3, 24 * 3)
        joints = (rotations @ rest.reshape(-1, J, 24 * 3).transpose(1, 2)).transpose(1, 2)
        return joints + base[..., 3] @ transforms[..., 3]

    @torch.inference_mode(False)
    def _fold(self, joint_set: str) -> tuple[Tensor, Tensor]:
        """(J, 24, 4) and (J, 24, 3, B): the folded regressor of the template and of the shape directions."""
        base_key, dirs_key = f"fold_{joint_set}", f"fold_{joint_set}_dirs"
        if base_key not in self._buffers:
            with torch.no_grad():
                rw = self.regressor(joint_set).double()[:, :, None] * self.weights.double()  # (J, V, 24)
                base = torch.cat([torch.einsum("jvk,vc->jkc", rw, self.v_template.double()), rw.sum(1)[..., None]], -1)
                dirs = torch.einsum("jvk,vcb->jkcb", rw, self.shapedirs.double())
            self.register_buffer(base_key, base.to(self.dtype), persistent=False)
            self.register_buffer(dirs_key, dirs.to(self.dtype), persistent=False)
        return self.get_buffer(base_key), self.get_buffer(dirs_key)

    @torch.inference_mode(False)
    def _regressed_vertices(self, joint_set: str) -> tuple[Tensor, Tensor]:
        """The vertices that the regressor of a set uses (K,), and its columns for them (J, K)."""
        indices_key, rows_key = f"regressed_{joint_set}", f"regressed_{joint_set}_rows"
        if indices_key not in self._buffers:
            rows = self.regressor(joint_set)
            indices = torch.nonzero((rows != 0).any(0))[:, 0]
            self.register_buffer(indices_key, indices, persistent=False)
            self.register_buffer(rows_key, rows[:, indices], persistent=False)
        return self.get_buffer(indices_key), self.get_buffer(rows_key)


def _levels(parents: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Joints of equal depth below the root, with their parents."""
    depth = {0: 0}
    for j, p in enumerate(parents):
        if j:
            depth[j] = depth[p] + 1
    levels = [[j for j in range(len(parents)) if depth[j] == d] for d in range(1, max(depth.values()) + 1)]
    return [(level, [parents[j] for j in level]) for level in levels]


def _tensor(x: Any) -> Tensor:
    """A tensor as it is, wherever it is; anything else by way of numpy."""
    return x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))


def load_body(name_or_path: Any = "embedded", gender: str = "neutral", device: str = "cpu") -> Body:
    """A body by name ("embedded", or one added with `hmr body-model add`) or by file (SMPL .pkl, converted .npz).

    Kept for the process: the same call gives the same object, so do not change it (`to` gives a copy). Raises
    AssetError.
    """
    return _cached(str(name_or_path), gender, str(device))


@functools.lru_cache(maxsize=8)
def _cached(name: str, gender: str, device: str) -> Body:
    return to_body(body_files.read_named(name, gender)).to(device)


def to_body(arrays: body_files.Arrays) -> Body:
    """The body of the checked arrays of a body file."""
    about = arrays["about"]
    names = lambda key, values: zip(arrays[key].tolist(), values, strict=True) if key in arrays else ()  # noqa: E731
    return Body.from_arrays(
        **{key: arrays[key] for key in ("v_template", "shapedirs", "J_regressor", "weights")},
        posedirs=arrays.get("posedirs"),
        parents=joint_sets.SMPL_PARENTS,
        faces=arrays["f"],
        **{key: about[key] for key in ("name", "topology", "gender", "licence")},
        landmarks=dict(names("landmark_names", arrays.get("landmarks"))),
        regressors={k.removeprefix("regressor_"): v for k, v in arrays.items() if k.startswith("regressor_")},
        vertex_ids=dict(names("vertex_id_names", np.asarray(arrays.get("vertex_ids", ())).tolist())),
    )
