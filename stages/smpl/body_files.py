"""Body files: the embedded default, our .npz, and SMPL's files, whose pickles are read without running their content.

In: a .pkl of SMPL (chumpy inside or not), a .npz, or the name of a body added earlier. Out: checked float32 arrays with
a description (stages/smpl/body.py makes a `Body` of them), our .npz, or a pickle that `smplx.SMPL` loads.

A file holds v_template (V, 3), shapedirs (V, 3, B), posedirs (V, 3, 207) or none, J_regressor (24, V), weights (V, 24),
kintree_table (2, 24), f (F, 3); ours also landmarks, vertex_ids, regressor_<joint set> and `about`: JSON with name,
topology, gender, licence, source and its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import AssetError, MachineError
from stages.files.atomic import replacing
from stages.files.folders import cache_dir, packaged
from stages.files.pickles import Refused, load_arrays
from stages.keypoints.joint_sets import SETS, SMPL_PARENTS

EMBEDDED = packaged("data/body.npz")
GENDERS = ("neutral", "female", "male")
NEEDED = "a file of SMPL: 6890 vertices, 24 joints, at least 10 shape components (.pkl or .npz)"
REQUIRED = ("v_template", "shapedirs", "J_regressor", "weights", "kintree_table", "f")
_SMPL_LICENCE = "SMPL body licence (smpl.is.tue.mpg.de); not redistributable"
# Vertices of SMPL for OpenPose's keypoints (the choice of SMPLify and ProHMR).
SMPL_LANDMARKS = {
    "nose": 332,
    "right_eye": 6260,
    "left_eye": 2800,
    "right_ear": 4071,
    "left_ear": 583,
    "left_big_toe": 3216,
    "left_small_toe": 3226,
    "left_heel": 3387,
    "right_big_toe": 6617,
    "right_small_toe": 6624,
    "right_heel": 6787,
}
# (vertices, joints) of related body models, to name what was given instead of SMPL.
_OTHERS = {(10475, 55): "SMPL-X", (6890, 52): "SMPL+H", (778, 16): "MANO", (5023, 5): "FLAME", (10475, 54): "SMPL-X"}

Arrays = dict[str, Any]


def folder() -> Path:
    """Where added bodies live: the folder `bodies` of the cache ($HMR_CACHE)."""
    return cache_dir() / "bodies"


def read_named(name_or_path: str, gender: str = "neutral") -> Arrays:
    """The arrays of "embedded", of a body added by `hmr body-model add` under that name, or of a file.

    Raises AssetError, also where the named body has another gender.
    """
    path = find(name_or_path, gender)
    arrays = read_arrays(path)
    about = arrays["about"]
    if about["gender"] != gender and name_or_path != str(path):
        raise AssetError(
            f"the body {name_or_path} is {about['gender']}, a {gender} one is needed",
            "hmr body-model add FILE --gender ... ; hmr body-model list shows what is there",
        )
    return arrays


def find(name_or_path: str, gender: str = "neutral") -> Path:
    """The file of a body. Raises AssetError that lists what is there."""
    if name_or_path in ("embedded", "hmr-body-1"):  # as users call it, and as artefacts call it
        return EMBEDDED
    path, added = Path(name_or_path), folder() / f"{name_or_path}_{gender}.npz"
    if path.is_file():
        return path
    if os.sep not in name_or_path and added.is_file():
        return added
    available = ", ".join(f"{b['name']} ({b['gender']})" for b in listed())
    raise AssetError(
        f"no body model {name_or_path} ({gender}): neither a file nor added",
        f"there are: {available}; with SMPL's own file: hmr body-model add FILE --name {path.stem} --gender {gender}",
    )


def listed() -> list[dict[str, Any]]:
    """The embedded body and the added ones: name, gender, topology, vertices, licence, path, source_sha256, error."""
    out = []
    for path in [EMBEDDED, *sorted(folder().glob("*.npz"))]:
        row: dict[str, Any] = {"path": str(path), "error": ""}
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                row |= {"vertices": len(file["v_template"]), **about}
        except Exception as error:
            row |= {"name": path.stem, "gender": "", "topology": "", "licence": "", "error": f"damaged: {error}"}
        row["name"] = "embedded" if path == EMBEDDED else path.stem.rpartition("_")[0]
        out.append(row)
    return out


# --- reading ----------------------------------------------------------------------------------------------------------


def read_arrays(path: Path, *, gender: str | None = None) -> Arrays:
    """Checked arrays of a body file, `about` decoded. Raises AssetError with the problem and what is needed."""
    path = Path(path)
    if not path.is_file():
        raise AssetError(f"body model {path}: {'a folder' if path.is_dir() else 'no such file'}", f"needed: {NEEDED}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MachineError(f"body model {path}: {error.strerror}", "may this user read it?") from error
    raw = _decode(data, path)
    about = _about(raw, path, data, gender)
    arrays = _check(raw, path)
    if about["topology"] == "smpl" and "landmarks" not in arrays:
        arrays["landmark_names"] = np.array(list(SMPL_LANDMARKS))
        arrays["landmarks"] = np.eye(6890, dtype=np.float32)[list(SMPL_LANDMARKS.values())]
    return arrays | {"about": about}


def _decode(data: bytes, path: Path) -> Arrays:
    """The named arrays in the file, whatever its form and whatever its name says."""

    def wrong(problem: str, hint: str = f"needed: {NEEDED}") -> AssetError:
        return AssetError(f"body model {path}: {problem}", hint)

    head = data[:512].lstrip().lower()
    if not data:
        raise wrong("the file is empty", "download it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise wrong("a web page, not a body model", "the download asked for a log-in; log in and download again")
    if head.startswith(b"version https://git-lfs"):
        raise wrong("a git-LFS pointer, not the file itself", "run git lfs pull where it came from")
    if data[:4] == b"PK\x03\x04":
        return _decode_zip(data, wrong)
    if data[:2] == b"\x1f\x8b":
        raise wrong("a gzip archive", "unpack it first")
    if data[:1] not in (b"\x80", b"(", b"}", b"c"):
        raise wrong(f"neither a pickle nor an npz (it starts with {data[:8]!r})")
    try:
        return load_arrays(data)
    except Refused as refused:
        raise wrong(
            f"the pickle asks for {refused}, which is not part of a body model; nothing in it was executed",
            f"do not open this file with other tools before you know where it came from; needed: {NEEDED}",
        ) from None
    except ValueError as error:
        raise wrong(f"the pickle cannot be read to its end ({_short(error)})", "cut short? download it again") from None


def _decode_zip(data: bytes, wrong: Any) -> Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise wrong("a zip or npz that is cut short", "download it again") from None
    if not any(n.endswith(".npy") for n in names):
        inside = next((n for n in names if n.endswith((".pkl", ".npz"))), names[0] if names else "nothing")
        raise wrong(f"a zip archive (holding {inside})", "unpack it and name the .pkl of one gender")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise wrong(
                "an array in the npz is a pickle, which is not read", "give the .pkl file of SMPL instead"
            ) from None
        raise wrong(f"the npz cannot be read ({_short(error)})", "cut short? download it again") from None
    except Exception as error:
        raise wrong(f"the npz cannot be read ({_short(error)})", "cut short? download it again") from None


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _about(raw: Arrays, path: Path, data: bytes, gender: str | None) -> dict[str, Any]:
    """Name, topology, gender, licence, source, source_sha256: from the file where it has them."""
    about: dict[str, Any] = {}
    if "about" in raw:
        try:
            about = dict(json.loads(str(raw["about"])))
        except (ValueError, TypeError) as error:
            raise AssetError(f"body model {path}: its description is damaged ({_short(error)})", "") from None
    named = gender_in_name(path.name)
    if gender and named and gender != named:
        raise AssetError(
            f"body model {path}: its name says {named}, {gender} was asked for", f"--gender {named}, or another file"
        )
    if gender and about.get("gender", gender) != gender:
        raise AssetError(f"body model {path}: it is {about['gender']}, {gender} was asked for", "give another file")
    about.setdefault("gender", gender or named or "neutral")
    about.setdefault("topology", "smpl")
    about.setdefault("name", "smpl" if about["topology"] == "smpl" else about["topology"])
    about.setdefault("licence", _SMPL_LICENCE if about["topology"] == "smpl" else "unknown")
    about.setdefault("source", path.name)
    about.setdefault("source_sha256", hashlib.sha256(data).hexdigest())
    return about


def gender_in_name(name: str) -> str | None:
    """The gender that the usual file names of SMPL carry (basicModel_f_lbs..., SMPL_MALE.pkl), or None."""
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    table = {"f": "female", "female": "female", "m": "male", "male": "male", "neutral": "neutral", "n": "neutral"}
    return next((table[w] for w in words if w in table), None)


def _check(raw: Arrays, path: Path) -> Arrays:
    """The arrays in our types. Shapes, finite values, sums of weights, the kinematic tree."""

    def wrong(problem: str) -> AssetError:
        return AssetError(f"body model {path}: {problem}", f"needed: {NEEDED}")

    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        extra = "; it looks like SMPL-X" if "lmk_faces_idx" in raw or "hands_meanl" in raw else ""
        raise wrong(f"{', '.join(missing)} missing (found: {', '.join(sorted(raw)[:12]) or 'nothing'}){extra}")
    try:
        out: Arrays = {key: np.ascontiguousarray(raw[key], np.float32) for key in REQUIRED[:4]}
        out["f"] = np.asarray(raw["f"]).astype(np.int64)
        tree = np.asarray(raw["kintree_table"]).astype(np.int64)
        posedirs = None if raw.get("posedirs") is None else np.ascontiguousarray(raw["posedirs"], np.float32)
    except (ValueError, TypeError) as error:
        raise wrong(f"an array is not made of numbers ({_short(error)})") from None
    V, J = len(out["v_template"]) if out["v_template"].ndim else 0, len(out["weights"].T)
    if (V, J) != (6890, 24):
        model = _OTHERS.get((V, J), "")
        raise wrong(f"{'this is ' + model + ': ' if model else ''}{V} vertices, {J} joints")
    shapes = {"v_template": (V, 3), "J_regressor": (J, V), "weights": (V, J)}
    for key, shape in shapes.items():
        if out[key].shape != shape:
            raise wrong(f"{key} has shape {out[key].shape} instead of {shape}")
    if out["shapedirs"].ndim != 3 or out["shapedirs"].shape[:2] != (V, 3) or out["shapedirs"].shape[2] < 10:
        raise wrong(f"shapedirs has shape {out['shapedirs'].shape} instead of {(V, 3, 10)}")
    out["shapedirs"] = np.ascontiguousarray(out["shapedirs"][..., :10])
    if posedirs is not None and posedirs.any():
        if posedirs.shape != (V, 3, 207):
            raise wrong(f"posedirs has shape {posedirs.shape} instead of {(V, 3, 207)}")
        out["posedirs"] = posedirs
    if out["f"].shape != (13776, 3) or out["f"].min() < 0 or out["f"].max() >= V:
        raise wrong(f"f has shape {out['f'].shape}, entries {out['f'].min(initial=0)} to {out['f'].max(initial=0)}")
    if tree.shape != (2, 24) or (tree[0, 1:] != SMPL_PARENTS[1:]).any():
        raise wrong("kintree_table is not SMPL's kinematic tree")
    for key, value in out.items():
        if not np.isfinite(value).all():
            raise wrong(f"{key} holds values that are not finite")
    if np.abs(out["weights"].sum(1) - 1).max() > 1e-3 or np.abs(out["J_regressor"].sum(1) - 1).max() > 1e-3:
        raise wrong("rows of weights or J_regressor do not sum to one")
    for key in raw:
        if key.startswith(("landmark", "vertex_id", "regressor_", "mirror", "base_vertex")):
            out[key] = np.asarray(raw[key])
    return out


# --- writing ----------------------------------------------------------------------------------------------------------


def add(path: Path, name: str, gender: str | None = None, regressors: Mapping[str, Path] | None = None) -> Path:
    """Convert a body file into the cache under a name; the file it came from is recorded by its SHA-256.

    regressors: joint set -> .npy (J, V). Returns the .npz written. Raises AssetError.
    """
    arrays = read_arrays(path, gender=gender)
    for joint_set, file in (regressors or {}).items():
        arrays[f"regressor_{joint_set}"] = read_regressor(file, joint_set)
    arrays["about"] = arrays["about"] | {"name": name}
    target = folder() / f"{name}_{arrays['about']['gender']}.npz"
    out = {k: v for k, v in arrays.items() if k != "about"}
    out["f"] = out["f"].astype(np.uint16)
    out["kintree_table"] = np.array([SMPL_PARENTS, range(24)], np.int32)
    out["about"] = np.array(json.dumps(arrays["about"], sort_keys=True))
    _write(target, lambda file: np.savez(file, **out))
    return target


def read_regressor(path: Path, joint_set: str) -> np.ndarray:
    """(J, V) float32 from a .npy file. Raises AssetError."""
    shape = (len(SETS[joint_set]), 6890)
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AssetError(f"regressor {path}: cannot be read ({_short(error)})", f"needed: a .npy of {shape}") from None
    if getattr(matrix, "shape", None) != shape or not np.issubdtype(matrix.dtype, np.number):
        raise AssetError(f"regressor {path}: {getattr(matrix, 'shape', 'several arrays')}", f"needed: {shape} numbers")
    return matrix.astype(np.float32)


def write_smplx_pickle(arrays: Arrays, out: Path) -> Path:
    """A pickle that `smplx.SMPL(out, vertex_ids=...)` loads: plain float64 arrays, zero pose blend shapes written out.

    Its `vertex_ids` must be handed to smplx: the ids built into smplx are those of another mesh.
    """
    V = len(arrays["v_template"])
    content: Arrays = {key: arrays[key].astype(np.float64) for key in REQUIRED[:4]}
    content["posedirs"] = np.asarray(arrays.get("posedirs", np.zeros((V, 3, 207))), np.float64)
    content["f"] = arrays["f"].astype(np.uint32)
    content["kintree_table"] = np.array([[2**32 - 1, *SMPL_PARENTS[1:]], range(24)], np.int64)
    content["J"] = content["J_regressor"] @ content["v_template"]
    content |= {"bs_type": "lrotmin", "bs_style": "lbs", "about": json.dumps(arrays["about"], sort_keys=True)}
    for key in ("landmarks", "landmark_names", "vertex_id_names"):
        if key in arrays:
            content[key] = arrays[key]
    if "vertex_ids" in arrays:
        content["vertex_ids"] = arrays["vertex_ids"]
    _write(out, lambda file: pickle.dump(content, file, protocol=2))
    return out


def _write(target: Path, write: Any) -> None:
    """Through a temporary name, so that the target is whole or absent."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary, temporary.open("wb") as file:
            write(file)
    except OSError as error:
        raise MachineError(
            f"{target} cannot be written: {error.strerror or error}", "another place, or HMR_CACHE"
        ) from error
