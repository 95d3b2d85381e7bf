"""The loop of every stage: batches of rows -> compute -> parts -> artefact. Resume, shards, failed rows, Ctrl-C.

In: a `Job` (what is made of what) and `load`, which returns the function batch -> columns and is called only when work
is left. Out: the path of the whole artefact, or an `Artefact` in memory when `out` is None.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.artefact import Artefact, frame_tables, open_artefact
from stages.check import check_file
from stages.columns import Column
from stages.errors import ArtefactError, InputError, Interrupted, MachineError, RowsFailed, UsageError
from stages.kinds import FAILED, KINDS, OK, ROWS, SCHEMA
from stages.params import to_json
from stages.parts import Finish, Parts, check_space, empty_rows, join_in_memory, join_on_disk, n_parts, part_range
from stages.schema import find_column

PART_ROWS, PART_FRAMES, BATCH = 256, 64, 64


class Report:
    """Where progress is told; this one keeps silent. hmr_cli/report.py has those for people."""

    def start(self, title: str, total: int | None = None, *, unit: str = "rows", done: int = 0) -> None: ...
    def advance(self, n: int) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


SILENT = Report()


class Input(Protocol):
    """What a job is made of: an Artefact, or the FrameList of `hmr detect`."""

    kind: str
    path: Path | None

    @property
    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """How to run, none of which changes a value: see the shared flags of the command line."""

    device: str = "auto"
    batch_size: int | None = None
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    fresh: bool = False
    force: bool = False
    strict: bool = False
    dry_run: bool = False
    report: Any = SILENT


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage makes: `kind` with `columns`, by `stage` with `params` from `inputs` (role -> artefact; the first
    one gives frames and rows) and `model` ({name, sha256, licence} or None).

    `columns`: letters in shapes are found from the first output; `group_attrs` {group: {name: value}}; `attrs` more
    root attributes. `part_rows`: rows (frames for run_frames) between two saves, smaller for slow networks. `finish`, a
    module-level function, sees the whole table and returns (row columns to replace, root attributes to add).
    """

    stage: str
    kind: str
    params: Any
    inputs: Mapping[str, Any]
    columns: tuple[Column, ...]
    model: Mapping[str, Any] | None = None
    group_attrs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = BATCH
    part_rows: int | None = None
    finish: Finish | None = None


Compute = Callable[[np.ndarray], Mapping[str, Any]]
Tables = dict[str, np.ndarray]
NO_FRAMES: Tables = frame_tables(
    {"name": [], "size": np.zeros((0, 2)), "K": np.zeros((0, 3, 3))}, {"frame": [], "box": np.zeros((0, 4))}
)


def run_rows(job: Job, load: Callable[[], Compute], out: Path | None, run: Run) -> Path | Artefact:
    """Compute every row of the job's first input whose status is ok, in batches, and commit the artefact.

    compute(rows int64 (n,)) -> {column: array (n, ...)} and optionally "error": n texts ('' = ok). A row that fails or
    is not finite keeps its place with status, reason and NaN. Raises ArtefactError (rows of the inputs differ; target
    or parts made otherwise), MachineError, Interrupted, RowsFailed (strict), InputError (every row failed).
    """
    source: Artefact = next(iter(job.inputs.values()))
    check_rows_agree({role: value for role, value in job.inputs.items() if isinstance(value, Artefact)})
    tables = {f"frames/{n}": v for n, v in source.frames.items()}
    tables |= {f"rows/{n}": v for n, v in source.rows.items() if n not in ("status", "error")}
    header = make_header(job, "rows", source.n_rows, job.part_rows or PART_ROWS, out, source.rows_fingerprint)

    def work(start: int, stop: int, compute: Compute, batch: list[int]) -> Tables:
        status, error = source.rows["status"][start:stop].copy(), source.rows["error"][start:stop].copy()
        part: Tables = {"rows/status": status, "rows/error": error}
        todo = start + np.flatnonzero(status == OK)
        while len(todo):
            now, todo = todo[: batch[0]], todo[batch[0] :]
            for rows, values in attempt(compute, now, batch, run.report):
                _store(job, part, rows - start, stop - start, values)
        return part

    return _drive(job, header, tables, work, load, out, run)


