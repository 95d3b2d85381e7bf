"""Read arrays out of a pickle without running what is in it. Made for SMPL's own files, chumpy objects included.

Only the constructors of numpy arrays and scipy sparse matrices are called. Every class of chumpy becomes an inert
object that keeps its state, of which two kinds are understood: a constant (`Ch`: its value) and a selection (`Select`:
entries of another one). Any other name is refused, and nothing has been executed by then.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np

MAX_ENTRIES = 500_000_000  # numbers in one array; SMPL's largest has 4 million


class Refused(Exception):
    """The pickle asks for something that is not an array; the message names it."""


class _Chumpy:
    """Stands in for an object of a chumpy class: its state and the name of the class."""

    kind = "chumpy"

    def __new__(cls, *args: Any, **kwargs: Any) -> _Chumpy:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):  # (dict, slots)
            state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
        self.state = state if isinstance(state, dict) else {}

    def value(self, depth: int = 0) -> np.ndarray:
        state = getattr(self, "state", {})
        if depth > 50:
            raise Refused(f"{self.kind} nested without end")
        if self.kind.endswith(".Select") and {"a", "idxs"} <= set(state):
            entries = _array(state["a"], depth + 1).ravel()[np.asarray(state["idxs"]).astype(np.int64)]
            shape = state.get("preferred_shape")
            return entries if shape is None else entries.reshape(tuple(int(n) for n in shape))
        if self.kind.endswith(".Ch") and "x" in state:
            return _array(state["x"], depth + 1)
        raise Refused(
            f"a {self.kind} object (with {', '.join(sorted(map(str, state))) or 'nothing'}), a kind not known"
        )


def _array(x: Any, depth: int = 0) -> np.ndarray:
    if isinstance(x, _Chumpy):
        return x.value(depth)
    if hasattr(x, "toarray"):
        if math.prod(x.shape) > MAX_ENTRIES:
            raise Refused(f"a sparse matrix of {x.shape}")
        x = x.toarray()
    return np.asarray(x)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _reconstruct(subtype: type, shape: Any, dtype: Any) -> np.ndarray:
    if subtype is not np.ndarray:
        raise Refused(f"an array of type {subtype}")
    if math.prod(shape) > MAX_ENTRIES:
        raise Refused(f"an array of {shape}")
    return np.ndarray.__new__(np.ndarray, tuple(shape), dtype)


def _scalar(dtype: np.dtype, value: bytes = b"") -> Any:
    if dtype.hasobject:
        raise Refused("a scalar of type object")
    return np.frombuffer(value.encode("latin1") if isinstance(value, str) else value, dtype)[0]


def _frombuffer(buffer: Any, dtype: np.dtype, shape: Any, order: Any = "C") -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


class _Sparse:
    """Keeps the state of a scipy matrix and makes the dense array of it (csc, csr, coo)."""

    form = "csc"

    def __setstate__(self, state: Any) -> None:
        state = state if isinstance(state, dict) else {}
        self.parts = {k.lstrip("_"): v for k, v in state.items()}

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(int(n) for n in self.parts["shape"])  # type: ignore[return-value]

    def toarray(self) -> np.ndarray:
        from scipy import sparse

        p = self.parts
        if self.form == "coo":
            if "coords" in p:
                p = p | {"row": p["coords"][0], "col": p["coords"][1]}
            return sparse.coo_matrix((p["data"], (p["row"], p["col"])), self.shape).toarray()
        matrix = sparse.csc_matrix if self.form == "csc" else sparse.csr_matrix
        made = matrix((p["data"], p["indices"], p["indptr"]), self.shape)
        made.check_format(full_check=True)
        return made.toarray()


# Empty or from a list only: `bytes(10 ** 12)` would be a program of its own.
_BUILTINS = {"dict": dict, "list": list, "set": set, "tuple": tuple, "object": object, "bytes": lambda: b""}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "chumpy" and re.fullmatch(r"\w+", name):
            return type("_Chumpy_" + name, (_Chumpy,), {"kind": f"{module}.{name}"})
        if re.fullmatch(r"numpy\._?core\.(multiarray|_multiarray_umath|numeric|umath)|numpy", module):
            found = {
                "ndarray": np.ndarray,
                "dtype": np.dtype,
                "_reconstruct": _reconstruct,
                "scalar": _scalar,
                "_frombuffer": _frombuffer,
            }.get(name)
            if found is not None:
                return found
        if re.fullmatch(r"scipy\.sparse(\.\w+)?", module) and re.fullmatch(r"(csc|csr|coo)_(matrix|array)", name):
            return type("_Sparse_" + name, (_Sparse,), {"form": name[:3]})
        if module in ("copy_reg", "copyreg") and name == "_reconstructor":
            return _reconstructor
        if module == "_codecs" and name == "encode":
            return _encode
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if module == "collections" and name == "OrderedDict":
            return dict
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference to something outside the file")


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    """copy_reg._reconstructor for the stand-ins only; no __init__ is called."""
    if isinstance(cls, type) and issubclass(cls, _Sparse | _Chumpy):
        return object.__new__(cls)
    raise Refused(f"an object of {getattr(cls, '__name__', cls)}")


def load_content(data: bytes) -> Any:
    """What a pickle holds, sparse matrices as objects with `toarray`. Raises as `load_arrays` does."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Refused:
        raise
    except Exception as error:  # a cut or malformed stream fails in many ways, all of them meaning the same
        raise ValueError(str(error) or type(error).__name__) from error


def load_arrays(data: bytes) -> dict[str, Any]:
    """The dictionary in a pickle: arrays (dense), numbers and strings by name.

    Raises Refused for a name that is not allowed (nothing was executed), ValueError for anything that is no whole
    pickle of a dictionary.
    """
    content = load_content(data)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    try:
        return {
            str(k): v if isinstance(v, str | int | float | bool | bytes) or v is None else _array(v)
            for k, v in content.items()
        }
    except Refused:
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
