"""glTF 2.0 binary: every person of an image or video as a skinned mesh on a skeleton, and the camera that took it.

glTF is y up and looks along -z; the camera frame (y down, z forward) is rotated by 180 degrees about x, (x, -y, -z), so
the camera is at the origin with its own orientation. The skeleton has the body's 24 joints, rotated by the pose.

bind "pose": the mesh is stored in the person's pose and the skeleton is bound there, so programs without skinning show
the right pose, and pose-dependent shape is exact. bind "t": stored in the T pose, as animation needs; with bodies that
have pose blend shapes (SMPL's own) the skinned surface then lacks those, which is millimetres to 2 cm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pygltflib as gl
import roma
import torch
from torch import Tensor

from stages.files.atomic import write_bytes
from stages.geometry.rasterizer import vertex_normals
from stages.loaders.motion import Motion
from stages.smpl.body import Body

CAMERA_TO_GLTF = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # OpenCV camera <-> glTF


class GltfScene:
    """A glTF file under construction, of people with this body. extras: what the file says of itself."""

    def __init__(self, body: Body, extras: dict[str, Any], copyright: str) -> None:
        self.body, self.faces = body, body.faces.cpu()
        asset = gl.Asset(generator="hmr", copyright=copyright or None, extras=extras)
        self.gltf = gl.GLTF2(asset=asset, scene=0, scenes=[gl.Scene(nodes=[])])
        self.blob = bytearray()
        self.indices: int | None = None  # accessor of the faces, which all people share

    # ---- its contents

    def add_camera(self, K: np.ndarray, size: tuple[int, int]) -> None:
        """The image's camera at the origin. glTF has no principal point: it is the middle."""
        width, height = size
        yfov = 2 * float(np.arctan(height / 2 / K[1, 1]))
        view = gl.Perspective(aspectRatio=width / height, yfov=yfov, znear=0.05, zfar=500.0)
        self.gltf.cameras.append(gl.Camera(type="perspective", perspective=view, name="camera"))
        self._root(gl.Node(name="camera", camera=len(self.gltf.cameras) - 1))

    def add_mesh(self, vertices: Tensor, name: str, colour: np.ndarray) -> None:
        """A mesh without skeleton: vertices (V, 3) in the camera frame."""
        mesh = self._mesh(vertices.cpu() @ CAMERA_TO_GLTF.T, name, colour, {})
        self._root(gl.Node(name=f"{name}_body", mesh=mesh))

    def add_person(self, motion: Motion, name: str, colour: np.ndarray, *, bind: str = "pose") -> None:
        """A skinned person; with an animation when there is more than one frame (then bind is "t")."""
        bind, body = "t" if len(motion.time) > 1 else bind, self.body
        betas = motion.mean_betas()
        rest = body.rest_joints(betas.to(body.device))[0].cpu()
        rotmat = motion.rotmat.clone()
        rotmat[:, 0] = CAMERA_TO_GLTF @ rotmat[:, 0]
        rest_pelvis = body.rest_joints(motion.betas.to(body.device))[:, 0].cpu()  # of each frame's betas
        pelvis = (rest_pelvis + motion.transl) @ CAMERA_TO_GLTF.T  # glTF frame
        if bind == "pose":
            posed = body.forward_rotmat(*(x.to(body.device) for x in (motion.rotmat, motion.betas, motion.transl)))
            vertices = posed.vertices[0].cpu() @ CAMERA_TO_GLTF.T
            transforms = _global_transforms(rotmat[0], pelvis[0], rest, body.parents)
        else:
            identity = torch.eye(3).expand(1, 24, 3, 3).to(body.device)
            vertices = body.forward_rotmat(identity, betas.to(body.device)).vertices[0].cpu()
            transforms = torch.eye(4).repeat(24, 1, 1)
            transforms[:, :3, 3] = rest
        joints = self._skeleton(rotmat[0], pelvis[0], rest)
        inverse = torch.linalg.inv(transforms.double()).float()
        inverse[:, 3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
        # glTF stores matrices by columns.
        matrices = self._accessor(inverse.transpose(1, 2).reshape(24, 16).numpy(), gl.MAT4)
        self.gltf.skins.append(gl.Skin(name=name, joints=joints, skeleton=joints[0], inverseBindMatrices=matrices))
        mesh = self._mesh(vertices, name, colour, _skin_attributes(body.weights.cpu().numpy()))
        # One parent node per person for bones and mesh: Blender makes one armature of all bones that share a parent.
        self.gltf.nodes.append(gl.Node(name=f"{name}_body", mesh=mesh, skin=len(self.gltf.skins) - 1))
        self._root(gl.Node(name=name, children=[joints[0], len(self.gltf.nodes) - 1]))
        if len(motion.time) > 1:
            self._animate(joints, rotmat, pelvis, motion.time, name)

    def write(self, path: Path) -> Path:
        """The .glb, whole or not at all."""
        self.gltf.buffers = [gl.Buffer(byteLength=len(self.blob))]
        self.gltf.set_binary_blob(bytes(self.blob))
        write_bytes(path, b"".join(self.gltf.save_to_bytes()))
        return path

    # ---- its parts

    def _root(self, node: gl.Node) -> None:
        self.gltf.nodes.append(node)
        self.gltf.scenes[0].nodes.append(len(self.gltf.nodes) - 1)

    def _skeleton(self, rotmat: Tensor, pelvis: Tensor, rest: Tensor) -> list[int]:
        """24 joint nodes in the pose, the pelvis without a parent so far. Returns their numbers."""
        quaternion = roma.rotmat_to_unitquat(rotmat)
        numbers: list[int] = []
        for j, parent in enumerate(self.body.parents):
            offset = pelvis if parent < 0 else rest[j] - rest[parent]
            node = gl.Node(
                name=self.body.joint_names[j], translation=offset.tolist(), rotation=quaternion[j].tolist(), children=[]
            )
            self.gltf.nodes.append(node)
            numbers.append(len(self.gltf.nodes) - 1)
            if parent >= 0:
                self.gltf.nodes[numbers[parent]].children.append(numbers[j])
        return numbers

    def _animate(self, joints: list[int], rotmat: Tensor, pelvis: Tensor, time: np.ndarray, name: str) -> None:
        """Rotation channels of all joints and the pelvis's translation, linear between keyframes."""
        clock = self._accessor(time.astype(np.float32), gl.SCALAR, bounds=True)
        quaternion = roma.rotmat_to_unitquat(rotmat)
        # q and -q are the same rotation; neighbours must have the same sign, or viewers rotate the long way.
        sign = torch.where((quaternion[1:] * quaternion[:-1]).sum(-1) < 0, -1.0, 1.0).cumprod(0)
        quaternion[1:] *= sign[..., None]
        animation = gl.Animation(name=name, samplers=[], channels=[])
        tracks = [(joints[j], "rotation", quaternion[:, j], gl.VEC4) for j in range(24)]
        for node, path, values, kind in [(joints[0], "translation", pelvis, gl.VEC3), *tracks]:
            output = self._accessor(values.contiguous().numpy(), kind)
            animation.samplers.append(gl.AnimationSampler(input=clock, output=output, interpolation="LINEAR"))
            target = gl.AnimationChannelTarget(node=node, path=path)
            animation.channels.append(gl.AnimationChannel(sampler=len(animation.samplers) - 1, target=target))
        self.gltf.animations.append(animation)

    def _mesh(self, vertices: Tensor, name: str, colour: np.ndarray, skin: dict[str, np.ndarray]) -> int:
        normal = vertex_normals(vertices[None], self.faces)[0].numpy()
        normal[~(np.linalg.norm(normal, axis=1) > 0.5)] = (0, 0, 1)  # a vertex without a face
        attributes = gl.Attributes(
            POSITION=self._accessor(vertices.numpy(), gl.VEC3, gl.ARRAY_BUFFER, bounds=True),
            NORMAL=self._accessor(normal, gl.VEC3, gl.ARRAY_BUFFER),
        )
        for key, values in skin.items():
            setattr(attributes, key, self._accessor(values, gl.VEC4, gl.ARRAY_BUFFER))
        if self.indices is None:  # everybody shares them
            flat = self.faces.numpy().astype(np.uint32).reshape(-1)
            self.indices = self._accessor(flat, gl.SCALAR, gl.ELEMENT_ARRAY_BUFFER)
        # glTF colours are linear, the palette is sRGB.
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        paint = gl.PbrMetallicRoughness(
            baseColorFactor=[*linear.tolist(), 1.0], metallicFactor=0.0, roughnessFactor=0.9
        )
        self.gltf.materials.append(gl.Material(name=name, pbrMetallicRoughness=paint))
        primitive = gl.Primitive(attributes=attributes, indices=self.indices, material=len(self.gltf.materials) - 1)
        self.gltf.meshes.append(gl.Mesh(name=name, primitives=[primitive]))
        return len(self.gltf.meshes) - 1

    def _accessor(self, values: np.ndarray, kind: str, target: int | None = None, *, bounds: bool = False) -> int:
        """Add an array to the file; returns its number. float32, uint32, or uint8/uint16 for joint numbers."""
        codes = {"f4": gl.FLOAT, "u4": gl.UNSIGNED_INT, "u1": gl.UNSIGNED_BYTE, "u2": gl.UNSIGNED_SHORT}
        values = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)
        self.blob += b"\0" * (-len(self.blob) % 4)
        piece = gl.BufferView(buffer=0, byteOffset=len(self.blob), byteLength=values.nbytes, target=target)
        self.blob += values.tobytes()
        self.gltf.bufferViews.append(piece)
        flat = values.reshape(len(values), -1)
        accessor = gl.Accessor(
            bufferView=len(self.gltf.bufferViews) - 1,
            componentType=codes[values.dtype.str[1:]],
            count=len(values),
            type=kind,
            min=flat.min(0).tolist() if bounds else None,
            max=flat.max(0).tolist() if bounds else None,
        )
        self.gltf.accessors.append(accessor)
        return len(self.gltf.accessors) - 1