def run_frames(
    job: Job, n_frames: int, load: Callable[[], Callable[..., Any]], out: Path | None, run: Run
) -> Path | Artefact:
    """Find rows in frames (detect). compute(frames int64 (n,)) -> (frames: the columns of `frames` for these frames,
    rows: the columns of `rows` with `frame` in whole-job numbers, columns: {name: array per row})."""
    return _run_frames(job, make_header(job, "frames", n_frames, job.part_rows or PART_FRAMES, out, ""), load, out, run)


def run_whole(job: Job, build: Callable[[], Artefact], out: Path | None, run: Run) -> Path | Artefact:
    """A stage that makes its table at once (import): the same commit, refusal and provenance. build() -> Artefact."""

    def load() -> Callable[..., Any]:
        table = build()
        columns = {n: table.read(n) for n in table.columns()}
        return lambda frames: (table.frames, table.rows, columns)

    return _run_frames(job, make_header(job, "whole", 1, 1, out, ""), load, out, run)


def _run_frames(
    job: Job, header: dict[str, Any], load: Callable[..., Any], out: Path | None, run: Run
) -> Path | Artefact:
    def work(start: int, stop: int, compute: Callable[..., Any], batch: list[int]) -> Tables:
        pieces: list[Tables] = []
        todo = np.arange(start, stop)
        while len(todo):
            now, todo = todo[: batch[0]], todo[batch[0] :]
            for frames, values in attempt(compute, now, batch, run.report, whole=True):
                pieces.append(_frame_tables(job, frames, values))
        return {
            n: np.concatenate([p[n] for p in pieces if n in p]) for n in dict.fromkeys(k for p in pieces for k in p)
        }

    return _drive(job, header, NO_FRAMES, work, load, out, run)


# ---- one job -------------------------------------------------------------------------------------------------------


def make_header(job: Job, per: str, n: int, part_rows: int, out: Path | None, rows_print: str) -> dict[str, Any]:
    """The root attributes of what the job makes, and what its parts need to be joined by."""
    params = json.loads(to_json(job.params)) if dataclasses.is_dataclass(job.params) else dict(job.params or {})
    inputs = [{"role": r, "kind": a.kind, "fingerprint": a.fingerprint} for r, a in job.inputs.items()]
    model = dict(job.model) if job.model else None
    for column in job.columns:
        find_column(job.kind, column.name)
    identity = {
        "kind": job.kind, "schema": SCHEMA, "stage": job.stage, "params": params, "rows": rows_print,
        "inputs": [[i["role"], i["fingerprint"]] for i in inputs],
        "model": model and {k: model.get(k) for k in ("name", "sha256")},
    }  # fmt: skip
    header: dict[str, Any] = {
        "kind": f"hmr/{job.kind}", "schema": SCHEMA, "stage": job.stage, "params": params, "inputs": inputs,
        "model": model, "rows_fingerprint": rows_print, "hmr_version": _version(),
        "fingerprint": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]]),
        **job.attrs,
        "per": per, "n": n, "part_rows": part_rows, "group_attrs": {g: dict(a) for g, a in job.group_attrs.items()},
        "columns": [[c.name, c.dtype, list(c.shape), c.optional] for c in job.columns],
        "finish": f"{job.finish.__module__}:{job.finish.__qualname__}" if job.finish else "",
    }  # fmt: skip
    root = next((r for a in job.inputs.values() if (r := getattr(a, "root", None)) is not None), None)
    if root is not None and "root" not in header:
        header["root"] = _relative(root, out)
    return header


def _relative(root: Path, out: Path | None) -> str:
    """Where the pictures are, as seen from the target; no absolute path goes into a file."""
    if out is None:
        return str(Path(root).absolute())
    try:
        return Path(os.path.relpath(root, out.absolute().parent)).as_posix()
    except ValueError:  # another drive
        return ""


def _version() -> str:
    try:
        return version("hmr")
    except PackageNotFoundError:
        return "unknown"


