"""Reads one case of a dpmesh fixtures.json: its inputs, the weights it names, the comparison it asks for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from stages.models.dpmesh import names, weights
from stages.models.dpmesh.network import DPMesh
from tests.parity.conftest import Fixtures


class Case:
    """One case: `case("image")` is an input as float32 tensor, `case.weights(...)` the network, `case.compare(...)`."""

    def __init__(self, fixtures: Fixtures, name: str) -> None:
        self.fixtures, self.name = fixtures, name
        cases = fixtures.index("fixtures.json")["cases"]
        self.spec = cases[name] if name in cases else cases[re.sub(r"_\d+$", "", name)]
        named = fixtures.folder / f"{name}.npz"  # a sibling (full_small_2.npz) may come without an index of its own
        self.stored = np.load(named if named.exists() else fixtures.find(self.spec["file"]))
        self.manifest = fixtures.index(self.spec["manifest"]) if self.spec["manifest"] else {}

    def __call__(self, name: str) -> torch.Tensor:
        value = self.array(self.spec["inputs"][name])
        return torch.from_numpy(np.ascontiguousarray(value))

    def array(self, described: Any) -> np.ndarray:
        if isinstance(described, str):
            described = {"stored": described.removeprefix("stored:").split()[0]}
        if "stored" in described:
            return self.stored[described["stored"].rstrip(";,(")]
        x = self.fixtures.weights.array(described["array"], tuple(described["shape"]))
        return formula(described.get("then", "x"), x)

    def names(self, text: str) -> list[str]:
        """The arrays that an input written as a sentence mentions: "array dpmesh.mid.control{i}, i = 0..12" """
        return [name.removesuffix("{i}") for name in re.findall(r"array ([\w.]+(?:\{i\})?)", text)]

    def named(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.fixtures.weights.array(name, shape)

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
            ours = np.asarray(outputs[name], dtype=np.float64)
            keep = self.stored.get(f"out.{name}_ok", ...)
            if f"out.{name}" in self.stored:
                pairs = [(ours[keep], self.stored[f"out.{name}"][keep])]
            else:
                assert ours.shape == tuple(self.stored[f"out.{name}.shape"]), name
                pairs = [(ours.ravel()[self.stored[f"out.{name}.index"]], self.stored[f"out.{name}.value"])]
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
    """The `then` of an input: "clip(0.5 + 0.25 * x, 0, 1), float32", "5 * x", "min(|x|, 1)", "x + [0, 0, 80]"."""
    softmax = "softmax" in text
    text = re.split(r", then|, float32| \(", text)[0]
    text = re.sub(r"(\d) x", r"\1 * x", re.sub(r"\|(.*?)\|", r"abs(\1)", text))
    text = re.sub(r"(\[.*?\])", r"array(\1)", text)
    assert re.fullmatch(r"(clip|min|max|abs|array|x|[\d\s.,()\[\]*+-])+", text), f"input formula not understood: {text}"
    names = {"clip": np.clip, "min": np.minimum, "max": np.maximum, "abs": np.abs, "array": np.array, "x": x}
    value = np.asarray(eval(text, {"__builtins__": {}}, names), np.float32)  # of the characters checked above
    if softmax:
        value = np.exp(value - value.max(-1, keepdims=True))
        value /= value.sum(-1, keepdims=True)
    return value
