"""Checkpoints in and out: tensors by name, never a program.

A published file (`.pth`, `.pt`, `.ckpt`, `.pth.tar`, `.safetensors`, told apart by their first bytes) is read by the
safetensors reader or by torch's weights-only unpickler; nothing else is ever tried. Nested dictionaries become dotted
names ("state_dict.module.head.weight"), and it is the network that asks for prefixes to be taken off.

    checkpoint = read_checkpoint("3dpw-pc_best_ckpt.pth.tar")
    loader = find_loader(RECOVERERS, checkpoint)
    weights = checkpoint.without("state_dict.", "module.")
    check_keys(model.state_dict(), weights, where=checkpoint.where, ignorable=("cond_stage_model.",))
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.errors import AssetError, HmrError, MachineError
from stages.files.atomic import replacing
from stages.files.hashing import sha256_of

AGAIN = "download it again and compare its size or SHA-256 with the publisher's"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file (views of the mapped file where possible: do not write to them) and its text entries."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal; computed when first asked for, and remembered for large files."""
        return sha256_of(self.path)

    @property
    def licence(self) -> str:
        return self.metadata.get("licence", "unknown")

    @property
    def where(self) -> str:
        """What an error message calls this file."""
        return self.path.name

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def without(self, *prefixes: str) -> dict[str, torch.Tensor]:
        """The tensors with each prefix, in this order, taken off the names that carry it.

        Raises AssetError when two different tensors end with the same name.
        """
        result: dict[str, torch.Tensor] = {}
        for name, tensor in self.tensors.items():
            for prefix in prefixes:
                name = name.removeprefix(prefix)
            if name in result and not same(result[name], tensor):
                raise AssetError(
                    f"{self.where} holds {name} twice, with different values", "which of the two is meant is not known"
                )
            result[name] = tensor
        return result


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """One tensor under two names: the same memory, or equal shape and values."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file. Raises AssetError (missing, empty, a web page, cut, hostile, no tensors) or MachineError."""
    path = Path(path)
    try:
        kind = _kind(path)
        tensors, metadata = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)
    except PermissionError as error:
        raise MachineError(f"{path} may not be read", "change its permissions") from error
    except MemoryError as error:
        raise MachineError(
            f"{path} does not fit into memory", "close other programs, or convert it elsewhere (hmr convert)"
        ) from error
    if not tensors:
        raise AssetError(f"{path} holds no tensors", "it is not a weights file")
    return Checkpoint(path, tensors, metadata)


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write safetensors with a header of text entries ("licence", "model", ...). The file appears when it is whole."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    content = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # the user's own; safetensors makes a new file that only its owner may read
            save_file(content, temporary, {name: str(text) for name, text in metadata.items()})
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"{path} could not be written: {error}", "is there room, and may you write there?"
        ) from error
    return path


def check_keys(
    model: Mapping[str, Any],
    file: Mapping[str, Any],
    *,
    where: str = "the checkpoint",
    ignorable: Iterable[str] = (),
    finite: bool = True,
) -> None:
    """Compare the names and shapes a network needs with what a file gives (both: name -> tensor or shape).

    Names of the file that begin with an entry of `ignorable` may be there or not. With `finite`, tensors that the
    network needs must hold no NaN or infinity. Raises AssetError listing what is missing, unexpected, misshaped or
    not finite.
    """
    ignored = tuple(ignorable)
    missing = [n for n in model if n not in file]
    unexpected = [n for n in file if n not in model and not n.startswith(ignored)]
    shared = [n for n in model if n in file]
    misshaped = [
        f"{n}: {_shape(file[n])} for {_shape(model[n])}" for n in shared if tuple(_of(file[n])) != tuple(_of(model[n]))
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    if any(names for _, names in lists):
        text = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in lists if names)
        raise AssetError(
            f"{where} does not fit the network: {text}",
            "is it a checkpoint of another network or version? hmr checkpoint FILE says what it holds",
        )
    odd = [
        f"{n}: {t.dtype} {t.layout}".replace("torch.", "")
        for n in shared
        if isinstance(t := file[n], torch.Tensor) and getattr(model[n], "is_floating_point", bool)() and not _plain(t)
    ]
    if odd:
        raise AssetError(f"{where} holds weights of a kind that no network here has: {_some(odd)}", AGAIN)
    if finite:
        check_finite({n: file[n] for n in shared if isinstance(file[n], torch.Tensor)}, where=where)