def _drive(
    job: Job,
    header: dict[str, Any],
    tables: Tables,
    work: Callable[..., Tables],
    load: Callable[[], Any],
    out: Path | None,
    run: Run,
) -> Path | Artefact:
    """The same for every stage: what is there already, what is left, part by part, commit."""
    batch = [run.batch_size or job.batch_size]
    if run.shard[1] > 1 and out is None:
        raise UsageError("shards need a file to meet in", "give -o")
    if out is None:
        parts_in_memory = []
        if n_parts(header):
            compute = load()
            for part in range(n_parts(header)):
                start, stop = part_range(header, part)
                parts_in_memory.append(work(start, stop, compute, batch))
                run.report.advance(stop - start)
        whole = join_in_memory(header, tables, parts_in_memory, job.finish)
        return verdict(whole, run)
    out = Path(out)
    _check_out(job, out)
    if out.exists() and not run.force and _is_current(out, header):
        run.report.note(f"{out} is up to date")
        with open_artefact(out) as artefact:
            verdict(artefact, run)
        return out
    parts = Parts(out)
    if run.dry_run:
        return _dry_run(parts, header, run)
    check_space(out, _estimate(job, header))
    with parts.writing(run.shard):
        _settle(parts, header, tables, run)
        done = parts.present(header)
        mine = [p for p in range(n_parts(header)) if p % run.shard[1] == run.shard[0] and p not in done]
        if mine:
            finished = sum(b - a for a, b in (part_range(header, p) for p in done))
            run.report.start(job.stage, int(header["n"]), unit=header["per"], done=finished)
            compute = load()
            with interruptible(out, run.report) as stopped:
                for part in mine:
                    start, stop = part_range(header, part)
                    parts.write(part, {"fingerprint": header["fingerprint"]}, work(start, stop, compute, batch))
                    run.report.advance(stop - start)
                    if stopped and part != mine[-1]:
                        raise Interrupted(f"stopped; {out} is not finished", "the same command resumes", stopped[0])
            run.report.finish()
        if missing := set(range(n_parts(header))) - parts.present(header):
            run.report.note(
                f"{len(missing)} of {n_parts(header)} parts are left to other shards; then: hmr merge {out}"
            )
            return parts.folder
        merge(out)
    with open_artefact(out) as artefact:
        verdict(artefact, run)
    return out


def merge(out: Path) -> Path:
    """Join the parts of `out` (`hmr merge`). Raises ArtefactError naming the parts that are missing."""
    parts = Parts(out)
    header = parts.header()
    if header is None:
        raise InputError(f"{out}: there are no parts to merge", f"looked for {parts.header_path}")
    missing = sorted(set(range(n_parts(header))) - parts.present(header))
    if missing:
        some = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ArtefactError(
            f"{out}: {len(missing)} of {n_parts(header)} parts are missing ({some})",
            "run the shards that are not finished, or the same command without --shard",
        )
    finish = None
    if header["finish"]:
        module, _, name = header["finish"].partition(":")
        if not module.startswith("stages."):
            raise ArtefactError(
                f"{out} can only be finished by the program that made it", "run it again without shards"
            )
        finish = getattr(importlib.import_module(module), name)
    return join_on_disk(parts, finish, check_file)


def verdict(artefact: Artefact, run: Run) -> Artefact:
    """Say how many rows and frames failed. Raises RowsFailed under --strict, InputError when nothing was left."""
    for unit, table, n in (("rows", artefact.rows, artefact.n_rows), ("frames", artefact.frames, artefact.n_frames)):
        failed = np.flatnonzero(table["status"] == FAILED)
        if not len(failed):
            continue
        first = table["error"][failed[0]]
        text = f"{len(failed)} of {n} {unit} failed, first {unit[:-1]} {failed[0]}: {first}"
        if len(failed) == n:
            raise InputError(f"every {unit[:-1]} failed: {first}", "the file is written and says why for each")
        if run.strict:
            raise RowsFailed(text, "the file is written; without --strict this is only a warning")
        run.report.warn(text)
    return artefact


def _check_out(job: Job, out: Path) -> None:
    for role, value in job.inputs.items():
        path = getattr(value, "path", None)
        if path is not None and out.exists() and path.exists() and os.path.samefile(out, path):
            raise UsageError(f"-o {out} is also the input ({role})", "choose another name")
    if out.is_dir():
        raise UsageError(f"-o {out} is a folder", f"name a file: {out / f'x.{job.kind}.h5'}")


def _is_current(out: Path, header: Mapping[str, Any]) -> bool:
    """Is the finished target the one asked for? Raises ArtefactError listing the differences if not."""
    try:
        with open_artefact(out) as artefact:
            have = artefact.attrs
    except ArtefactError as error:
        raise ArtefactError(f"{error.message}; it is in the way", "--force replaces it") from error
    if have.get("fingerprint") == header["fingerprint"]:
        return True
    raise ArtefactError(f"{out} exists and was made otherwise: {differences(have, header)}", "--force replaces it")


