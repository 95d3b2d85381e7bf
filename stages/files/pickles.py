"""Read plain data out of a pickle without running what is in it: numbers, texts, lists, dictionaries, arrays.

For published files: SMPL's own (chumpy objects included), data sets, mesh levels. No class of the file is ever called,
not even numpy's: a pickle may set the state of the objects that it creates, and numpy's `dtype` and `ndarray` accept
states that turn bytes into pointers. Here a name in the pickle stands for an inert object whose state is checked,
and an array is built from bytes that were counted. Any other name is refused, and nothing has been executed by then.

It extends pure Python's unpickler, because the C one trusts the sizes that the file states.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from functools import partial
from typing import Any, ClassVar

import numpy as np

from stages.files.pickle_standins import (
    Array,
    Chumpy,
    DType,
    Inert,
    Refused,
    Sparse,
    checked,
    checked_key,
    checked_shape,
    dense,
    nested,
    written_out,
)

_NOW = {"copy_reg": "copyreg", "__builtin__": "builtins", "_codecs": "codecs"}  # names of Python 2


def _no_bytes() -> bytes:
    return b""  # `bytes(10 ** 12)` would be a program of its own


def _reconstruct(subtype: Any, *_: Any) -> Array:
    if not isinstance(subtype, partial) or subtype.func is not Array:
        raise Refused("an array of an unknown class")
    return Array()


def _reconstructor(cls: Any, *_: Any) -> Any:
    """An object of a class, its state still to come."""
    if not isinstance(cls, partial):
        raise Refused(f"an object of {getattr(cls, '__name__', type(cls).__name__)}")
    return cls()


_REFUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.NEXT_BUFFER),
)


class _Memo(dict[int, Any]):
    """The memo of the stream. It records under which keys each stand-in is stored, so that it can be replaced."""

    def __init__(self) -> None:
        self.keys_of: dict[int, list[int]] = {}

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, Inert):
            self.keys_of.setdefault(id(value), []).append(key)
        super().__setitem__(key, value)

    def replace(self, old: Inert, new: Any) -> None:
        for key in self.keys_of.pop(id(old), ()):
            if self[key] is old:
                self[key] = new


_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Reader(_Base):
    """The content of one pickle: `Reader(data).content()`. Subclasses may know more names (`known`)."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Base.dispatch)

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)
        super().__init__(self.stream, encoding="latin1")
        self.memo = _Memo()
        self.size = len(data)
        # Arrays and encoded texts copy bytes of the file, each byte once: more means that the file repeats them to
        # fill the memory.
        self.left = 3 * len(data) + (1 << 20)

    def content(self) -> Any:
        """What the pickle holds. Raises Refused, or whatever a cut or malformed stream leads to."""
        content = self.load()
        if written_out(content, {}, 0) > 100 * self.size + (1 << 20):
            raise Refused("more numbers than there are in it")
        return content

    # ---- names

    def known(self, module: str, name: str) -> Any:
        """What a name stands for: a function that gives a stand-in or plain data; None if it is not known."""
        if re.fullmatch(r"numpy\.(_?core\.(multiarray|_multivaluesumath|numeric|umath))|numpy", module):
            return {
                "ndarray": partial(Array),
                "dtype": DType,
                "_reconstruct": _reconstruct,
                "scalar": self.scalar,
                "_frombuffer": self.frombuffer,
            }.get(name)
        if module.split(".")[0] == "chumpy" and re.fullmatch(r"\w+", name):
            return partial(Chumpy, f"{module}.{name}")
        if re.fullmatch(r"scipy\.sparse(\.\w+)?", module) and re.fullmatch(r"(csc|csr|coo)_(matrix|array)", name):
            return partial(Sparse, name[:3])
        return {
            ("copyreg", "_reconstructor"): _reconstructor,
            ("codecs", "encode"): self.encode,
            ("builtins", "object"): object,
            ("builtins", "bytes"): _no_bytes,
            ("builtins", "list"): self.make_list,
            ("builtins", "tuple"): self.make_tuple,
            ("builtins", "set"): self.make_set,
            ("builtins", "frozenset"): self.make_set,
            ("builtins", "dict"): self.make_dict,
            ("collections", "OrderedDict"): self.make_dict,
        }.get((_NOW.get(module, module), name))

    def find_class(self, module: str, name: str) -> Any:
        target = self.known(module, name)
        if target is None:
            raise Refused(f"{module}.{name}")
        return target

    # ---- what the names return

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise Refused("more numbers than there are in it")

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"the encoding {encoding!r}")
        self.spend(len(text))
        return text.encode("latin1")

    def array(self, dtype: Any, shape: Any, data: Any, fortran: bool = False) -> Any:
        """An array of checked bytes, in this machine's byte order. Of objects (never bytes): lists in lists."""
        if not isinstance(dtype, DType):
            raise Refused("an array of an unknown type")
        shape = checked_shape(shape)
        count = math.prod(shape)
        if math.prod(max(n, 1) for n in shape) > max(self.size, 1 << 20):
            raise Refused(f"an array of {shape}")
        if dtype.objects:
            if not isinstance(data, list) or len(data) != count:
                raise Refused("an array of objects without its list")
            return nested(list(data), shape)
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        if not isinstance(raw, bytes | bytearray) or len(raw) != count * dtype.real.itemsize:
            raise ValueError(f"an array of {shape} whose bytes are not as many as that")
        self.spend(len(raw))
        raw, real = bytes(raw), dtype.real
        if not count:
            return np.zeros(shape, real.newbyteorder("="))
        if real.kind == "b":  # numpy counts on 0 and 1
            values = np.frombuffer(raw, np.uint8) != 0
        elif real.kind == "U" and np.frombuffer(raw, np.dtype("u4").newbyteorder(real.byteorder)).max() > 0x10FFFF:
            raise ValueError("a text of characters that there are not")
        else:
            values = np.frombuffer(raw, real).astype(real.newbyteorder("="))
        return values.reshape(shape, order="F" if fortran else "C")

    def scalar(self, dtype: Any, data: Any = b"") -> Any:
        if not isinstance(dtype, DType) or dtype.objects:
            raise Refused("a scalar of type object")
        return self.array(dtype, (), data)[()]

    def frombuffer(self, buffer: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
        return self.array(dtype, shape, buffer, fortran=order == "F")

    def make_list(self, items: Any = ()) -> list[Any]:
        if not isinstance(items, list | tuple | set):
            raise Refused(f"a list of a {type(items).__name__}")
        self.spend(8 * len(items))
        return [*items]

    def make_tuple(self, items: Any = ()) -> tuple[Any, ...]:
        return (*self.make_list(items),)

    def make_set(self, items: Any = ()) -> set[Any]:
        return {checked_key(x) for x in self.make_list(items)}

    def make_dict(self, items: Any = ()) -> dict[Any, Any]:
        return {checked_key(k): v for k, v in self.make_list(items)}

    # ---- steps of the stream, where the library's would do more than is needed

    def load_build(self) -> None:
        state = self.stack.pop()
        old = self.stack[-1]
        if not isinstance(old, Inert):
            raise Refused(f"a state for a {type(old).__name__}")
        new = old.build(state, self)
        if new is not old:
            self.stack[-1] = new
            self.memo.replace(old, new)

    def load_newobj(self) -> None:
        self.stack.pop()  # arguments
        self.stack[-1] = _reconstructor(self.stack[-1])

    def load_append(self) -> None:
        value = self.stack.pop()
        checked(self.stack[-1], list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        checked(self.stack[-1], list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        checked(self.stack[-1], dict)[checked_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        checked(self.stack[-1], dict).update({checked_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({checked_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

    def load_additems(self) -> None:
        items = self.pop_mark()
        checked(self.stack[-1], set).update(checked_key(x) for x in items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(checked_key(x) for x in items))

    def load_bytearray8(self) -> None:
        self.append(bytes(self.read(int.from_bytes(self.read(8), "little"))))

    def load_refused(self) -> None:
        raise Refused("something outside the file, or a step that plain data has no need of")

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        **dict.fromkeys((code[0] for code in _REFUSED), load_refused),
    }


# ---- what callers use


def load_content(data: bytes) -> Any:
    """What a pickle holds, sparse matrices as objects with `toarray`. Raises as `load_arrays` does."""
    try:
        return Reader(data).content()
    except Refused:
        raise
    except Exception as error:  # a cut or malformed stream fails in many ways, all of them meaning the same
        raise ValueError(str(error) or type(error).__name__) from error


def load_arrays(data: bytes) -> dict[str, Any]:
    """The dictionary in a pickle: arrays (dense), numbers and strings by name; entries of other kinds are left out.

    Raises Refused for a name that is not allowed (nothing was executed), ValueError for anything that is no whole
    pickle of a dictionary.
    """
    content = load_content(data)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    entries: dict[str, Any] = {}
    for key, value in content.items():
        try:
            plain = isinstance(value, str | int | float | bytes) or value is None
            entries[str(key)] = value if plain else dense(value)
        except Refused:
            raise
        except Exception as error:
            if not isinstance(value, list | tuple):  # a list need not be an array
                raise ValueError(str(error) or type(error).__name__) from error
    return {k: v for k, v in entries.items() if not isinstance(v, np.ndarray) or v.dtype.kind != "O"}
