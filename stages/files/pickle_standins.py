"""Stand-ins for the objects of a foreign pickle (pickles.py): arrays, scipy matrices, chumpy's objects.

A pickle may set the state of the objects that it creates; here that is a checked description, never memory.
"""

from __future__ import annotations

import math
import re
from typing import Any, Protocol

import numpy as np

MAX_DENSE = 50_000_000  # numbers in a sparse matrix written out; the largest in use has 12 million
MAX_DEPTH = 100  # of lists in lists


class Refused(Exception):
    """The pickle asks for something that is not plain data; the message names it."""


class ArrayReader(Protocol):
    """What stand-ins need of the reader of a pickle (stages/files/pickles.py)."""

    def array(self, dtype: Any, shape: Any, data: Any, fortran: bool = False) -> Any: ...


class Inert:
    """A stand-in for an object of the file; `build` is the only thing that the file can make it do."""

    def build(self, state: Any, reader: ArrayReader) -> Any:
        """Take the state that the file gives; returns the value that replaces this object."""
        raise Refused(f"a state for {type(self).__name__}")


class DType(Inert):
    """A type of numbers or texts (or "object", of which only lists are built); its state is the byte order alone."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = _text(code)
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}|O[48]?", code):
            raise Refused(f"numbers of type {code[:40]!r}")
        self.objects = code[0] == "O"
        self.real = np.dtype("u1" if self.objects else code)

    def build(self, state: Any, reader: ArrayReader) -> DType:
        order = _text(state[1]) if isinstance(state, tuple) and len(state) in (8, 9) else ""
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Refused(f"numbers with the state {str(state)[:80]}")
        if not self.objects:
            self.real = self.real.newbyteorder("<" if order == "<" else ">" if order == ">" else "=")
        return self


class Array(Inert):
    """An array before its state is known."""

    def build(self, state: Any, reader: ArrayReader) -> Any:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array without shape, type and content")
        return reader.array(state[2], state[1], state[4], fortran=bool(state[3]))


class Chumpy(Inert):
    """An object of a chumpy class: its state, of which two kinds are understood: a constant (`Ch`: its value) and a
    selection (`Select`: entries of another one)."""

    def __init__(self, kind: str, *_: Any) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def build(self, state: Any, reader: ArrayReader) -> Chumpy:
        self.state = _attributes(state)
        return self

    def value(self, depth: int = 0) -> np.ndarray:
        state = self.state
        if depth > MAX_DEPTH:
            raise Refused(f"{self.kind} nested without end")
        if self.kind.endswith(".Select") and {"a", "idxs"} <= set(state):
            index = np.asarray(state["idxs"])
            if index.dtype.kind not in "iu":
                raise Refused(f"a {self.kind} by indices that are not whole numbers")
            entries = dense(state["a"], depth + 1).ravel()[index]
            shape = state.get("preferred_shape")
            return entries if shape is None else entries.reshape(tuple(int(n) for n in shape))
        if self.kind.endswith(".Ch") and "x" in state:
            return dense(state["x"], depth + 1)
        raise Refused(
            f"a {self.kind} object (with {', '.join(sorted(map(str, state))) or 'nothing'}), a kind not known"
        )


class Sparse(Inert):
    """A scipy matrix (csc, csr, coo): its parts, and the dense array of them."""

    def __init__(self, form: str, *_: Any) -> None:
        self.form = form
        self.state: dict[str, Any] = {}

    def build(self, state: Any, reader: ArrayReader) -> Sparse:
        self.state = {k.lstrip("_"): v for k, v in _attributes(state).items()}
        return self

    def toarray(self) -> np.ndarray:
        """The matrix, dense. Raises ValueError for parts that do not fit together or are too big."""
        p = self.state
        try:
            shape = checked_shape(p["shape"])
            data = _vector(p["data"], "biufc")
            if self.form == "coo":
                row, col = (_vector(x, "iu") for x in (p["coords"] if "coords" in p else (p["row"], p["col"])))
            else:
                starts, minor = _vector(p["indptr"], "iu"), _vector(p["indices"], "iu")
                major_size = shape[1] if self.form == "csc" else shape[0]
                # All of them in range before they are subtracted: numpy repeats by counts whose sum it does not check.
                if (
                    len(starts) != major_size + 1
                    or starts[0] != 0
                    or not 0 <= starts.min() <= starts.max() <= len(minor)
                ):
                    raise ValueError("a sparse matrix with pointers outside")
                counts = np.diff(starts)
                if (counts < 0).any():
                    raise ValueError("a sparse matrix with pointers that go back")
                minor, data = minor[: starts[-1]], data[: starts[-1]]
                major = np.repeat(np.arange(major_size), counts)
                row, col = (minor, major) if self.form == "csc" else (major, minor)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"a sparse matrix without its parts ({error})") from error
        if len(shape) != 2 or math.prod(shape) > MAX_DENSE:
            raise ValueError(f"a sparse matrix of {shape}")
        if not len(row) == len(col) == len(data) or (len(row) and min(row.min(), col.min()) < 0):
            raise ValueError("a sparse matrix whose parts do not fit together")
        array = np.zeros(shape, data.dtype)
        try:
            np.add.at(array, (row, col), data)
        except IndexError as error:
            raise ValueError(f"a sparse matrix with entries outside: {error}") from error
        return array


def _attributes(state: Any) -> dict[str, Any]:
    parts = state if isinstance(state, tuple) else (state,)  # (dict, slots)
    return {str(k): v for part in parts if isinstance(part, dict) for k, v in part.items()}


def _vector(x: Any, kinds: str) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.ndim != 1 or x.dtype.kind not in kinds:
        raise ValueError("a sparse matrix whose parts are no vectors")
    return x.astype(np.int64) if kinds == "iu" else x


def checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if len(sizes) > 32 or not all(isinstance(n, int | np.integer) and 0 <= n < 2**40 for n in sizes):
        raise ValueError(f"the shape {str(shape)[:80]}")
    return tuple(int(n) for n in sizes)


def dense(x: Any, depth: int = 0) -> np.ndarray:
    if isinstance(x, Chumpy):
        return x.value(depth)
    return np.asarray(x.toarray() if isinstance(x, Sparse) else x)


def _text(x: Any) -> str:
    return x.decode("latin1") if isinstance(x, bytes) else x if isinstance(x, str) else ""


def nested(items: list[Any], shape: tuple[int, ...]) -> Any:
    """Objects of an array as lists in lists; of one without dimensions the object itself."""
    if not shape:
        return items[0]
    if len(shape) == 1 or not items:
        return items
    step = len(items) // shape[0]
    return [nested(items[k : k + step], shape[1:]) for k in range(0, len(items), step)]


def checked(x: Any, kind: type) -> Any:
    if not isinstance(x, kind):
        raise Refused(f"a {kind.__name__}'s step on a {type(x).__name__}")
    return x


def checked_key(x: Any) -> Any:
    """A key of a dictionary or entry of a set: plain, for to hash tuples in tuples takes the stack without end."""
    flat = x if isinstance(x, tuple) else (x,)
    if len(flat) > 16 or not all(k is None or isinstance(k, str | bytes | int | float | np.generic) for k in flat):
        raise Refused(f"a key that is a {type(x).__name__}")
    return x


def written_out(x: Any, counts: dict[int, int], depth: int) -> int:
    """Count of numbers and texts in `x`, shared lists wherever they occur: a few lists that hold each other twice make
    2 ** 50."""
    if isinstance(x, Chumpy | Sparse):
        x = x.state
    if not isinstance(x, list | tuple | dict):
        return x.size if isinstance(x, np.ndarray) else 1
    if depth > MAX_DEPTH or counts.get(id(x)) == -1:
        raise Refused("lists nested without end")
    if id(x) not in counts:
        counts[id(x)] = -1
        count = 1
        for entry in x.values() if isinstance(x, dict) else x:
            count += written_out(entry, counts, depth + 1)
        counts[id(x)] = count
    return counts[id(x)]
