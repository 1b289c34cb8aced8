"""Reading a run from its directory: progress, status, summary, and answers that are already there. Changes nothing."""

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.models import Usage
from streambatch.core.report import Progress, Reason, Snapshot, Status, Summary
from streambatch.edge import pointers
from streambatch.edge.database import HeldError
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Store, read_only
from streambatch.edge.locking import is_locked
from streambatch.edge.projection import REASON
from streambatch.engine.publishing import errors_name
from streambatch.errors import ConfigError

SCHEMA_VERSION = 1
PEEKED_SHARDS = 1000  # looked into for answers, at most
_RECORD = struct.Struct("<BBHIQQ")


def progress(store: Store, *, phase: str, elapsed_s: float, note: str = "") -> Progress:
    """One look at the journal's counts."""
    started, opened, totals, states = store.last(e.Started), store.last(e.Opened), store.totals(), store.states()
    get = totals.get
    inputs = opened.inputs if opened else ()
    size = 0 if any(file.serial for file in inputs) else sum(file.size for file in inputs)  # 0: nobody knows
    return Progress(
        run_id=started.run_id if started else "",
        phase=phase,
        bytes_read=get("bytes_read", 0),
        bytes_total=size,
        rows=get("rows", 0),
        bad=get("bad", 0),
        skipped=get("skipped", 0),
        done=get("done", 0),
        failed=get("failed", 0),
        left=get("left", 0),
        merged=get("merged", 0) + get("merged_errors", 0) + get("merged_skipped", 0),
        segments=get("segments", 0),
        segments_merged=get("segments_merged", 0),
        shards=states,
        batches=get("batches", 0),
        in_flight=sum(states.get(s.value, 0) for s in lifecycle.IN_FLIGHT),
        usage=Usage(get("input_tokens", 0), get("cached_tokens", 0), get("output_tokens", 0)),
        elapsed_s=elapsed_s,
        eta_s=_eta(totals, size, elapsed_s) if size or store.last(e.Exhausted) else None,
        note=note,
    )


def _eta(totals: dict[str, int], size: int, elapsed_s: float) -> float | None:
    ended = totals.get("done", 0) + totals.get("failed", 0) + totals.get("bad", 0) + totals.get("skipped", 0)
    read, rows = totals.get("bytes_read", 0), totals.get("rows", 0)
    if not ended or not read or elapsed_s <= 0:
        return None
    to_come = rows * max(1.0, size / read) - ended
    return to_come * elapsed_s / ended if to_come > 0 else None


def reasons(store: Store, most: int = 20) -> tuple[Reason, ...]:
    """Why rows ended in errors, most rows first; rows that are merged."""
    found = []
    for name, rows in store.totals().items():
        if name.startswith(REASON):
            _, cls, reason = name.split("\n", 2)
            found.append(Reason(cls, reason, rows))
    return tuple(sorted(found, key=lambda r: (-r.rows, r.cls, r.reason))[:most])


def summary(
    store: Store,
    *,
    output: str,
    run_dir: str,
    state: str,
    exit_code: int,
    message: str,
    next_command: str | None,
    elapsed_s: float,
) -> Summary:
    """How a visit ended, in the journal's figures."""
    look = progress(store, phase=state, elapsed_s=elapsed_s)
    totals = store.totals()
    return Summary(
        schema_version=SCHEMA_VERSION,
        run_id=look.run_id,
        state=state,
        exit_code=exit_code,
        message=message,
        next_command=next_command,
        output=output,
        errors=errors_name(output, run_dir) if store.last(e.Published) else str(RunFiles(run_dir).errors),
        run_dir=run_dir,
        rows=look.rows,
        done=look.done,
        failed=look.failed + look.bad,
        skipped=look.skipped,
        left=look.left,
        retried=totals.get("retried", 0),
        possibly_billed=totals.get("missing", 0),
        reasons=reasons(store),
        segments=look.segments,
        shards=totals.get("shards", 0),
        batches=look.batches,
        in_flight=look.in_flight,
        usage=look.usage,
        elapsed_s=elapsed_s,
    )


def snapshot(store: Store, look: Progress) -> bytes:
    """The status file: a look, and what others must know of a journal that they can't read."""
    if store.shared:
        return msgspec.json.encode(look)
    began, last, merged = store.last(e.Started), store.last(e.Opened), store.last(e.Merged)
    seen = Snapshot(
        **msgspec.structs.asdict(look),
        exclusive=True,
        started="" if began is None else msgspec.json.encode(began).decode(),
        opened="" if last is None else msgspec.json.encode(last).decode(),
        reasons=reasons(store),
        output_end=0 if merged is None else merged.output_end,
    )
    return msgspec.json.encode(seen)


# -- from outside


