"""The loop of every stage: batches of rows -> compute -> parts -> artefact. Resume, shards, failed rows, Ctrl-C.

In: a `Job` (what is made of what) and `load`, which returns the function batch -> columns and is called only when work
is left. Out: the path of the whole artefact, or an `Artefact` in memory when `out` is None.
"""

from __future__ import annotations

import dataclasses
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
from stages.engine.batching import BatchSize, Tables, declared_columns, in_batches, store
from stages.engine.header import Header, PartPlan
from stages.engine.interrupts import interruptible
from stages.engine.job import Job, RunOptions
from stages.engine.parts import Parts
from stages.engine.provenance import check_rows_agree, differences, estimate_bytes, make_header
from stages.errors import ArtefactError, InputError, Interrupted, RowsFailed, UsageError
from stages.files.atomic import check_space

PART_ROWS, PART_FRAMES = 256, 64
Compute = Callable[[np.ndarray], Any]
NO_FRAMES: Tables = frame_tables(
    {"name": [], "size": np.zeros((0, 2)), "K": np.zeros((0, 3, 3))}, {"frame": [], "box": np.zeros((0, 4))}
)


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """A job ready to be driven, in memory or on disk: its header, the frames and rows known beforehand (`tables`), and
    how one part is computed: make_part(start, stop, compute, batch size), with the `compute` that `load` returns."""

    job: Job
    header: Header
    tables: Tables
    load: Callable[[], Compute]
    make_part: Callable[[int, int, Compute, BatchSize], Tables]


def run_rows(job: Job, load: Callable[[], Compute], out: Path | None, run: RunOptions) -> Path | Artefact:
    """Compute every row of the job's first input whose status is ok, in batches, and commit the artefact.

    compute(rows int64 (n,)) -> {column: array (n, ...)} and optionally "error": n texts ('' = ok). A row that fails or
    is not finite keeps its index with status, reason and NaN. Raises ArtefactError (rows of the inputs differ; target
    or parts made otherwise), MachineError, Interrupted, RowsFailed (strict), InputError (every row failed).
    """
    source: Artefact = next(iter(job.inputs.values()))
    check_rows_agree({role: value for role, value in job.inputs.items() if isinstance(value, Artefact)})
    check_cameras(source)
    tables = {f"frames/{n}": v for n, v in source.frames.items()}
    tables |= {f"rows/{n}": v for n, v in source.rows.items()}
    parts = PartPlan("rows", source.n_rows, job.part_rows or PART_ROWS)

    def make_part(start: int, stop: int, compute: Compute, batch: BatchSize) -> Tables:
        status, error = source.rows["status"][start:stop].copy(), source.rows["error"][start:stop].copy()
        part: Tables = {"rows/status": status, "rows/error": error}
        for rows, values in in_batches(compute, start + np.flatnonzero(status == OK), batch, run.report):
            store(job, part, rows - start, stop - start, values)
        return part

    header = make_header(job, parts, out, source.rows_fingerprint)
    return _drive(JobPlan(job, header, tables, load, make_part), out, run)


def run_frames(
    job: Job, n_frames: int, load: Callable[[], Compute], out: Path | None, run: RunOptions
) -> Path | Artefact:
    """Find rows in frames (detect). compute(frames int64 (n,)) -> (frames: the columns of `frames` for these frames,
    rows: the columns of `rows` with `frame` in whole-job numbers, columns: {name: array per row})."""
    parts = PartPlan("frames", n_frames, job.part_rows or PART_FRAMES)
    return _drive(_frames_plan(job, parts, load, out, run), out, run)


def run_whole(job: Job, build: Callable[[], Artefact], out: Path | None, run: RunOptions) -> Path | Artefact:
    """A stage that makes its table at once (import): the same commit, refusal and provenance. build() -> Artefact."""

    def load() -> Compute:
        table = build()
        columns = {n: table.read(n) for n in table.columns()}
        return lambda frames: (table.frames, table.rows, columns)

    return _drive(_frames_plan(job, PartPlan("whole", 1, 1), load, out, run), out, run)


