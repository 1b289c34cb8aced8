"""Reading a run from its directory: progress, status, summary, and answers that are already there. Changes nothing."""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.models import Usage
from streambatch.core.report import Progress, Reason, Status, Summary
from streambatch.edge.files import RunFiles, is_locked
from streambatch.edge.journal import Store, read_only
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


# -- from outside


def find_run_dir(run: str) -> str:
    """The run directory of a RUN: a run directory, or an OUTPUT with `OUTPUT.run` beside it. Raises ConfigError."""
    for candidate in (run, f"{run}.run"):
        if os.path.isfile(os.path.join(candidate, "journal.sqlite")):
            return os.path.abspath(candidate)
    pointer = f"{run}.run"
    if os.path.isfile(pointer):
        folder = Path(pointer).read_text(encoding="utf-8").strip()
        if os.path.isfile(os.path.join(folder, "journal.sqlite")):
            return folder
    raise ConfigError(f"There is no run at {run}; name a run directory, or the output of a run.")


def started(run: str) -> tuple[e.Started, e.Opened]:
    """How a run began and who had it last. Raises ConfigError, JournalError."""
    folder = find_run_dir(run)
    with read_only(str(RunFiles(folder).journal)) as store:
        began, last = store.last(e.Started), store.last(e.Opened)
    if began is None or last is None:
        raise ConfigError(f"The run in {folder} has not begun yet; run it first.")
    return began, last


def status(run: str) -> Status:
    """Where a run stands now. Raises ConfigError, JournalError."""
    folder = find_run_dir(run)
    running = is_locked(folder)
    with read_only(str(RunFiles(folder).journal)) as store:
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
    with read_only(str(files.journal)) as store:
        last, opened = store.last(e.Merged), store.last(e.Opened)
        settled = [s.name for s in store.unswept(PEEKED_SHARDS) if s.output_id]
        published = store.last(e.Published) is not None
    merged = Path(opened.output) if published and opened else files.output
    lines = list(_head(merged, n, None if published else last.output_end if last else 0))
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
