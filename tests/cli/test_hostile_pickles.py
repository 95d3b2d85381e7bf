"""Pickles that forge pointers, exhaust the memory or are simply damaged: an error in words, never a crash."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from stages.files.pickles import Refused, load_arrays, load_content
from tests.helpers import body_files
from tests.helpers.cli import hmr

OBJECT_FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)  # flags 0: numpy believes it holds no object


class Call:
    """Pickled as the call of a function, with a state."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.made


def forged(state: tuple[Any, ...] = OBJECT_FIELDS, code: str = "V8") -> Call:
    return Call(np.dtype, code, False, True, state=state)


def arrays_of(dtype: Any, data: Any, shape: Any = (1,)) -> dict[str, Call]:
    """The ways in which a pickle makes an array."""
    from numpy._core import multiarray, numeric

    return {
        "frombuffer": Call(numeric._frombuffer, data, dtype, shape, "C"),  # type: ignore[attr-defined]
        "reconstruct": Call(multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data)),
        "scalar": Call(multiarray.scalar, dtype, data),
    }


@pytest.mark.parametrize("how", ["frombuffer", "reconstruct", "scalar"])
def test_bytes_never_become_pointers(tmp_path: Path, how: str) -> None:
    """numpy's own reader takes these eight bytes for the address of an object, and dies of it."""
    array = arrays_of(forged(), b"\x41" * 8)[how]
    data = body_files.chumpy_like({**body_files.arrays(), "v_template": array}, 2)
    path = tmp_path / "evil.pkl"
    path.write_bytes(data)
    result = hmr("body-model", "add", path, HMR_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 4, (result.returncode, result.stderr[-500:])
    assert "refused" in result.stderr or "nothing in it was executed" in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == "" and not list(tmp_path.glob("cache/**/*.npz"))


FORGED = {
    "fields with flags 0": forged(),
    "fields on numbers": forged(code="f8"),
    "subarray": forged((3, "<", (np.dtype("O"), (1,)), None, None, 8, 8, 0), "f8"),
    "void": Call(np.dtype, "V8", False, True),
    "structure": Call(np.dtype, [("a", "O")]),
    "date": np.dtype("M8[s]"),
    "no order": forged((3, "x", None, None, None, -1, -1, 0), "f8"),
    "objects": np.dtype("O"),
}


@pytest.mark.parametrize("how", ["frombuffer", "reconstruct", "scalar"])
@pytest.mark.parametrize("name", FORGED)
def test_forged_types_are_refused(name: str, how: str) -> None:
    with pytest.raises(Refused):
        load_content(pickle.dumps([arrays_of(FORGED[name], b"\x41" * 8)[how]], protocol=4))


@pytest.mark.parametrize("shape", [(2,), (-1,), (2**61,), (2**40, 0), (1.0,), (True, 2), [[1]], "1", (1,) * 40])
@pytest.mark.parametrize("how", ["frombuffer", "reconstruct"])
def test_shape_and_bytes_must_agree(how: str, shape: Any) -> None:
    with pytest.raises((Refused, ValueError)):
        load_content(pickle.dumps(arrays_of(np.dtype("f8"), b"\x41" * 8, shape)[how], protocol=4))


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<u2", ">i4", "<i8", ">f2", "<f4", ">f8", "<c8", ">c16", "S3", "<U4", ">U4"]
)
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_as_they_were(dtype: str, protocol: int) -> None:
    for shape in ((), (3,), (2, 0, 3), (2, 3)):
        made = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for array in (made, np.asfortranarray(made)):
            a, b = load_content(pickle.dumps([array, array], protocol=protocol))
            assert a is b and a.flags.writeable and a.shape == array.shape and a.dtype == made.dtype.newbyteorder("=")
            assert np.array_equal(a, array)
    scalar = np.array(1).astype(dtype)[()]
    assert load_content(pickle.dumps(scalar, protocol=protocol)) == scalar


def test_arrays_of_objects_become_lists() -> None:
    rows = np.empty((2, 2), object)
    rows[:] = [["a", np.ones(3)], [None, [1, 2]]]
    read = load_content(pickle.dumps({"a": rows, "again": rows}))
    assert read["a"][0][0] == "a" and read["a"][1] == [None, [1, 2]] and read["a"] is read["again"]
    assert np.array_equal(read["a"][0][1], np.ones(3))


def test_true_and_false_are_one_and_zero() -> None:
    """numpy adds the bytes up to know how many there are, and writes that many."""
    read = load_content(pickle.dumps(arrays_of(np.dtype("?"), b"\x00\x01\x41\xff", (4,))["frombuffer"]))
    assert read.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("form", ["csc", "csr", "coo"])
