"""The loop of every stage: batches of rows -> compute -> parts -> artefact. Resume, shards, failed rows, Ctrl-C.

In: a `Job` (what is made of what) and `load`, which returns the function batch -> columns and is called only when work
is left. Out: the path of the whole artefact, or an `Artefact` in memory when `out` is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import FAILED, OK
from stages.artefacts.schema import frame_tables
from stages.artefacts.table import Artefact
from stages.artefacts.validate import check_cameras
from stages.engine.assembly import Finish, join_in_memory, join_on_disk
from stages.engine.batching import Tables, attempt, columns_of, store
from stages.engine.interrupts import interruptible
from stages.engine.job import Job, RunOptions
from stages.engine.parts import Parts, n_parts, part_range
from stages.engine.provenance import check_rows_agree, differences, estimate, make_header
from stages.errors import ArtefactError, InputError, Interrupted, RowsFailed, UsageError
from stages.files.atomic import check_space

PART_ROWS, PART_FRAMES = 256, 64
Compute = Callable[[np.ndarray], Mapping[str, Any]]
NO_FRAMES: Tables = frame_tables(
    {"name": [], "size": np.zeros((0, 2)), "K": np.zeros((0, 3, 3))}, {"frame": [], "box": np.zeros((0, 4))}
)


def run_rows(job: Job, load: Callable[[], Compute], out: Path | None, run: RunOptions) -> Path | Artefact:
    """Compute every row of the job's first input whose status is ok, in batches, and commit the artefact.

    compute(rows int64 (n,)) -> {column: array (n, ...)} and optionally "error": n texts ('' = ok). A row that fails or
    is not finite keeps its place with status, reason and NaN. Raises ArtefactError (rows of the inputs differ; target
    or parts made otherwise), MachineError, Interrupted, RowsFailed (strict), InputError (every row failed).
    """
    source: Artefact = next(iter(job.inputs.values()))
    check_rows_agree({role: value for role, value in job.inputs.items() if isinstance(value, Artefact)})
    check_cameras(source)
    tables = {f"frames/{n}": v for n, v in source.frames.items()}
    tables |= {f"rows/{n}": v for n, v in source.rows.items()}
    header = make_header(job, "rows", source.n_rows, job.part_rows or PART_ROWS, out, source.rows_fingerprint)

    def work(start: int, stop: int, compute: Compute, batch: list[int]) -> Tables:
        status, error = source.rows["status"][start:stop].copy(), source.rows["error"][start:stop].copy()
        part: Tables = {"rows/status": status, "rows/error": error}
        todo = start + np.flatnonzero(status == OK)
        while len(todo):
            now, todo = todo[: batch[0]], todo[batch[0] :]
            for rows, values in attempt(compute, now, batch, run.report):
                store(job, part, rows - start, stop - start, values)
        return part

    return _drive(job, header, tables, work, load, out, run)


def run_frames(
    job: Job, n_frames: int, load: Callable[[], Callable[..., Any]], out: Path | None, run: RunOptions
) -> Path | Artefact:
    """Find rows in frames (detect). compute(frames int64 (n,)) -> (frames: the columns of `frames` for these frames,
    rows: the columns of `rows` with `frame` in whole-job numbers, columns: {name: array per row})."""
    return _run_frames(job, make_header(job, "frames", n_frames, job.part_rows or PART_FRAMES, out, ""), load, out, run)


def run_whole(job: Job, build: Callable[[], Artefact], out: Path | None, run: RunOptions) -> Path | Artefact:
    """A stage that makes its table at once (import): the same commit, refusal and provenance. build() -> Artefact."""

    def load() -> Callable[..., Any]:
        table = build()
        columns = {n: table.read(n) for n in table.columns()}
        return lambda frames: (table.frames, table.rows, columns)

    return _run_frames(job, make_header(job, "whole", 1, 1, out, ""), load, out, run)


def _run_frames(
    job: Job, header: dict[str, Any], load: Callable[..., Any], out: Path | None, run: RunOptions
) -> Path | Artefact:
    def work(start: int, stop: int, compute: Callable[..., Any], batch: list[int]) -> Tables:
        pieces: list[Tables] = []
        todo = np.arange(start, stop)
        while len(todo):
            now, todo = todo[: batch[0]], todo[batch[0] :]
            for _, values in attempt(compute, now, batch, run.report, whole=True):
                pieces.append(_frame_tables(job, values))
        full = [p for p in pieces if len(p["rows/status"])] or pieces[:1]  # empty pieces may have any shape
        return {
            name: np.concatenate([p[name] for p in (pieces if name.startswith("frames/") else full)])
            for name in dict.fromkeys(n for p in full for n in p)
        }

    return _drive(job, header, NO_FRAMES, work, load, out, run)


def _drive(
    job: Job,
    header: dict[str, Any],
    tables: Tables,
    work: Callable[..., Tables],
    load: Callable[[], Any],
    out: Path | None,
    run: RunOptions,
) -> Path | Artefact:
    """The same for every stage: what is there already, what is left, part by part, commit."""
    batch = [run.batch_size or job.batch_size]
    if out is None:
        if run.shard[1] > 1:
            raise UsageError("shards need a file to meet in", "give -o")
        compute = load() if n_parts(header) else None
        made = []
        run.report.start(job.stage, int(header["n"]), unit=_unit(header))
        for part in range(n_parts(header)):
            start, stop = part_range(header, part)
            made.append(work(start, stop, compute, batch))
            run.report.advance(stop - start)
        run.report.finish()
        return verdict(join_in_memory(_used(header, batch, job, run), tables, made, job.finish), run)
    out, parts = Path(out), Parts(Path(out))
    check_out(job, out)
    if not run.force and _is_current(out, header):
        return _up_to_date(parts, header, run)
    if run.dry_run:
        return _dry_run(parts, header, run)
    check_space(out, estimate(job, header))
    with parts.writing(run.shard):
        _settle(parts, header, tables, run)
        done = parts.present(header)
        mine = [p for p in range(n_parts(header)) if p % run.shard[1] == run.shard[0] and p not in done]
        if mine:
            finished = sum(b - a for a, b in (part_range(header, p) for p in done))
            run.report.start(job.stage, int(header["n"]), unit=_unit(header), done=finished)
            compute = load()
            with interruptible(run.report) as stopped, ThreadPoolExecutor(1) as writer:
                saved: list[Future[None]] = []
                for part in mine:
                    start, stop = part_range(header, part)
                    columns = work(start, stop, compute, batch)
                    while saved:  # one part is written while the next is computed; never more than two in memory
                        saved.pop().result()
                    saved.append(writer.submit(parts.write, part, header, columns))
                    run.report.advance(stop - start)
                    if stopped:
                        break
                for each in saved:
                    each.result()
            if stopped and part != mine[-1]:
                raise Interrupted(
                    f"stopped after {len(done) + mine.index(part) + 1} of {n_parts(header)} parts of {out}",
                    "the same command resumes",
                    stopped[0],
                )
            run.report.finish()
        if run.shard[1] > 1 and not run.force and _is_current(out, header):
            return out  # another shard came last
        if missing := sum(not parts.path(p).exists() for p in range(n_parts(header))):
            run.report.note(f"{missing} of {n_parts(header)} parts are left to other shards; then: hmr merge {out}")
            return parts.folder
        _join(parts, _used(header, batch, job, run), parts.present(header), job.finish)
    with open_artefact(out) as artefact:
        verdict(artefact, run)
    return out


def merge(out: Path, finishers: Mapping[str, Finish] = MappingProxyType({})) -> Path:
    """Join the parts of `out` (`hmr merge`). finishers: by stage, what completes its whole table.

    Raises InputError without parts, ArtefactError naming missing ones.
    """
    parts = Parts(Path(out))
    header = parts.header()
    if header is None:
        raise InputError(f"{out}: there are no parts to merge", f"looked for {parts.header_path}")
    finish = None
    if header["finish"]:
        finish = finishers.get(header["stage"])
        if finish is None:
            raise ArtefactError(f"{out}: only the program that made the parts can join them", "run it without shards")
    return _join(parts, header, parts.present(header), finish)


def _join(parts: Parts, header: Mapping[str, Any], present: set[int], finish: Finish | None) -> Path:
    if missing := sorted(set(range(n_parts(header))) - present):
        some = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ArtefactError(
            f"{parts.out}: {len(missing)} of {n_parts(header)} parts are missing ({some})",
            "run the shards that are not finished, or the same command without --shard",
        )
    return join_on_disk(parts, header, finish)


def verdict(artefact: Artefact, run: RunOptions) -> Artefact:
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


def check_out(job: Job, out: Path) -> None:
    """Raise UsageError for a target that is a folder, an input, or below something that is no folder."""
    for role, value in job.inputs.items():
        path = getattr(value, "path", None)
        if path is not None and out.exists() and path.exists() and os.path.samefile(out, path):
            raise UsageError(f"-o {out} is also the input ({role})", "choose another name")
    if out.is_dir():
        raise UsageError(f"-o {out} is a folder", f"name a file: {out / f'x.{job.kind}.h5'}")
    near = next(p for p in out.absolute().parents if os.path.lexists(p))
    if not near.is_dir():
        raise UsageError(f"-o {out}: {near} is not a folder", "choose another place")


def _is_current(out: Path, header: Mapping[str, Any]) -> bool:
    """Is the target there and the one asked for? Raises ArtefactError listing the differences if it is another."""
    if not os.path.lexists(out):
        return False
    try:
        with open_artefact(out) as artefact:
            have = artefact.attrs
    except InputError as error:
        raise ArtefactError(f"{error.message}; it is in the way", "--force replaces it") from error
    if have.get("fingerprint") == header["fingerprint"]:
        return True
    raise ArtefactError(f"{out} exists and was made otherwise: {differences(have, header)}", "--force replaces it")


def _up_to_date(parts: Parts, header: Mapping[str, Any], run: RunOptions) -> Path:
    run.report.note(f"{parts.out} is up to date")
    if (
        parts.folder.is_dir()
        and not parts.busy()
        and (parts.header() or header)["fingerprint"] == header["fingerprint"]
    ):
        parts.discard()  # left by a run that was killed after the rename
    with open_artefact(parts.out) as artefact:
        verdict(artefact, run)
    return parts.out


def _settle(parts: Parts, header: dict[str, Any], tables: Tables, run: RunOptions) -> None:
    """Leave either parts of this very job or none, and the header."""
    if run.fresh:
        if run.shard[1] > 1:
            raise UsageError("--fresh and --shard do not go together", f"delete {parts.folder} before the first shard")
        parts.discard(marks=False)
    try:
        have = parts.header()
    except ArtefactError:  # the header is written first and whole: this is damage, and its parts cannot be trusted
        parts.discard(marks=False)
        have = None
    if have is not None and any(have.get(k) != header[k] for k in ("fingerprint", "part_rows", "n", "per")):
        raise ArtefactError(
            f"{parts.folder} holds parts made otherwise: {differences(have, header)}",
            "--fresh discards them; the settings they were made with resume them",
        )
    if run.shard[1] == 1:
        for path in parts.folder.glob("*.tmp"):  # of processes that are gone: this one holds the mark
            path.unlink(missing_ok=True)
    parts.create(header, tables)


def _used(header: dict[str, Any], batch: list[int], job: Job, run: RunOptions) -> dict[str, Any]:
    """The header, with the batch size where memory ran out."""
    return header | {"batch_size": batch[0]} if batch[0] != (run.batch_size or job.batch_size) else header


def _unit(header: Mapping[str, Any]) -> str:
    return {"rows": "rows", "frames": "frames"}.get(header["per"], "tables")


def _dry_run(parts: Parts, header: dict[str, Any], run: RunOptions) -> Path:
    have = parts.header() if parts.folder.is_dir() else None
    same = have is not None and have.get("fingerprint") == header["fingerprint"]
    done = sum(parts.path(p).exists() for p in range(n_parts(header))) if same else 0
    other = f"; {parts.folder} holds parts made otherwise" if have is not None and not same else ""
    run.report.note(
        f"would make {parts.out}: {header['n']} {_unit(header)}, {done} of {n_parts(header)} parts are there{other}"
    )
    return parts.out


def _frame_tables(job: Job, values: Any) -> Tables:
    """What detect's compute returns, as columns by full name."""
    frames, rows, columns = values
    tables = frame_tables(frames, rows)
    try:
        return tables | columns_of(job, columns, len(rows["frame"]))
    except ArtefactError:
        if len(rows["frame"]):
            raise
        return tables  # nobody here: whatever the arrays look like, they are empty
