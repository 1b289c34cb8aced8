"""How rows ended, read back from the run directory: the rows of settled shards, or of a whole segment, in row order.

Blocking; holds one line of each file at a time. Knows files and outcome records; what they mean to whom is not its business.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import xxhash

from streambatch.core.jobs import MergePart, Piece
from streambatch.core.merging import Newest, reason_of, reason_of_note
from streambatch.core.settling import NOTES, RECORD, Kind
from streambatch.edge.gathering import read_span
from streambatch.edge.segmentfiles import Results, bad_rows, read_outcome, rows_of, source_lines
from streambatch.edge.sidecars import read_ids
from streambatch.errors import SourceError


class Readout(msgspec.Struct, frozen=True):
    """What to read of one segment: the rows of `parts` that have ended, and of `bad`, the path of its bad rows."""

    segment: int
    pieces: tuple[Piece, ...]
    first_ordinal: int
    lines: int
    source_hash: str
    parts: tuple[MergePart, ...]
    bad: str | None


class Ended(msgspec.Struct, frozen=True, gc=False):
    """One row's end: the user's line, the service's (None where there is none), and why it failed (None: it is a success)."""

    ordinal: int
    custom_id: str | None
    row: bytes | None
    result: bytes | None
    reason: str | None
    attempts: int

    @property
    def size(self) -> int:
        """Bytes of its lines."""
        return len(self.row or b"") + len(self.result or b"")


def read(spec: Readout) -> Iterator[Ended]:
    """The rows that have ended, in row order. Raises SourceError for a changed input, JournalError, OSError."""
    with ExitStack() as stack:
        ends = _Ends(spec, stack)
        source_hash = xxhash.xxh3_128()
        row = 0
        for line in source_lines(spec.pieces, source_hash):
            end = ends.of(row, line)
            if end is not None:
                yield end
            row += 1
        if row != spec.lines or source_hash.hexdigest() != spec.source_hash:
            raise _changed(spec)


class _Ends:
    """The newest outcome of each row of the segment, as far as the parts know it."""

    def __init__(self, spec: Readout, stack: ExitStack) -> None:
        self._spec = spec
        self._results = Results(spec.parts, stack)
        self._newest = Newest(spec.lines)
        self._ids = [read_ids(part.stem)[1] for part in spec.parts]
        self._bad = bad_rows(spec.bad)
        for index, part in enumerate(spec.parts):
            outcome = read_outcome(part)
            rows = rows_of(part, spec.segment, spec.lines, len(outcome) // RECORD.size)
            self._newest.overlay(index, rows, outcome)

    def of(self, row: int, line: bytes | None) -> Ended | None:
        """How a row ended; None for a blank line, one that was left out, one that other shards have, or one still open."""
        bad = self._bad.get(row)
        ordinal = self._spec.first_ordinal + row
        text = None if line is None else line.rstrip(b"\r\n")
        if bad is not None:
            return None if bad.skipped else Ended(ordinal, bad.custom_id, text, None, bad.reason, 0)
        record = self._newest.record(row)
        if record.kind not in (Kind.DONE, Kind.ERROR):
            return None
        part = self._newest.parts[row]
        result = read_span(self._results.fd(part, record.file), record.offset, record.length) if record.length else None
        custom_id = self._ids[part][self._newest.places[row]].decode()
        if record.kind == Kind.DONE:
            return Ended(ordinal, custom_id, text, result, None, record.attempts)
        if record.file == NOTES and result is not None:
            return Ended(ordinal, custom_id, text, None, reason_of_note(result), record.attempts)
        return Ended(ordinal, custom_id, text, result, reason_of(record.row_class, result), record.attempts)


def _changed(spec: Readout) -> SourceError:
    name = spec.pieces[0].name
    return SourceError(
        f"{name} has changed since its rows were sent (rows {spec.first_ordinal + 1} to {spec.first_ordinal + spec.lines} of the"
        " input): put the file back as it was, then run the same command again.",
        path=name,
    )
