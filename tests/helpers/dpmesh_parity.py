"""Reads one case of a dpmesh fixtures.json: its inputs, the weights it names, the comparison it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from stages.models.dpmesh import checkpoint_names as names
from stages.models.dpmesh import weights
from stages.models.dpmesh.network import DPMesh
from tests.helpers.fixtures import Fixtures
from tests.helpers.parity_limits import limit


def sibling_of(name: str, cases: Iterable[str]) -> str:
    """The case of the index that a file belongs to: of its own name, else the longest that it continues (full_small_2,
    merge_seed7); '' for none."""
    return max((c for c in cases if name == c or name.startswith(f"{c}_")), key=len, default="")


class Case:
    """One case: `case("image")` is an input as float32 tensor, `case.weights(...)` the network, `case.compare(...)`."""

    def __init__(self, fixtures: Fixtures, name: str) -> None:
        self.fixtures, self.name = fixtures, name
        cases = fixtures.index("fixtures.json")["cases"]
        self.spec = cases[sibling_of(name, cases)]
        named = fixtures.folder / f"{name}.npz"  # a sibling (full_small_2.npz) may come without an index of its own
        self.stored = np.load(named if named.exists() else fixtures.find(self.spec["file"]))
        self.manifest = fixtures.index(self.spec["manifest"]) if self.spec["manifest"] else {}

    def __call__(self, name: str) -> torch.Tensor:
        """An input; one that is stored counts before one that is described."""
        stored = f"in.{name}"
        value = self.stored[stored] if stored in self.stored else self.array(self.spec["inputs"][name])
        return torch.from_numpy(np.ascontiguousarray(value))

    def array(self, described: Any) -> np.ndarray:
        if isinstance(described, str):
            described = {"stored": described.removeprefix("stored:").split()[0]}
        if "stored" in described:
            return self.stored[described["stored"].rstrip(";,(")]
        x = self.fixtures.weights.array(described["array"], tuple(described["shape"]))
        return formula(described.get("then", "x"), x)

    def described(self, name: str) -> bool:
        """Whether an input is written as a sentence, not as an array."""
        value = self.spec["inputs"].get(name)
        return isinstance(value, str) and not value.startswith("stored")

    def named(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.fixtures.weights.array(name, shape)

    def numbered(self, text: str, count: int = 0) -> np.ndarray:
        """ "array NAME{i} (6890,3), i = 0..2, times 0.4, then z + 10" -> (3, 6890, 3); `count` where no i is given."""
        found = re.search(r"array ([\w.]+)\{i\} \(([\d, ]*)\)", text)
        assert found, f"input not understood: {text}"
        last = re.search(r"i = 0\.\.(\d+)", text)
        n, shape = int(last[1]) + 1 if last else count, shape_of(found[2])
        x = np.stack([self.named(f"{found[1]}{i}", shape) for i in range(n)])
        if factor := re.search(r"times (-?[\d.]+)", text):
            x = x * np.float32(factor[1])
        if shift := re.search(r"then ([xyz]) \+ ([\d.]+)", text):
            x[..., "xyz".index(shift[1])] += np.float32(shift[2])
        return x

    def assigned(self, text: str) -> dict[str, np.ndarray]:
        """ "student = array A (4,256,8,8); teacher = 0.5 student + array B" -> both; a shape holds until the next."""
        made: dict[str, np.ndarray] = {}
        shape: tuple[int, ...] = ()
        for clause in text.split(";"):
            name, _, right = (part.strip() for part in clause.partition("="))
            drawn: dict[str, np.ndarray] = {}
            while found := re.search(r"array ([\w.]+)(?: \(([\d, ]+)\))?", right):
                shape = shape_of(found[2]) if found[2] else shape
                drawn[f"drawn{len(drawn)}"] = self.named(found[1], shape)
                right = right.replace(found[0], f"drawn{len(drawn) - 1}", 1)
            made[name] = np.asarray(evaluate(right, made | drawn), np.float32)
        return made

    def side(self, file: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array beside the checkpoint, by what the index says of `file`, else by the given name and shape."""
        text = self.fixtures.index("fixtures.json").get("side_data", {}).get(file, "")
        if found := re.search(r'weights\.tensor\("([^"]+)", \(([\d, ]+)\)\)', text):
            tensor, shape = found[1], shape_of(found[2])
        return self.fixtures.weights.tensor(tensor, shape)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor of the manifest, filled (or overridden by the case)."""
        entry = self.manifest[name]
        override = self.spec["inputs"].get("override", {})
        if name in override:
            return torch.full(entry["shape"], override[name])
        filled = self.fixtures.weights.tensor(name, tuple(entry["shape"]), entry.get("dtype", "float32"))
        return torch.from_numpy(np.array(filled))

    def network(self, *parts: str) -> tuple[DPMesh, dict[str, torch.Tensor]]:
        """DPMesh with only the layers whose published name begins with one of `parts` filled, and the SMPL arrays."""
        prefixes = tuple(f"module.{part}" for part in parts)
        found = {
            n: self.tensor(n) if n.startswith(prefixes) else torch.empty(e["shape"], device="meta")
            for n, e in self.manifest.items()
        }
        tensors, bodies = names.convert_names(names.published(found, self.name), self.name)
        with weights.meta():
            model = DPMesh(weights.config_of(tensors, self.name))
        model.load_state_dict(weights.fold_lora(tensors), assign=True)
        return model.eval(), bodies

    def compare(self, outputs: dict[str, Any]) -> None:
        """Every output within its tolerance: max |ours - stored| / max |stored| over the stored entries."""
        wrong = []
        left_out = {"crop_cv4", "crop_exact"} - set(outputs)
        assert len(left_out) < 2 or not left_out & set(self.spec["outputs"])
        for name, tolerance in self.spec["outputs"].items():
            if name in left_out:
                continue
            tolerance = limit("dpmesh", self.name, name, tolerance)
            ours = np.asarray(outputs[name], dtype=np.float64)
            keep = self.stored.get(f"out.{name}_ok", ...)
            if f"out.{name}" in self.stored:
                pairs = [(ours[keep], self.stored[f"out.{name}"][keep])]
            else:
                assert ours.shape == tuple(self.stored[f"out.{name}.shape"]), name
                pairs = [(ours.ravel()[self.stored[f"out.{name}.index"]], self.stored[f"out.{name}.value"])]
                if f"out.{name}.std" in self.stored:
                    axes = tuple(i for i in range(ours.ndim) if i != (ours.ndim - 1 if "mesh" in name else 1))
                    pairs.append((ours.std(axes), self.stored[f"out.{name}.std"]))
            for mine, theirs in pairs:
                assert mine.shape == theirs.shape, f"{name}: {mine.shape}, stored {theirs.shape}"
                per_value = self.name.startswith("metrics") and theirs.ndim == 1
                error = np.abs(mine - theirs) / (np.abs(theirs) if per_value else np.abs(theirs).max())
                if not error.max() <= tolerance:
                    wrong.append(f"{name}: {error.max():.1e}, allowed {tolerance:.0e}")
        assert not wrong, "; ".join(wrong)


def formula(text: str, x: np.ndarray) -> np.ndarray:
    """The `then` of an input: "clip(0.5 + 0.25 * x, 0, 1), float32", "5 * x", "x / 3", "min(|x|, 1)", "x + [0, 0, 80]",
    "3 x, then softmax over the classes"."""
    softmax = "softmax" in text
    value = np.asarray(evaluate(re.split(r", then|, float32| \(", text)[0], {"x": x}), np.float32)
    if softmax:
        value = np.exp(value - value.max(-1, keepdims=True))
        value /= value.sum(-1, keepdims=True)
    return value


FUNCTIONS = {
    "clip": np.clip, "min": np.minimum, "max": np.maximum, "abs": np.abs, "array": np.array, "exp": np.exp,
    "sqrt": np.sqrt, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """A formula in the words of fixtures.json: "0.05 p" and "gt2 R^T" multiply, |x| is a size, lists are arrays."""
    text = re.sub(r"\|(.*?)\|", r"abs(\1)", text)
    text = re.sub(r"(\w) R\^T", r"\1 @ R.T", text)
    text = re.sub(r"(\d) ([A-Za-z_])", r"\1 * \2", text)
    text = re.sub(r"(\[[^\[\]]*\])", r"array(\1)", text)
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\d[eE][+-]?\d|R\.T", "0", text)))
    known = {**FUNCTIONS, **names}
    understood = words <= set(known) and re.fullmatch(r"[\w\s.,()\[\]*/@+-]+", text)
    assert understood, f"input formula not understood: {text}"
    return eval(text, {"__builtins__": {}}, known)  # of the words and characters checked above


def shape_of(text: str) -> tuple[int, ...]:
    """ "4,256,8,8" -> numbers."""
    return tuple(int(n) for n in text.split(",") if n.strip())