def find_run_dir(run: str) -> str:
    """The run directory of a RUN: a run directory, or an OUTPUT with `OUTPUT.run` beside it. Raises ConfigError."""
    for candidate in (run, pointers.beside(run)):
        if os.path.isfile(os.path.join(candidate, "journal.sqlite")):
            return os.path.abspath(candidate)
    named = pointers.target(run)
    if named is not None:
        if os.path.isfile(os.path.join(named, "journal.sqlite")):
            return named
        raise ConfigError(
            f"{pointers.beside(run)} says that the run is in {named}, where no run is now; mount its disk again, or restore it."
        )
    raise ConfigError(f"There is no run at {run}; name a run directory, or the output of a run.")


def started(run: str) -> tuple[e.Started, e.Opened]:
    """How a run began and who had it last. Raises ConfigError, JournalError."""
    folder = find_run_dir(run)
    with _looked(folder) as store:
        if isinstance(store, Snapshot):
            return msgspec.json.decode(store.started, type=e.Started), msgspec.json.decode(store.opened, type=e.Opened)
        began, last = store.last(e.Started), store.last(e.Opened)
    if began is None or last is None:
        raise ConfigError(f"The run in {folder} has not begun yet; run it first.")
    return began, last


@contextlib.contextmanager
def _looked(folder: str) -> Iterator[Store | Snapshot]:
    """The journal of a run; the snapshot while an engine keeps the journal to itself. Raises JournalError."""
    files = RunFiles(folder)
    with contextlib.ExitStack() as stack:
        seen: Store | Snapshot | None = _snapshot(files)
        if seen is None:
            try:
                seen = stack.enter_context(read_only(str(files.journal)))
            except HeldError:
                seen = _snapshot(files)
                if seen is None:
                    raise
        yield seen


def _snapshot(files: RunFiles) -> Snapshot | None:
    """What an engine that holds the run, and keeps the journal to itself, says of it."""
    if not is_locked(files.folder):
        return None
    try:
        seen = msgspec.json.decode(files.status.read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError):
        return None
    return seen if seen.exclusive and seen.started and seen.opened else None


def _as_status(seen: Snapshot, folder: str) -> Status:
    output = msgspec.json.decode(seen.opened, type=e.Opened).output
    look = Progress(**{name: getattr(seen, name) for name in Progress.__struct_fields__})
    return Status(seen.run_id, folder, output, "running", True, look, seen.reasons)


def status(run: str) -> Status:
    """Where a run stands now. Raises ConfigError, JournalError."""
    folder = find_run_dir(run)
    running = is_locked(folder)
    with _looked(folder) as store:
        if isinstance(store, Snapshot):
            return _as_status(store, folder)
        published, last = store.last(e.Published) is not None, store.last(e.Opened)
        state = "finished" if published else "running" if running else "stopped"
        began, now = store.span()
        look = progress(store, phase=state, elapsed_s=(time.time() if running else now) - began)
        why = reasons(store)
    return Status(look.run_id, folder, last.output if last else "", state, running, look, why)


def runs(folder: str = ".") -> list[Status]:
    """All runs below a folder."""
    found = [os.path.dirname(p) for p in sorted(map(str, Path(folder).rglob("journal.sqlite")))]
    return [status(path) for path in found]


def peek(run: str, n: int = 5) -> list[bytes]:
    """Up to `n` result lines that are already here: merged ones first, then those of settled shards."""
    folder = find_run_dir(run)
    files = RunFiles(folder)
    with _looked(folder) as store:
        if isinstance(store, Snapshot):
            lines = list(_head(files.output, n, store.output_end))
            return _peek_at(files, sorted(path.stem for path in files.spool.glob("*.outcome")), lines, n)
        last, opened = store.last(e.Merged), store.last(e.Opened)
        settled = [s.name for s in store.unswept(PEEKED_SHARDS) if s.output_id]
        published = store.last(e.Published) is not None
    merged = Path(opened.output) if published and opened else files.output
    lines = list(_head(merged, n, None if published else last.output_end if last else 0))
    return _peek_at(files, settled, lines, n)


def _peek_at(files: RunFiles, settled: list[str], lines: list[bytes], n: int) -> list[bytes]:
    for name in settled:
        if len(lines) >= n:
            break
        lines += _done_lines(files, name, n - len(lines))
    return lines[:n]


def _head(path: Path, n: int, end: int | None) -> Iterator[bytes]:
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for _ in range(n):
            line = file.readline()
            if not line or (end is not None and file.tell() > end):
                return
            yield line.rstrip(b"\n")


def _done_lines(files: RunFiles, name: str, n: int) -> list[bytes]:
    """Done rows of one settled shard, in shard order; none where its files have left the spool."""
    outcome, output = Path(files.path(name, ".outcome")), Path(files.path(name, ".output"))
    if not (outcome.is_file() and output.is_file()):
        return []
    lines: list[bytes] = []
    with open(outcome, "rb") as records, open(output, "rb") as results:
        while len(lines) < n and (record := records.read(_RECORD.size)):
            kind, _, _, file, offset, length = _RECORD.unpack(record)
            if kind == 0 and file == 0:
                results.seek(offset)
                lines.append(results.read(length).rstrip(b"\r\n"))
    return lines
