"""What people see while a run works and at its end: a live display, plain lines, JSON lines, the summary in words.

Listens to the engine's notices and writes to a text stream; decides nothing, and imports rich only for a terminal.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import msgspec

from streambatch.core import events as e
from streambatch.core.models import ShardState
from streambatch.core.report import Progress, Reason, Status, Summary
from streambatch.core.wording import one_line

if TYPE_CHECKING:
    from rich.table import Table

Notice = e.AnyEvent | Progress
LINE_EVERY_S = 10.0
REFRESHES_PER_S = 4
SHOWN_REASONS = 5
EXCLUSIVE = (
    "The run directory is not on a local disk, so its journal is locked while the run works; streambatch status shows a snapshot"
    " that is a few seconds old."
)


def put(stream: TextIO, line: str) -> None:
    """Write a line; a run goes on when nobody reads it any more."""
    with suppress(OSError, ValueError):
        stream.write(line + "\n")
        stream.flush()


# -- listeners: context managers that are called with each notice


class Silent(AbstractContextManager["Silent"]):
    """Shows nothing."""

    def __call__(self, notice: Notice) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class JsonLines(AbstractContextManager["JsonLines"]):
    """Each event and each look at the run as one JSON object a line, with the time it was heard."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._now = now

    def __call__(self, notice: Notice) -> None:
        fields = msgspec.to_builtins(notice)
        kind = "Progress" if isinstance(notice, Progress) else fields.pop("type")
        at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        put(self._stream, json.dumps({"at": at, "event": kind, **fields}))

    def __exit__(self, *_: object) -> None:
        """Nothing to close: every line is out."""


