"""Plain data out of a joblib file (or a plain pickle), without running what is in it.

joblib (PHALP, 4D-Humans) writes a pickle, usually compressed with zlib, in which each numpy array is a small
description followed by its raw bytes in the stream. Everything else must be what stages/files/pickles.py allows;
any other name is refused before it runs.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import AssetError, InputError
from stages.files.pickle_standins import DType, Inert, Refused, checked_shape
from stages.files.pickles import Reader

MAX_BYTES = 1 << 32  # of a file, unpacked


class Wrapped(Inert):
    """joblib's description of an array: shape, dtype, order; the bytes follow."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, state: Any, reader: Any) -> Any:
        state = state if isinstance(state, dict) else {}
        shape, dtype = checked_shape(state.get("shape")), state.get("dtype")
        if not isinstance(dtype, DType) or dtype.objects:
            raise Refused("an array that holds objects")
        if state.get("numpy_array_alignment_bytes") is not None:
            reader.stream.read(reader.stream.read(1)[0])
        data = reader.stream.read(math.prod(shape) * dtype.real.itemsize)
        return reader.array(dtype, shape, data, fortran=state.get("order") == "F")


class JoblibReader(Reader):
    def known(self, module: str, name: str) -> Any:
        if module == "joblib.numpy_pickle" and name in ("NumpyArrayWrapper", "NDArrayWrapper"):
            return partial(Wrapped)
        if module.split(".")[0] == "torch":
            raise Refused(f"{module}.{name} (a torch tensor)")
        return super().known(module, name)


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
        return JoblibReader(data).content()
    except Refused as refused:
        raise AssetError(
            f"{path} refused: it asks for {refused}; nothing of it was run", "only plain data is read from pickles"
        ) from refused
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no whole pickle: {error or type(error).__name__}") from error