def check_finite(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Raise AssetError naming the tensors that hold NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if bad:
        raise AssetError(
            f"{where} holds NaN or infinite weights: {_some(bad)}",
            f"the file is damaged or its training diverged; {AGAIN}",
        )


def _plain(tensor: torch.Tensor) -> bool:
    """Dense numbers in memory: what a weight can be."""
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.layout == torch.strided and tensor.dtype in kinds and tensor.device.type == "cpu"


@contextlib.contextmanager
def usable(where: Any) -> Iterator[None]:
    """Around building a network from a file: what a foreign file trips over is the file's fault, an AssetError."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
        if "out of memory" in str(error):
            raise
        raise AssetError(
            f"{where} cannot be loaded as weights: {type(error).__name__}: {_first_line(error)}",
            "is it whole, and a checkpoint of this network? hmr checkpoint FILE says what it holds",
        ) from error


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # carries NaN through and needs no copy
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _kind(path: Path) -> str:
    """From the first bytes: "safetensors", "zip" (torch) or "pickle" (torch before 1.6), else AssetError."""
    if path.is_dir():
        raise AssetError(f"{path} is a folder, not a weights file", "name the file in it")
    if not path.exists():
        raise AssetError(
            f"no checkpoint at {path}",
            "check the spelling; hmr doctor says what is installed and where to get the rest",
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        raise AssetError(f"{path} is empty (0 bytes)", AGAIN)
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise AssetError(
            f"{path} is a web page, not a weights file",
            "open it in a browser to see what the server said, then download the file itself",
        )
    if text.startswith(b"version https://git-lfs"):
        raise AssetError(f"{path} is a Git LFS pointer, not the weights it stands for", "run: git lfs pull")
    if not head.strip(b"\0"):
        raise AssetError(f"{path} begins with zero bytes: its content was never written", AGAIN)
    if head.startswith(b"PK\x03\x04"):
        if not _has_zip_end(path):
            raise AssetError(
                f"{path} is cut: it begins as a PyTorch file but its end is missing after {size:,} bytes", AGAIN
            )
        return "zip"
    if len(head) >= 9 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < 1 << 40:
        if struct.unpack("<Q", head[:8])[0] > size - 8:
            raise AssetError(f"{path} is cut: its safetensors header is longer than its {size:,} bytes", AGAIN)
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    known = {
        b"\x89HDF": "an HDF5 file",
        b"\x1f\x8b": "a gzip archive",
        b"\x89PNG": "an image",
        b"\xff\xd8\xff": "an image",
        b"7z\xbc\xaf": "a 7z archive",
    }
    what = next((name for magic, name in known.items() if head.startswith(magic)), "")
    what = what or ("a tar archive" if head[257:262] == b"ustar" else f"no weights file: it begins with {head[:8]!r}")
    raise AssetError(
        f"{path} is {what}", "unpack it first" if "archive" in what else "weights are .safetensors or PyTorch files"
    )


def _has_zip_end(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # Python before 3.13 raises for some damage
        return False


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise AssetError(f"{path} is cut or damaged: {_first_line(error)}", AGAIN) from error


def _read_torch(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if kind == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
            raise AssetError(f"{path} is damaged: {error}", AGAIN) from error
        if not any(name.endswith("data.pkl") for name in inside):
            raise AssetError(
                f"{path} is a zip archive without PyTorch weights ({_some(inside)})",
                "unpack it, or name the weights file itself",
            )
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks for issues to be filed with it when it refuses a pickle
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip" or None)
    except (HmrError, MemoryError, PermissionError):
        raise
    except Exception as error:
        raise _refusal(path, error) from error
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    try:
        _flatten("", content, tensors, metadata)
    except RecursionError as error:
        raise AssetError(f"{path} is nested without end: no weights file is", AGAIN) from error
    return tensors, metadata


def _harmless() -> list[Any]:
    """Classes beside tensors that published weights hold (epoch counts as numpy numbers); none runs anything."""
    core = getattr(np, "_core", None) or np.core  # type: ignore[attr-defined]
    types = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?")]
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    old = [(f, f"numpy.core.multiarray.{f.__name__}") for f in (reconstruct, scalar)]
    return [np.ndarray, np.dtype, *types, reconstruct, scalar, *old]


def _refusal(path: Path, error: Exception) -> AssetError:
    text = str(error)
    name = re.search(r"(?:GLOBAL|global|class|type)\s+`?([A-Za-z_][\w]*(?:\.[\w]+)+)`?", text)
    if type(error).__name__ == "UnpicklingError" and name:
        return AssetError(
            f"{path} refused: it would run {name[1]}, which weights do not need; nothing of it was run",
            "if you trust its source, convert it to safetensors once, in a throw-away container",
        )
    if "weights only load failed" in text.lower():
        return AssetError(
            f"{path} refused: it holds more than weights ({_reason(text)})",
            "convert it to safetensors once, in a throw-away container",
        )
    return AssetError(f"{path} is cut or damaged, or no PyTorch file: {_first_line(error)}", AGAIN)


def _flatten(prefix: str, value: Any, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach()
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            tensors[prefix] = torch.from_numpy(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), entry, tensors, metadata)
    elif isinstance(value, (list, tuple)) and len(value) < 10_000:
        for i, entry in enumerate(value):
            _flatten(f"{prefix}.{i}" if prefix else str(i), entry, tensors, metadata)
    elif isinstance(value, (str, int, float, bool, np.generic)):
        metadata[prefix] = value if isinstance(value, str) else json.dumps(value, default=str)


def _of(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))


def _shape(value: Any) -> str:
    return " x ".join(map(str, _of(value))) or "a number"


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f", ... {len(names) - most} more" if len(names) > most else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _reason(text: str) -> str:
    """Of torch's long text only what it met."""
    if operand := re.search(r"Unsupported operand (\d+)", text):
        return f"a pickle with step {operand[1]}, which torch never writes"
    return (text.partition("WeightsUnpickler error:")[2].strip() or text.strip()).splitlines()[0][:200]
