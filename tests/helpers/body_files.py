"""Body files made for tests: pickles of the free body with chumpy objects and scipy matrices, as SMPL's own are."""

from __future__ import annotations

import pickle
import pickletools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from stages.smpl import body_files


def arrays() -> dict[str, Any]:
    """The free body's arrays as SMPL's file names them, without our extra keys: what a foreign file looks like."""
    ours = body_files.read_arrays(body_files.EMBEDDED)
    out = {k: ours[k].astype(np.float64) for k in ("v_template", "shapedirs", "J_regressor", "weights")}
    rng = np.random.default_rng(3)
    posedirs = np.zeros((6890, 3, 207))
    posedirs[::7] = rng.normal(0, 1e-3, (985, 3, 207))
    tree = np.array([[2**32 - 1, *body_files.SMPL_PARENTS[1:]], range(24)], np.uint32)
    return out | {"posedirs": posedirs, "f": ours["f"].astype(np.uint32), "kintree_table": tree}


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def chumpy_like(content: dict[str, Any], protocol: int) -> bytes:
    """A pickle as Python 2 wrote SMPL's: v_template a chumpy Ch, shapedirs a Select of a larger one, J_regressor a
    scipy csc matrix under its old module path. The chumpy classes exist only while this pickles."""
    from scipy import sparse

    module = types.ModuleType("chumpy.ch")
    package = types.ModuleType("chumpy")
    reorder = types.ModuleType("chumpy.reordering")
    Ch = type("Ch", (), {"__module__": "chumpy.ch", "__qualname__": "Ch"})
    Select = type("Select", (), {"__module__": "chumpy.reordering", "__qualname__": "Select"})
    module.Ch, reorder.Select, package.ch, package.reordering = Ch, Select, module, reorder  # type: ignore[attr-defined]

    def make(cls: Any, **state: Any) -> Any:
        made = cls()
        made.__dict__.update(state)
        return made

    shape = content["shapedirs"]
    wide = np.concatenate([shape, shape[..., :5] * 0], 2)  # 15 components, of which 10 are selected
    index = np.arange(wide.size).reshape(wide.shape)[..., :10].ravel()
    changed = dict(content)
    changed["v_template"] = make(Ch, x=content["v_template"])
    changed["shapedirs"] = make(Select, a=make(Ch, x=wide), idxs=index, preferred_shape=shape.shape)
    changed["J_regressor"] = sparse.csc_matrix(content["J_regressor"])
    sys.modules.update({"chumpy": package, "chumpy.ch": module, "chumpy.reordering": reorder})
    try:
        data = pickle.dumps(changed, protocol=protocol)
    finally:
        for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
            del sys.modules[name]
    names = {arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    assert protocol > 2 or any(name.startswith("chumpy") for name in names)
    return data
