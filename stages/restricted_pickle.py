"""Plain data out of a pickle or a joblib file, without running what is in it.

joblib (PHALP, 4D-Humans) writes a pickle, usually compressed with zlib, in which each numpy array is a small
description followed by its raw bytes in the stream. Only names that stages/human/restricted_pickle.py allows are
called; the description of an array becomes an inert object here. Anything else is refused before it runs.
"""

from __future__ import annotations

import io
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError, InputError
from stages.human.restricted_pickle import MAX_ENTRIES, Refused, _Unpickler

MAX_BYTES = 1 << 32  # of a file, unpacked
_TENSORS = {"torch._utils", "torch", "torch.storage"}


class _Wrapped:
    """joblib's description of an array: shape, dtype, order; the bytes follow."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def read(self, stream: Any) -> np.ndarray:
        shape, dtype, order = (self.state.get(k) for k in ("shape", "dtype", "order"))
        if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(shape, tuple):
            raise Refused("an array that holds objects")
        count = math.prod(int(n) for n in shape)
        if not 0 <= count <= MAX_ENTRIES:
            raise Refused(f"an array of {shape}")
        if self.state.get("numpy_array_alignment_bytes") is not None:
            stream.read(stream.read(1)[0])
        data = stream.read(count * dtype.itemsize)
        return np.frombuffer(data, dtype, count).reshape(shape, order="F" if order == "F" else "C")


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """The pure-Python unpickler, because joblib's arrays interrupt the stream."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream, encoding="latin1")
        self.stream = stream

    def find_class(self, module: str, name: str) -> Any:
        if module == "joblib.numpy_pickle" and name in ("NumpyArrayWrapper", "NDArrayWrapper"):
            return _Wrapped
        if module.split(".")[0] in _TENSORS or module in _TENSORS:
            raise Refused(f"{module}.{name} (a torch tensor)")
        return _Unpickler.find_class(self, module, name)  # type: ignore[arg-type]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to something outside the file")

    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def load_build(self: Any) -> None:
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]
        if isinstance(self.stack[-1], _Wrapped):
            self.stack[-1] = self.stack[-1].read(self.stream)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def read_data(path: Path) -> Any:
    """What a pickle or joblib file holds: dictionaries, lists, numbers, texts, arrays.

    Raises InputError for a file that is missing, cut or no pickle; AssetError (refused) for one that would run code.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        if data[:1] == b"\x78":  # zlib, as joblib compresses
            unpack = zlib.decompressobj()
            data = unpack.decompress(data, MAX_BYTES)
            if unpack.unconsumed_tail:
                raise InputError(f"{path} unpacks to more than {MAX_BYTES >> 30} GB")
        return _Reader(io.BytesIO(data)).load()
    except Refused as refused:
        raise AssetError(
            f"{path} refused: it asks for {refused}; nothing of it was run", "only plain data is read from pickles"
        ) from refused
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no whole pickle: {error or type(error).__name__}") from error