def test_sparse_matrices_are_checked(form: str) -> None:
    made = sparse.random(5, 4, 0.5, form, rng=np.random.default_rng(0))
    read = load_content(pickle.dumps(made))
    assert np.array_equal(read.toarray(), made.toarray())
    far = 2**63 - 1
    whole = read.state
    changes: dict[str, Any] = {"shape": [(2, 2), (10**9, 10**9), (4,), (-5, 4)], "data": [made.data[:1], "x", None]}
    if form == "coo":
        changes["coords" if "coords" in whole else "row"] = [np.array([[9], [0]]), np.array([-1])]
    else:
        n = len(whole["indptr"])
        wrapped = np.linspace(0, 2, n).astype(int)
        wrapped[1:3] = far, -far  # their differences are positive, and their sum is small again
        changes["indptr"] = [wrapped, whole["indptr"][::-1].copy(), whole["indptr"] + 1, whole["indptr"][:0]]
        changes["indices"] = [whole["indices"] - 1, whole["indices"] + 4, whole["indices"][:2], made.data]
    for key, values in changes.items():
        for value in values:
            read.state = {**whole, key: value}
            with pytest.raises(ValueError):
                read.toarray()


DEEP = {
    "a key of tuples in tuples": b"})" + b"\x85" * 200_000 + b"K\x01s.",
    "a set of tuples in tuples": b"\x80\x04\x8f()" + b"\x85" * 200_000 + b"\x90.",
    "lists in lists": b"]" * 50_000 + b"a" * 49_999 + b".",
    "lists of themselves": b"]q\x00h\x00a.",
    "2 ** 60 numbers": b"]K\x01a" + b"".join(b"q%c0](h%ch%ce" % (k, k, k) for k in range(60)) + b".",
    "a text of 2 ** 62": b"\x8d" + (2**62).to_bytes(8, "little") + b"x.",
    "bytes of 2 ** 40": b"\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "the memo at 2 ** 31": b"}r\xff\xff\xff\xff.",
    "a state for a function": b"c_codecs\nencode\n}b.",
    "a state for a list": b"]}b.",
    "another thing's list": b"}K\x01a.",
    "bytes of a number": b"c__builtin__\nbytes\nK\x05\x85R.",
    "an array encoded again and again": b"(c_codecs\nencode\nX\x00\x00\x04\x00"
    + b"x" * 0x40000
    + b"X\x06\x00\x00\x00latin1\x86q\x00R"
    + b"c_codecs\nencode\nh\x00R" * 9
    + b"l.",
}


def survive(code: str, *args: Any) -> str:
    """The printed result of Python code, which must end by itself."""
    command = [
        sys.executable,
        "-c",
        f"import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)\n{code}",
    ]
    done = subprocess.run(
        [*command, *map(str, args)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=200
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-1500:]}"
    return done.stdout


READ = """
from pathlib import Path
from stages.errors import HmrError
from stages.files.pickles import Refused
from stages.files.pickles import load_arrays
from stages.files.pickles import load_content
from stages.files.joblib import read_data
read = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_content(path.read_bytes())
        read += 1
        arrays = load_arrays(path.read_bytes())
        [x.sum() for x in arrays.values() if hasattr(x, "sum") and x.dtype.kind in "fiub"]
    except (Refused, ValueError):
        pass
    try:
        str(read_data(path))[:1000]
    except HmrError:
        pass
print("all", read)
"""


def test_what_takes_memory_or_stack_is_refused(tmp_path: Path) -> None:
    for name, data in DEEP.items():
        (tmp_path / name.replace(" ", "_")).write_bytes(b"\x80\x04" + data)
    assert survive(READ, tmp_path).split() == ["all", "1"]  # the memo's number is no size


def test_damaged_pickles_are_errors(tmp_path: Path) -> None:
    """600 small pickles of all kinds with bytes changed, moved or cut, each read as a body and as tracks."""
    joblib = pytest.importorskip("joblib")
    rng = np.random.default_rng(0)
    content = {k: v[:3] for k, v in body_files.arrays().items() if k != "J_regressor"}
    content["shapedirs"], content["J_regressor"] = np.zeros((2, 3, 10)), np.eye(4)[:3]
    things = {
        "names": np.array(["a", "b"]),
        "on": np.array([True, False]),
        "x": np.float32(2),
        "t": (1, {2.5, "a"}, None),
    }
    bodies = [body_files.chumpy_like(content, p) for p in (0, 2)]
    plain = [pickle.dumps({**content, **things, "o": np.array([None, [1]], object)}, p) for p in range(6)]
    good = [*bodies, *plain]
    for data in good:
        assert load_arrays(data)
    for compress in (0, 3):
        joblib.dump({"a.jpg": {"smpl": [content], "size": [[1, 2]]}}, tmp_path / "joblib", compress)
        good.append((tmp_path / "joblib").read_bytes())
    for k in range(600):
        changed = bytearray(good[k % len(good)])
        for _ in range(rng.integers(1, 6)):
            at, to = rng.integers(0, len(changed), 2)
            match rng.integers(4):
                case 0:
                    changed[at] = rng.integers(256)
                case 1:
                    changed[at] ^= 1 << rng.integers(8)
                case 2:
                    changed[at : at + 8] = changed[to : to + 8]
                case _:
                    del changed[at : at + rng.integers(1, 9)]
        (tmp_path / f"{k:03d}").write_bytes(changed)
    assert int(survive(READ, tmp_path).split()[1]) > 20  # some change a number only