class Lines(AbstractContextManager["Lines"]):
    """A line when the phase changes, and every ten seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._announced = False
        self._phase = ""
        self._due = clock()

    def __call__(self, notice: Notice) -> None:
        if isinstance(notice, e.Started | Progress) and not self._announced:
            self._announced = True
            put(self._stream, started_line(notice.run_id))
        if isinstance(notice, e.Opened) and notice.exclusive:
            put(self._stream, EXCLUSIVE)
        if isinstance(notice, Progress) and (notice.phase != self._phase or self._clock() >= self._due):
            self._phase, self._due = notice.phase, self._clock() + LINE_EVERY_S
            put(self._stream, progress_line(notice))

    def __exit__(self, *_: object) -> None:
        """Nothing to close: every line is out."""


class Live(AbstractContextManager["Live"]):
    """One calm display on a terminal, redrawn at most four times a second; at its end it makes room for the summary."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        self._announced = False
        self._last: Progress | None = None
        self._heard = time.monotonic()
        console = Console(file=stream, highlight=False)
        self._display = Display(
            console=console, get_renderable=self._table, refresh_per_second=REFRESHES_PER_S, transient=True
        )

    def __enter__(self) -> "Live":
        self._display.start()
        return self

    def __call__(self, notice: Notice) -> None:
        if isinstance(notice, e.Started | Progress) and not self._announced:
            self._announced = True
            self._display.console.print(started_line(notice.run_id), markup=False)
        if isinstance(notice, e.Opened) and notice.exclusive:
            self._display.console.print(EXCLUSIVE, markup=False)
        if isinstance(notice, Progress):
            self._last, self._heard = notice, time.monotonic()

    def _table(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        if self._last is not None:
            since = time.monotonic() - self._heard if self._last.phase != "finished" else 0.0
            for name, text in progress_rows(self._last, since):
                table.add_row(name, Text(text, overflow="ellipsis"))
        return table

    def __exit__(self, *_: object) -> None:
        self._display.stop()


Listener = Silent | JsonLines | Lines | Live


def listener(*, quiet: bool, log_format: str, stream: TextIO | None = None) -> Listener:
    """The listener that fits: nothing, JSON lines, a live display on a terminal, else plain lines."""
    target = sys.stderr if stream is None else stream
    if quiet:
        return Silent()
    if log_format == "json":
        return JsonLines(target)
    return Live(target) if target.isatty() else Lines(target)


# -- words


def started_line(run_id: str) -> str:
    return f"Run {one_line(run_id)} (keep this id: with --run-id it finds its batches again)"


def progress_line(look: Progress) -> str:
    """One look at a run as one line."""
    return "  ".join(
        f"{name} {text}" if name in ("prepared", "batches") else text for name, text in progress_rows(look, 0.0)
    )


def progress_rows(look: Progress, since_s: float) -> list[tuple[str, str]]:
    """One look at a run as (name, text); `since_s` ago it was taken."""
    rows = [
        ("phase", look.phase + (f": {one_line(look.note)}" if look.note else "")),
        ("prepared", f"{look.rows:,} rows{_share(look)}"),
        ("batches", _batches(look)),
        ("rows", f"done {look.done:,}, failed {look.failed + look.bad:,}, merged {look.merged:,}{_waiting(look)}"),
        ("time", _times(look, since_s)),
    ]
    return [(name, text) for name, text in rows if text]


def _share(look: Progress) -> str:
    return f" ({100 * look.bytes_read // look.bytes_total} %)" if look.bytes_read < look.bytes_total else ""


def _batches(look: Progress) -> str:
    counts = [(look.shards.get(state.value, 0), state.value) for state in ShardState]  # in the order of a shard's life
    states = ", ".join(f"{count:,} {name}" for count, name in counts if count)
    return f"{look.in_flight:,} in flight of {look.batches:,}" + (f" ({states})" if states else "")


def _waiting(look: Progress) -> str:
    return f", {look.left:,} to try again" if look.left else ""


def _times(look: Progress, since_s: float) -> str:
    elapsed = duration(look.elapsed_s + since_s)
    if look.eta_s is None or look.phase != "running":
        return elapsed
    return f"{elapsed}, about {duration(max(0.0, look.eta_s - since_s))} to go"


def duration(seconds: float) -> str:
    """`38.2 s`, `4 min 10 s`, `6 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"


# -- the end


def summary_text(summary: Summary) -> str:
    """The summary that a person reads, some lines without an end. What a closing sentence will say is left to it."""
    head = [one_line(summary.message)] if summary.exit_code == 0 else []
    lines = [
        ("rows", f"{summary.rows:,} in, {summary.done:,} done, {summary.failed:,} failed{_rest(summary)}"),
        *(("", f"{reason.rows:>9,}  {reason_text(reason)}") for reason in summary.reasons[:SHOWN_REASONS]),
        ("tokens", _tokens(summary)),
        ("batches", f"{summary.batches:,}, {summary.in_flight:,} in flight"),
        ("time", duration(summary.elapsed_s)),
        (
            "output",
            summary.output if summary.state == "finished" else f"not yet ({summary.run_dir} holds what is done)",
        ),
        ("errors", summary.errors if summary.errors is not None and summary.failed else ""),
        ("next", next_text(summary)),
    ]
    return "\n".join([*head, *(f"  {name:<8} {text}" for name, text in lines if text)])


def _rest(summary: Summary) -> str:
    parts = [
        (summary.skipped, "skipped"),
        (summary.left, "to try again"),
        (summary.retried, "tried again"),
        (summary.possibly_billed, "possibly billed"),
    ]
    return "".join(f", {count:,} {word}" for count, word in parts if count)


def _tokens(summary: Summary) -> str:
    usage = summary.usage
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    return f"{usage.input_tokens:,} in{cached}, {usage.output_tokens:,} out"


def reason_text(reason: Reason) -> str:
    return f"{reason.cls}: {one_line(reason.reason)[:120]}"


def next_text(summary: Summary) -> str:
    """What to type next, where no closing sentence says it."""
    if summary.next_command is not None:
        return summary.next_command if summary.exit_code == 0 else ""
    return f"head -n 3 {shlex.quote(summary.output)}" if summary.state == "finished" and summary.output != "-" else ""


def closing_sentence(summary: Summary, *, local: bool = False) -> str:
    """What happened, what still runs and costs, and the command that goes on: one sentence."""
    parts = [one_line(summary.message).rstrip("."), _running(summary, local)]
    if summary.next_command is not None:
        parts.append(f"to go on: {summary.next_command}")
    return "; ".join(part for part in parts if part)


def _running(summary: Summary, local: bool) -> str:
    """What still runs, as far as it is known and of use here."""
    if summary.state == "error":  # another process may have the run, and an embedded server with it
        return running_words(summary.in_flight, local=False) if summary.in_flight and not local else ""
    unread = not summary.run_id and os.path.isfile(os.path.join(summary.run_dir, "journal.sqlite"))
    return "" if unread else running_words(summary.in_flight, local=local)


def running_words(in_flight: int, *, local: bool) -> str:
    """What goes on without us, and costs; the embedded server's batches wait."""
    if in_flight == 0:
        return "nothing runs or costs any more"
    batches = f"{in_flight:,} {'batch' if in_flight == 1 else 'batches'}"
    if local:
        return f"{batches} of the embedded server {'waits' if in_flight == 1 else 'wait'} until then"
    return f"{batches} {'goes' if in_flight == 1 else 'go'} on at the service and will be billed"


def status_text(status: Status) -> str:
    """`status` as a person reads it."""
    look = status.progress
    head = f"Run {one_line(status.run_id)}: {status.state}" + (" (an engine works on it now)" if status.running else "")
    rows = [(name, text) for name, text in progress_rows(look, 0.0)]
    rows += [("", f"{reason.rows:>9,}  {reason_text(reason)}") for reason in status.reasons[:SHOWN_REASONS]]
    rows += [("output", status.output), ("run", status.run_dir)]
    return "\n".join([head, *(f"  {name:<8} {text}" for name, text in rows)])
