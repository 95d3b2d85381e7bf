"""`hmr check`: is an artefact whole and valid? Reads every byte once, in slices, so that all checksums are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, KINDS, OK, SKIPPED
from stages.artefacts.table import Artefact, rows_fingerprint
from stages.errors import ArtefactError

SLICE_BYTES = 1 << 22
FIRST = 10  # failed frames, and reasons of failed rows, that a summary lists


def check_file(path: str | Path) -> None:
    """Raise ArtefactError, one sentence with the place inside the file, unless `path` is a whole, valid artefact."""
    with open_artefact(path) as artefact:
        check(artefact)


def check(artefact: Artefact) -> None:
    """Contents of an opened artefact: checksums, indices, statuses, finite values, fingerprint of the rows."""
    where = artefact.path or "the table"
    rows, frames = artefact.rows, artefact.frames
    for table, name in ((frames, "frames"), (rows, "rows")):
        if not np.isin(table["status"], (OK, FAILED, SKIPPED)).all():
            raise ArtefactError(f"{where}: /{name}/status has values other than 0, 1, 2")
    if artefact.n_rows and not ((rows["frame"] >= 0) & (rows["frame"] < artefact.n_frames)).all():
        row = int(np.flatnonzero((rows["frame"] < 0) | (rows["frame"] >= artefact.n_frames))[0])
        raise ArtefactError(f"{where}: /rows/frame of row {row} is {rows['frame'][row]}, there are {artefact.n_frames}")
    names, counts = np.unique(frames["name"].astype(str), return_counts=True)
    if (counts > 1).any():
        raise ArtefactError(f"{where}: /frames/name has {str(names[counts > 1][0])!r} twice")
    ok = rows["status"] == OK
    if not np.isfinite(rows["box"][ok]).all():
        raise ArtefactError(f"{where}: /rows/box of row {_first(ok & ~np.isfinite(rows['box']).all(1))} is not finite")
    check_cameras(artefact)
    stored = artefact.attrs.get("rows_fingerprint")
    if stored and stored != (now := rows_fingerprint(frames, rows)):
        raise ArtefactError(f"{where}: rows_fingerprint says {stored[:12]}, the rows give {now[:12]}")
    for group, name, _ in KINDS[artefact.kind].group_attrs:
        if any(c.startswith(group + "/") for c in artefact.columns()) and name not in artefact.group_attrs(group):
            raise ArtefactError(f"{where}: /{group} has no attribute {name}", f"hmr schema {artefact.kind}")
    nan_ok = KINDS[artefact.kind].nan_ok
    for name in artefact.columns():
        finite = artefact.dtype(name).kind == "f" and name not in nan_ok and not name.startswith("extra/")
        shape = artefact.shape(name)
        step = max(1, SLICE_BYTES // max(1, artefact.dtype(name).itemsize * int(np.prod(shape[1:]))))
        for start in range(0, shape[0], step):
            values = artefact.read(name, slice(start, start + step))
            if finite:
                broken = ok[start : start + step] & ~np.isfinite(values.reshape(len(values), -1)).all(1)
                if broken.any():
                    raise ArtefactError(
                        f"{where}: /{name} of row {start + _first(broken)} is not finite, yet the row is ok"
                    )


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])


def check_cameras(artefact: Artefact) -> None:
    """Raise ArtefactError naming the frame unless every frame with a row that is ok has a usable K: finite, focal
    lengths above 0, last row 0 0 1, and the principal point inside the image (else it may be in crop pixels)."""
    rows, frames = artefact.rows, artefact.frames
    used = np.unique(rows["frame"][rows["status"] == OK])
    K, size = frames["K"][used], frames["size"][used]
    centre = K[:, :2, 2]
    faults = {
        "not finite": ~np.isfinite(K).all((1, 2)),
        "not a camera": (K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0) | (K[:, 1, 0] != 0) | (K[:, 2] != (0, 0, 1)).any(1),
        "the principal point lies outside the image (crop pixels by mistake?)": ((centre < -0.5) | (centre > size)).any(
            1
        ),
    }
    for fault, mask in faults.items():
        if mask.any():
            i = int(used[_first(mask)])
            raise ArtefactError(
                f"{artefact.path or 'the table'}: /frames/K of frame {i} ({frames['name'][i]}): {fault}: "
                + " ".join(f"{v:g}" for v in frames["K"][i].ravel())
            )


def summary(artefact: Artefact) -> dict[str, Any]:
    """What `hmr info` says: kind, counts, columns, provenance, the first reasons of failure."""
    rows, frames = artefact.rows, artefact.frames
    attrs = artefact.attrs
    return {
        "file": str(artefact.path or ""),
        "kind": artefact.kind,
        "schema": attrs.get("schema"),
        "frames": {"all": artefact.n_frames, **_statuses(frames["status"])},
        "rows": {"all": artefact.n_rows, **_statuses(rows["status"])},
        "tracks": len(np.unique(rows["track"][rows["track"] >= 0])),
        "columns": {n: f"{artefact.dtype(n)} {artefact.shape(n)}" for n in artefact.columns()},
        "attributes": {f"{g}.{k}": v for g in _groups(artefact) for k, v in artefact.group_attrs(g).items()},
        "stage": attrs.get("stage"),
        "params": attrs.get("params") or {},
        "inputs": attrs.get("inputs") or [],
        "model": attrs.get("model"),
        "root": attrs.get("root"),
        "created": attrs.get("created"),
        "hmr_version": attrs.get("hmr_version"),
        "command": attrs.get("command"),
        "fingerprint": artefact.fingerprint,
        "rows_fingerprint": artefact.rows_fingerprint,
        "summary": attrs.get("summary"),
        "failures": _failures(artefact),
    }


def _statuses(status: np.ndarray) -> dict[str, int]:
    names = {"ok": OK, "failed": FAILED, "skipped": SKIPPED}
    return {name: int((status == value).sum()) for name, value in names.items()}


def _failures(artefact: Artefact) -> list[str]:
    """The first failed frames by name, then the most frequent reasons of rows that failed for another reason."""
    rows, frames = artefact.rows, artefact.frames
    broken = np.flatnonzero(frames["status"] == FAILED)
    named = ((str(frames["name"][i]), str(frames["error"][i])) for i in broken[:FIRST])
    lines = [f"frame {name}: {error.removeprefix(f'{name}: ')}" for name, error in named]
    if len(broken) > FIRST:
        lines.append(f"and {len(broken) - FIRST} more frames")
    row_alone = (rows["status"] == FAILED) & (frames["status"][rows["frame"]] != FAILED)
    reasons, counts = np.unique(rows["error"][row_alone].astype(str), return_counts=True)
    return lines + [f"rows: {counts[i]} x {reasons[i]}" for i in np.argsort(-counts, kind="stable")[:FIRST]]


def _groups(artefact: Artefact) -> list[str]:
    return sorted({name.split("/")[0] for name in artefact.columns()})