def _frames_plan(job: Job, parts: PartPlan, load: Callable[[], Compute], out: Path | None, run: RunOptions) -> JobPlan:
    """The plan of a job whose rows are not known beforehand."""

    def make_part(start: int, stop: int, compute: Compute, batch: BatchSize) -> Tables:
        batches = in_batches(compute, np.arange(start, stop), batch, run.report, all_or_none=True)
        pieces = [_frame_tables(job, values) for _, values in batches]
        full = [p for p in pieces if len(p["rows/status"])] or pieces[:1]  # empty pieces may have any shape
        return {
            name: np.concatenate([p[name] for p in (pieces if name.startswith("frames/") else full)])
            for name in dict.fromkeys(n for p in full for n in p)
        }

    return JobPlan(job, make_header(job, parts, out, ""), NO_FRAMES, load, make_part)


def _frame_tables(job: Job, values: Any) -> Tables:
    """What the compute of `run_frames` returns, as columns by full name."""
    frames, rows, columns = values
    tables = frame_tables(frames, rows)
    try:
        return tables | declared_columns(job, columns, len(rows["frame"]))
    except ArtefactError:
        if len(rows["frame"]):
            raise
        return tables  # no rows: whatever the shapes of the arrays, they are empty


def _run_in_memory(plan: JobPlan, run: RunOptions) -> Artefact:
    if run.shard[1] > 1:
        raise UsageError("shards need a file to meet in", "give -o")
    batch = _batch_size(plan, run)
    compute: Any = plan.load() if plan.header.parts.count else None
    parts = []
    run.report.start(plan.job.stage, plan.header.parts.n, unit=plan.header.parts.unit)
    for start, stop in plan.header.parts.ranges():
        parts.append(plan.make_part(start, stop, compute, batch))
        run.report.advance(stop - start)
    run.report.finish()
    return verdict(join_in_memory(_with_batch_size(plan.header, batch), plan.tables, parts, plan.job.finish), run)


def _drive(plan: JobPlan, out: Path | None, run: RunOptions) -> Path | Artefact:
    """In memory, or on disk: look at what exists already, compute the parts of this shard that do not, join them when
    all are there."""
    if out is None:
        return _run_in_memory(plan, run)
    out = Path(out)
    header, parts, batch = plan.header, Parts(out), _batch_size(plan, run)
    check_out(plan.job, out)
    if not run.force and _is_current(out, header):
        return _up_to_date(parts, header, run)
    if run.dry_run:
        return _dry_run(parts, header, run)
    check_space(out, estimate_bytes(header))
    with parts.writing(run.shard):
        _prepare(parts, header, plan.tables, run)
        _compute_parts(plan, parts, batch, run)
        if run.shard[1] > 1 and not run.force and _is_current(out, header):
            return out  # another shard came last
        if missing := sum(not parts.exists(p) for p in range(header.parts.count)):
            run.report.note(f"{missing} of {header.parts.count} parts are left to other shards; then: hmr merge {out}")
            return parts.folder
        _join(parts, _with_batch_size(header, batch), plan.job.finish)
    with open_artefact(out) as artefact:
        verdict(artefact, run)
    return out


def _compute_parts(plan: JobPlan, parts: Parts, batch: BatchSize, run: RunOptions) -> None:
    """Compute and save the parts of this shard that are not finished. Raises Interrupted."""
    header = plan.header
    finished = parts.finished(header)
    todo = [p for p in range(header.parts.count) if p % run.shard[1] == run.shard[0] and p not in finished]
    if not todo:
        return
    done = sum(stop - start for start, stop in map(header.parts.range, finished))
    run.report.start(plan.job.stage, header.parts.n, unit=header.parts.unit, done=done)
    compute = plan.load()
    with interruptible(run.report) as stopped, ThreadPoolExecutor(1) as writer:
        saved: Future[None] | None = None
        for part in todo:
            start, stop = header.parts.range(part)
            columns = plan.make_part(start, stop, compute, batch)
            if saved:  # one part is written while the next is computed; never more than two in memory
                saved.result()
            saved = writer.submit(parts.write, part, header, columns)
            run.report.advance(stop - start)
            if stopped:
                break
        if saved:
            saved.result()
    if stopped and part != todo[-1]:
        raise Interrupted(
            f"stopped after {len(finished) + todo.index(part) + 1} of {header.parts.count} parts of {parts.out}",
            "the same command resumes",
            stopped[0],
        )
    run.report.finish()