def _settle(parts: Parts, header: dict[str, Any], tables: Tables, run: Run) -> None:
    """Leave either parts of this very job or none, and the header."""
    if run.fresh:
        parts.discard(marks=False)
    try:
        have = parts.header()
    except ArtefactError:
        have = {}
    if have is not None and any(have.get(k) != header[k] for k in ("fingerprint", "part_rows", "n", "per")):
        raise ArtefactError(
            f"{parts.folder} holds parts made otherwise: {differences(have, header)}",
            "--fresh discards them; the settings they were made with resume them",
        )
    if run.shard[1] == 1:
        parts.clean()
    parts.create(header, tables)


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    """What makes two jobs different, old -> new, in one line."""
    found = []
    old, new = have.get("params") or {}, want.get("params") or {}
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            found.append(f"{name} {old.get(name)!r} -> {new.get(name)!r}")
    olds = {i["role"]: i["fingerprint"] for i in have.get("inputs") or []}
    news = {i["role"]: i["fingerprint"] for i in want.get("inputs") or []}
    for role in sorted({*olds, *news}):
        if olds.get(role) != news.get(role):
            found.append(f"input {role} {(olds.get(role) or 'none')[:12]} -> {(news.get(role) or 'none')[:12]}")
    for name in ("kind", "schema", "stage", "part_rows"):
        if name in have and have.get(name) != want.get(name):
            found.append(f"{name} {have.get(name)} -> {want.get(name)}")
    old_model, new_model = have.get("model") or {}, want.get("model") or {}
    if any(old_model.get(k) != new_model.get(k) for k in ("name", "sha256")):
        found.append(f"model {_model_name(old_model)} -> {_model_name(new_model)}")
    return "; ".join(found) or "another origin"


def _model_name(model: Mapping[str, Any]) -> str:
    return f"{model.get('name', 'none')} {str(model.get('sha256') or '')[:12]}".strip()


def _dry_run(parts: Parts, header: dict[str, Any], run: Run) -> Path:
    have = parts.header() if parts.folder.is_dir() else None
    same = have is not None and have.get("fingerprint") == header["fingerprint"]
    done = sum(parts.path(p).exists() for p in range(n_parts(header))) if same else 0
    other = f"; {parts.folder} holds parts made otherwise" if have is not None and not same else ""
    run.report.note(
        f"would make {parts.out}: {header['n']} {header['per']}, {done} of {n_parts(header)} parts are there{other}"
    )
    return parts.out


def _estimate(job: Job, header: Mapping[str, Any]) -> int:
    """Bytes of parts and target together, as far as the sizes of the columns are known."""
    row = 0
    for column in (*ROWS, *job.columns):
        if column.dtype != "str":
            joints = len((job.group_attrs.get(column.name.split("/")[0]) or {}).get("joints") or ()) or 1
            size = [joints if s == "J" else 1 if isinstance(s, str) else s for s in column.shape[1:]]
            row += np.dtype(column.dtype.split("|")[0]).itemsize * int(np.prod(size))
    return int(2.1 * row * int(header["n"]))


# ---- batches -------------------------------------------------------------------------------------------------------


def attempt(
    compute: Callable[..., Any], index: np.ndarray, batch: list[int], report: Any, whole: bool = False
) -> Iterator[tuple[np.ndarray, Any]]:
    """compute(index), halving the batch when memory runs out, one by one when an input error hits one of many."""
    try:
        yield index, compute(index)
        return
    except ArtefactError:
        raise
    except InputError as error:
        if len(index) == 1:
            if whole:
                raise
            yield index, {"error": [error.message]}
            return
        step = 1
    except Exception as error:
        if not _out_of_memory(error):
            raise
        if len(index) == 1:
            raise MachineError(
                "out of memory with a single row", "use another --device; the same command resumes"
            ) from error
        step = batch[0] = max(1, len(index) // 2)
        report.warn(f"out of memory: going on with batches of {step}")
    for a in range(0, len(index), step):
        yield from attempt(compute, index[a : a + step], batch, report, whole)


def _out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error))
    )


