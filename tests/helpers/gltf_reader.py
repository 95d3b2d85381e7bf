"""A glTF reader for tests, written from the specification alone: scene, accessors, skinning, animation."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
CODES = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


class Gltf:
    """A .glb file."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", content)
        assert (magic, version, length) == (b"glTF", 2, len(content))
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert kind == b"JSON"
        self.json: dict[str, Any] = json.loads(content[20 : 20 + size])
        blob, kind = struct.unpack_from("<I4s", content, 20 + size)
        assert kind == b"BIN\0"
        self.bin = content[28 + size : 28 + size + blob]
        assert self.json["buffers"][0]["byteLength"] <= len(self.bin)
        self.nodes = self.json["nodes"]

    def array(self, number: int) -> np.ndarray:
        accessor = self.json["accessors"][number]
        view = self.json["bufferViews"][accessor["bufferView"]]
        dtype, width = np.dtype(CODES[accessor["componentType"]]), TYPES[accessor["type"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        assert start % dtype.itemsize == 0
        count = accessor["count"] * width
        return np.frombuffer(self.bin, dtype, count, start).reshape(accessor["count"], width)

    def named(self, name: str) -> dict[str, Any]:
        return next(n for n in self.nodes if n.get("name") == f"{name}_body")

    def primitive(self, name: str) -> dict[str, Any]:
        return self.json["meshes"][self.named(name)["mesh"]]["primitives"][0]

    def transforms(self, channels: dict[tuple[int, str], np.ndarray]) -> np.ndarray:
        """Global matrices (N, 4, 4) of all nodes, with some channels replaced by values."""
        out = np.zeros((len(self.nodes), 4, 4))

        def visit(number: int, above: np.ndarray) -> None:
            node, local = self.nodes[number], np.eye(4)
            turn = channels.get((number, "rotation"), node.get("rotation", [0, 0, 0, 1]))
            local[:3, :3] = Rotation.from_quat(turn).as_matrix()
            local[:3, 3] = channels.get((number, "translation"), node.get("translation", [0, 0, 0]))
            out[number] = above @ local
            for child in node.get("children", []):
                visit(child, out[number])

        for root in self.json["scenes"][self.json.get("scene", 0)]["nodes"]:
            visit(root, np.eye(4))
        return out

    def channels(self, animation: str, key: int) -> dict[tuple[int, str], np.ndarray]:
        """What the animation says at its keyframe `key`."""
        found = next(a for a in self.json["animations"] if a["name"] == animation)
        return {
            (c["target"]["node"], c["target"]["path"]): self.array(found["samplers"][c["sampler"]]["output"])[key]
            for c in found["channels"]
        }

    def times(self, animation: str) -> np.ndarray:
        found = next(a for a in self.json["animations"] if a["name"] == animation)
        return self.array(found["samplers"][0]["input"])[:, 0]

    def skinned(self, name: str, channels: dict[tuple[int, str], np.ndarray] | None = None) -> np.ndarray:
        """Vertices (V, 3) of a skinned mesh in the scene, as the specification says to compute them."""
        skin = self.json["skins"][self.named(name)["skin"]]
        bind = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1).astype(np.float64)
        joints = self.transforms(channels or {})[skin["joints"]] @ bind
        attributes = self.primitive(name)["attributes"]
        position = self.array(attributes["POSITION"]).astype(np.float64)
        total = np.zeros((len(position), 4, 4))
        k = 0
        while f"JOINTS_{k}" in attributes:
            which, weight = self.array(attributes[f"JOINTS_{k}"]), self.array(attributes[f"WEIGHTS_{k}"])
            total += (weight[..., None, None] * joints[which]).sum(1)
            k += 1
        return np.einsum("vij,vj->vi", total, np.c_[position, np.ones(len(position))])[:, :3]