def _batch_size(plan: JobPlan, run: RunOptions) -> BatchSize:
    return BatchSize(run.batch_size or plan.job.batch_size)


def _with_batch_size(header: Header, batch: BatchSize) -> Header:
    """The header, with the batch size where memory ran out."""
    return dataclasses.replace(header, attrs={**header.attrs, "batch_size": batch.rows}) if batch.reduced else header


def merge(out: Path, finishers: Mapping[str, Finish] = MappingProxyType({})) -> Path:
    """Join the parts of `out` (`hmr merge`). finishers: by stage, what completes its whole table.

    Raises InputError without parts, ArtefactError naming missing ones.
    """
    parts = Parts(Path(out))
    header = parts.header()
    if header is None:
        raise InputError(f"{out}: there are no parts to merge", f"looked for {parts.header_path}")
    finish = None
    if header.finish:
        finish = finishers.get(header.stage)
        if finish is None:
            raise ArtefactError(f"{out}: only the program that made the parts can join them", "run it without shards")
    return _join(parts, header, finish)


def _join(parts: Parts, header: Header, finish: Finish | None) -> Path:
    if missing := sorted(set(range(header.parts.count)) - parts.finished(header)):
        some = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ArtefactError(
            f"{parts.out}: {len(missing)} of {header.parts.count} parts are missing ({some})",
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


def _is_current(out: Path, header: Header) -> bool:
    """Does the target exist, as this job would make it? Raises ArtefactError, listing the differences, for another."""
    if not os.path.lexists(out):
        return False
    try:
        with open_artefact(out) as artefact:
            stored = artefact.attrs
    except InputError as error:
        raise ArtefactError(f"{error.message}; it is in the way", "--force replaces it") from error
    if stored.get("fingerprint") == header.fingerprint:
        return True
    raise ArtefactError(
        f"{out} exists and was made otherwise: {differences(stored, header.to_json())}", "--force replaces it"
    )


def _up_to_date(parts: Parts, header: Header, run: RunOptions) -> Path:
    run.report.note(f"{parts.out} is up to date")
    if parts.folder.is_dir() and not parts.busy() and (parts.header() or header).fingerprint == header.fingerprint:
        parts.discard()  # left by a run that was killed after the rename
    with open_artefact(parts.out) as artefact:
        verdict(artefact, run)
    return parts.out


def _prepare(parts: Parts, header: Header, tables: Tables, run: RunOptions) -> None:
    """Leave either parts of this very job or none, and the header."""
    if run.fresh:
        if run.shard[1] > 1:
            raise UsageError("--fresh and --shard do not go together", f"delete {parts.folder} before the first shard")
        parts.discard(locks=False)
    try:
        stored = parts.header()
    except ArtefactError:  # the header is written first and whole: this is damage, and its parts cannot be trusted
        parts.discard(locks=False)
        stored = None
    if stored is not None and (stored.fingerprint, stored.parts) != (header.fingerprint, header.parts):
        raise ArtefactError(
            f"{parts.folder} holds parts made otherwise: {differences(stored.to_json(), header.to_json())}",
            "--fresh discards them; the settings they were made with resume them",
        )
    if run.shard[1] == 1:
        for path in parts.folder.glob("*.tmp"):  # of processes that are gone: this one holds the lock
            path.unlink(missing_ok=True)
    parts.create(header, tables)


def _dry_run(parts: Parts, header: Header, run: RunOptions) -> Path:
    stored = parts.header() if parts.folder.is_dir() else None
    same = stored is not None and stored.fingerprint == header.fingerprint
    plan = header.parts
    done = sum(map(parts.exists, range(plan.count))) if same else 0
    other = f"; {parts.folder} holds parts made otherwise" if stored is not None and not same else ""
    run.report.note(f"would make {parts.out}: {plan.n} {plan.unit}, {done} of {plan.count} parts are there{other}")
    return parts.out