def _store(job: Job, part: Tables, rows: np.ndarray, n: int, values: Mapping[str, Any]) -> None:
    """Put a batch's columns at `rows` of the part; failed and non-finite rows become NaN with a reason."""
    values = dict(values)
    errors = np.array(values.pop("error", None) if values.get("error") is not None else [""] * len(rows), object)
    if len(errors) != len(rows):
        raise ArtefactError(f"{job.stage}: the model returned {len(errors)} errors for {len(rows)} rows")
    bad = errors != ""
    if bad.all() and not values:
        part["rows/status"][rows], part["rows/error"][rows] = FAILED, errors
        return
    arrays = _columns(job, values, len(rows))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and name not in KINDS[job.kind].nan_ok:
            broken = ~np.isfinite(array.reshape(len(rows), -1)).all(1) & ~bad
            errors[broken] = f"non-finite output in {name}"
            bad |= broken
    for name, array in arrays.items():
        if name not in part:
            part[name] = empty_rows(n, array.shape[1:], array.dtype)
        elif part[name].shape[1:] != array.shape[1:]:
            raise ArtefactError(
                f"{job.stage}: {name} has shape {array.shape[1:]}, before it was {part[name].shape[1:]}"
            )
        part[name][rows[~bad]] = array[~bad]
    part["rows/status"][rows[bad]], part["rows/error"][rows[bad]] = FAILED, errors[bad]


def _columns(job: Job, values: Mapping[str, Any], n: int) -> Tables:
    """A batch's arrays in the declared types and shapes. Raises ArtefactError naming the column."""
    declared = {c.name: c for c in job.columns}
    arrays: Tables = {}
    if unknown := sorted(set(values) - set(declared)):
        raise ArtefactError(f"{job.stage}: the model returned {', '.join(unknown)}, which it does not declare")
    for name, column in declared.items():
        if name not in values:
            if column.optional:
                continue
            raise ArtefactError(f"{job.stage}: the model returned no {name}, which it declares")
        value = values[name]
        value = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        if len(value) != n or (len(value.shape) != len(column.shape) and "..." not in column.shape):
            raise ArtefactError(f"{job.stage}: {name} has shape {value.shape} for {n} rows, {column.shape} is declared")
        for want, size in zip(column.shape[1:], value.shape[1:], strict=False):
            if isinstance(want, int) and want != size:
                raise ArtefactError(f"{job.stage}: {name} has shape {value.shape}, {column.shape} is declared")
        arrays[name] = value.astype(
            column.dtype.split("|")[0] if value.dtype.str[1:] not in column.dtype else value.dtype, copy=False
        )
    return arrays


def _frame_tables(job: Job, frames: np.ndarray, values: Any) -> Tables:
    frame_values, row_values, columns = values
    n = len(row_values["frame"])
    tables = frame_tables(frame_values, row_values)
    return tables | (_columns(job, columns, n) if n else {})


def check_rows_agree(inputs: Mapping[str, Artefact]) -> None:
    """Raise ArtefactError with both fingerprints and the first differing row unless all inputs have the same rows."""
    (first_role, first), *others = inputs.items()
    for role, other in others:
        if other.rows_fingerprint == first.rows_fingerprint:
            continue
        prints = f"{first_role} {first.rows_fingerprint[:12]}, {role} {other.rows_fingerprint[:12]}"
        raise ArtefactError(
            f"the rows of {first.path or first_role} and {other.path or role} differ ({prints}): "
            + _first_difference(first, other),
            "use artefacts made from the same detections",
        )


def _first_difference(a: Artefact, b: Artefact) -> str:
    if a.n_rows != b.n_rows:
        return f"{a.n_rows} and {b.n_rows} rows"
    for row in range(a.n_rows):
        i, j = int(a.rows["frame"][row]), int(b.rows["frame"][row])
        if a.frames["name"][i] != b.frames["name"][j]:
            return f"row {row} is in {a.frames['name'][i]!r} and {b.frames['name'][j]!r}"
        if not np.array_equal(a.rows["box"][row], b.rows["box"][row], equal_nan=True):
            return f"row {row} has box {a.rows['box'][row].tolist()} and {b.rows['box'][row].tolist()}"
    return "the frames differ"


@contextlib.contextmanager
def interruptible(out: Path, report: Any) -> Iterator[list[int]]:
    """Inside, the first Ctrl-C or SIGTERM only puts its exit code in the list; the second stops at once."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _: Any) -> None:
        stopped.append(128 + number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        report.note("finishing this part; once more stops at once (nothing finished is lost)")

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