def _global_transforms(rotmat: Tensor, pelvis: Tensor, rest: Tensor, parents: tuple[int, ...]) -> Tensor:
    """Global joint transforms (24, 4, 4) of the nodes that `_skeleton` adds."""
    out = torch.eye(4).repeat(24, 1, 1)
    for j, parent in enumerate(parents):
        local = torch.eye(4)
        local[:3, :3] = rotmat[j]
        local[:3, 3] = pelvis if parent < 0 else rest[j] - rest[parent]
        out[j] = local if parent < 0 else out[parent] @ local
    return out


def _skin_attributes(weights: np.ndarray) -> dict[str, np.ndarray]:
    """JOINTS_n and WEIGHTS_n for weights (V, 24): as many sets of four as the vertex with most joints needs."""
    sets = -(-int((weights > 0).sum(1).max()) // 4)
    order = np.argsort(-weights, axis=1, kind="stable")[:, : 4 * sets]
    value = np.take_along_axis(weights, order, 1)
    value = value / value.sum(1, keepdims=True)
    order = np.where(value > 0, order, 0).astype(np.uint8)
    attributes: dict[str, np.ndarray] = {}
    for k in range(sets):
        part = slice(4 * k, 4 * k + 4)
        attributes[f"JOINTS_{k}"] = np.ascontiguousarray(order[:, part])
        attributes[f"WEIGHTS_{k}"] = np.ascontiguousarray(value[:, part], np.float32)
    return attributes
