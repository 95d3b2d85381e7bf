"""Checkpoints as files: what one holds (`hmr checkpoint`), and a compact copy of it (`hmr convert`).

    hmr convert 3dpw-pc_best_ckpt.pth.tar -o dpmesh.safetensors --dtype float16
    hmr checkpoint dpmesh.safetensors

The class of a network says how its checkpoint is made compact (`compact`) and what is in it (`describe`), see
stages/models/base.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from stages.errors import AssetError, HmrError, InputError, UsageError
from stages.files.checkpoints import Checkpoint, check_finite, read_checkpoint, write_checkpoint
from stages.models import find_loader, loaders
from stages.models.tables import EXTRACTORS, RECOVERERS, REFINERS
from stages.params import ConvertParams
from stages.params.rules import check

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SYSTEMS = RECOVERERS | {n: target for n, target in EXTRACTORS.items() if n not in RECOVERERS} | REFINERS


def convert(source: Path, out: Path, params: ConvertParams = ConvertParams(), *, force: bool = False) -> Path:
    """Write a compact safetensors file. Raises AssetError (source), UsageError (settings), InputError (target)."""
    params = check(params)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out.name}: the compact form is safetensors", f"-o {out.with_suffix('.safetensors').name}")
    checkpoint = read_checkpoint(source)
    loader = find_loader(SYSTEMS, checkpoint)
    tensors, header = loader.compact(checkpoint, fold=params.fold, dtype=DTYPES[params.dtype])
    if out.exists() and not force:
        existing = _header(out)
        if all(existing.get(key) == value for key, value in header.items()):
            return out
        raise InputError(f"{out} exists already, from another file or other settings", "--force replaces it")
    return write_checkpoint(out, tensors, header)


def _header(path: Path) -> dict[str, str]:
    try:
        return dict(read_checkpoint(path).metadata)
    except AssetError:
        return {}


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, which systems it is for, and what it lacks. Raises AssetError if it is unreadable.

    `systems`: names from the tables of `stages.models` that recognise it · `problem`: why its system could not use it,
    '' when it can · `groups`: the beginnings of its names with how many tensors and millions of numbers each.
    """
    checkpoint = read_checkpoint(path)
    groups: dict[str, list[float]] = {}
    for name, tensor in checkpoint.tensors.items():
        count = groups.setdefault(_top(name, checkpoint.names), [0, 0.0])
        count[0] += 1
        count[1] += tensor.numel() / 1e6
    systems = loaders(SYSTEMS, checkpoint)
    details, problem = _details(systems, checkpoint)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": checkpoint.sha256,
        "licence": checkpoint.licence,
        "systems": list(systems),
        "problem": problem,
        "tensors": len(checkpoint.names),
        "millions": round(sum(t.numel() for t in checkpoint.tensors.values()) / 1e6, 2),
        "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in checkpoint.tensors.values())),
        "groups": {name: {"tensors": int(n), "millions": round(m, 2)} for name, (n, m) in sorted(groups.items())},
        "metadata": dict(list(checkpoint.metadata.items())[:32]),
        **details,
    }


def _details(systems: dict[str, Any], checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    details: dict[str, Any] = {}
    try:
        if not systems:
            find_loader(SYSTEMS, checkpoint)
        for name, loader in list(systems.items())[:1]:
            if description := loader.describe(checkpoint):
                details = {name: description}
        check_finite(checkpoint.tensors, where=checkpoint.where)
    except HmrError as error:
        return details, error.message
    return details, ""


def _top(name: str, names: frozenset[str]) -> str:
    """The first part of a name that distinguishes tensors: prefixes that every name shares are left out."""
    parts = name.split(".")
    depth = 1
    while depth < len(parts) and all(n.startswith(".".join(parts[:depth]) + ".") for n in names):
        depth += 1
    return ".".join(parts[:depth])
