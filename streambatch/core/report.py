"""What a run tells people: progress while it works, a status from outside, the summary at its end.

Plain data with `to_dict()`; how it looks on a terminal is `progress`'s business.
"""

from typing import Any

import msgspec

from streambatch.core.models import Usage


class Reason(msgspec.Struct, frozen=True):
    """Rows that ended in the same kind of error: its class, one example's words, and how many."""

    cls: str
    reason: str
    rows: int


class Progress(msgspec.Struct, frozen=True):
    """One look at a running engine: counts, `shards` by state, `bytes_total` of all inputs (0: nobody knows), times in seconds."""

    run_id: str
    phase: str  # starting | waiting | running | draining | cancelling | merging | finished
    bytes_read: int = 0
    bytes_total: int = 0
    rows: int = 0  # prepared, bad ones included
    bad: int = 0
    skipped: int = 0
    done: int = 0
    failed: int = 0  # final errors of the service's side; bad rows are apart
    left: int = 0  # in the pool
    merged: int = 0  # rows in the partial output
    segments: int = 0
    segments_merged: int = 0
    shards: dict[str, int] = {}
    batches: int = 0  # created since the run began
    in_flight: int = 0
    usage: Usage = Usage()
    elapsed_s: float = 0.0
    eta_s: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names."""
        return dict(msgspec.to_builtins(self))


class Snapshot(Progress, frozen=True):
    """What the status file of a run holds. Where the engine keeps the journal to itself (`exclusive`), it is all that others see of
    it: `started` and `opened` are those events, in JSON, and the partial output is good up to `output_end`."""

    exclusive: bool = False
    started: str = ""
    opened: str = ""
    reasons: tuple[Reason, ...] = ()
    output_end: int = 0


class Summary(msgspec.Struct, frozen=True):
    """How a run (or one visit to it) ended. `exit_code` is the command's; `message` one sentence; `next_command` goes on.

    `state`: finished | in_flight | paused | stopped | interrupted | cancelled | error.
    """

    schema_version: int
    run_id: str
    state: str
    exit_code: int
    message: str
    next_command: str | None
    output: str
    errors: str | None
    run_dir: str
    rows: int
    done: int
    failed: int  # bad rows included: rows that ended in an error
    skipped: int
    left: int
    retried: int
    possibly_billed: int
    reasons: tuple[Reason, ...]
    segments: int
    shards: int
    batches: int
    in_flight: int
    usage: Usage
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names."""
        return dict(msgspec.to_builtins(self))


class Status(msgspec.Struct, frozen=True):
    """Where a run stands, read from its directory. `running` says whether an engine holds the lock now."""

    run_id: str
    run_dir: str
    output: str
    state: str  # running | finished | stopped
    running: bool
    progress: Progress
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, same names."""
        return dict(msgspec.to_builtins(self))
