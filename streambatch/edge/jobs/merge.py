"""The merge job: one complete segment's answers in input order, and a line for each of its errors.

Blocking, bounded memory. Which outcome is the newest and how a line reads is decided in `core.merging` and `core.replies`.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec
import xxhash

from streambatch.core.jobs import BadRow, Merge, MergedFiles
from streambatch.core.lines import is_blank
from streambatch.core.merging import (
    ErrorLine,
    Newest,
    Reasons,
    Record,
    as_object,
    reason_of,
    reason_of_note,
)
from streambatch.core.replies import NULL, AnswerColumn, AnswerReader
from streambatch.core.settling import BAD_ROW, NOTES, OPEN, RECORD, Kind
from streambatch.edge.gathering import Spans, gather, read_span
from streambatch.edge.placing import Sink
from streambatch.edge.segmentfiles import Results, bad_rows, read_outcome, rows_of, source_lines
from streambatch.edge.sidecars import read_ids
from streambatch.errors import JournalError, SourceError

MAX_ERROR_BYTES = 1 << 20  # of a service's error line


def merge(spec: Merge) -> MergedFiles:
    """Write `out` and `err`. Raises JournalError for a row without an outcome, SourceError for a changed input, OSError."""
    with ExitStack() as stack:
        segment = _Segment(spec, stack)
        if spec.emit == "rows":
            segment.write_rows()
        else:
            segment.write_results()
        return segment.finish()


class _Segment:
    """One segment on its way into the two files."""

    def __init__(self, spec: Merge, stack: ExitStack) -> None:
        self._spec = spec
        self._stack = stack
        self._results = Results(spec.parts, stack)
        self._ids: dict[int, list[bytes]] = {}
        self._newest = _newest(spec)
        self._bad = bad_rows(spec.bad)
        if spec.awaited is None:
            self._check()
        else:
            self._keep_prefix(spec.awaited)
        self._out, self._err = (self._create(path) for path in (spec.out, spec.err))
        self._column = AnswerColumn(spec.column)
        self._reasons = Reasons()
        self._errors = 0

    def _create(self, path: str) -> Sink:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, fd)
        return Sink(fd)

    def _check(self) -> None:
        """Each row has its one outcome. Raises JournalError."""
        left, spec = self._newest.kinds.count(Kind.LEFT), self._spec
        if left:
            raise JournalError(
                f"Segment {spec.segment} has {left} rows that wait for another try: it can't be merged yet."
            )
        self._count_rows()

    def _keep_prefix(self, stems: Sequence[str]) -> None:
        """Forget what is behind the first row that waits. Raises JournalError."""
        kinds = self._newest.kinds
        rows = [row for stem in stems for row in read_ids(stem)[0] if row < len(kinds) and kinds[row] == OPEN]
        self._count_rows(len(rows))
        end = self._newest.first_waiting(rows)
        self._newest.cut(end)
        self._bad = {row: bad for row, bad in self._bad.items() if row < end}

    def _count_rows(self, awaited: int = 0) -> None:
        """Nothing is lost: each row has an outcome, or is known to be awaited. Raises JournalError."""
        kinds, spec = self._newest.kinds, self._spec
        rows = awaited + len(kinds) - kinds.count(OPEN) + sum(1 for row in self._bad if kinds[row] == OPEN)
        if spec.rows is not None and rows != spec.rows:
            raise JournalError(
                f"Segment {spec.segment} has {spec.rows} rows, of which {rows} are accounted for: the run directory is damaged."
            )

    # -- results

    def write_results(self) -> None:
        """The provider's lines, byte for byte; then the errors, in row order."""
        parts, files, offsets, lengths = self._newest.done()
        pairs = [*zip(parts, files, strict=True)]
        order = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
        sources = None if len(order) == 1 else [order[pair] for pair in pairs]
        fds = [self._results.fd(*pair) for pair in order]
        self._out.end = gather(self._out.fd, self._out.end, fds, Spans(offsets, lengths, sources))
        kinds = self._newest.kinds
        failed = {row for row in range(len(kinds)) if kinds[row] == Kind.ERROR}
        for row in sorted(failed | self._bad.keys()):
            self._write_error(row)

    # -- errors

    def _write_error(self, row: int) -> str | None:
        """A row's line in the errors file; its reason, or None for a row that was asked to be left out."""
        bad = self._bad.get(row)
        if bad is not None and bad.skipped:
            return None
        line = self._sent_error(row) if bad is None else _bad_error(self._spec, bad)
        self._err.add(msgspec.json.encode(line) + b"\n")
        self._reasons.add(line.class_, line.reason)
        self._errors += 1
        return line.reason

    def _sent_error(self, row: int) -> ErrorLine:
        record = self._newest.record(row)
        text = self._service_line(row, record)
        file, line = _place(self._spec, row)
        return ErrorLine(
            ordinal=self._spec.first_ordinal + row,
            file=file,
            line=line,
            custom_id=self._custom_id(row),
            class_=record.row_class.label,
            reason=reason_of_note(text) if record.file == NOTES and text else reason_of(record.row_class, text),
            attempts=record.attempts,
            result=None if text is None else as_object(text),
        )

    def _service_line(self, row: int, record: Record) -> bytes | None:
        if not record.length:
            return None
        fd = self._results.fd(self._newest.parts[row], record.file)
        return read_span(fd, record.offset, min(record.length, MAX_ERROR_BYTES))

    def _custom_id(self, row: int) -> str:
        part = self._newest.parts[row]
        if part not in self._ids:
            self._ids[part] = read_ids(self._spec.parts[part].stem)[1]
        return self._ids[part][self._newest.places[row]].decode()

    # -- rows

    def write_rows(self) -> None:
        """The user's rows with their answers. Raises SourceError where the input is not what was sent."""
        source_hash = xxhash.xxh3_128()
        lines = source_lines(self._spec.pieces, source_hash)
        answers, column = AnswerReader(self._spec.endpoint), self._column
        places = zip(RECORD.iter_unpack(self._newest.records), self._newest.parts, strict=True)
        row = 0
        for ((kind, _, _, file, offset, length), part), line in zip(
            places, lines, strict=False
        ):  # places first: no line is lost
            if kind == Kind.DONE and line is not None:
                result = read_span(self._results.fd(part, file), offset, length)
                self._out.add(column.add(line, *answers.read(result)))
            else:
                self._write_other(row, kind, line)
            row += 1
        row += sum(1 for _ in lines)  # behind a prefix
        if row != self._spec.lines or source_hash.hexdigest() != self._spec.source_hash:
            raise self._changed()

    def _write_other(self, row: int, kind: int, line: bytes | None) -> None:
        if row in self._bad:
            reason = self._write_error(row)
            if line is not None:
                self._out.add(self._column.add_to_any(line, NULL, reason))
        elif kind == Kind.ERROR and line is not None:
            self._out.add(self._column.add(line, NULL, self._write_error(row)))
        elif line is None or not is_blank(line):
            raise self._changed()

    def _changed(self) -> SourceError:
        first, last = _place(self._spec, 0), _place(self._spec, self._spec.lines - 1)
        return SourceError(
            f"{first[0]} has changed since its rows were sent (somewhere from line {first[1]} to {last[0]}, line {last[1]}):"
            " put the file back as it was, then run the same command again.",
            path=first[0],
            line=first[1],
        )

    def finish(self) -> MergedFiles:
        self._out.flush()
        self._err.flush()
        bad = list(self._bad.values())
        return MergedFiles(
            out_bytes=self._out.end,
            err_bytes=self._err.end,
            done=self._newest.kinds.count(Kind.DONE),
            errors=self._errors,
            skipped=sum(row.skipped for row in bad),
            reasons=self._reasons.top(),
        )


# -- what goes in


def _newest(spec: Merge) -> Newest:
    newest = Newest(spec.lines)
    for index, part in enumerate(spec.parts):
        outcome = read_outcome(part)
        if len(spec.parts) == 1 and part.segment is not None and len(outcome) == len(newest.records):
            newest.overlay_whole(outcome)
        else:
            rows = rows_of(part, spec.segment, spec.lines, len(outcome) // RECORD.size)
            newest.overlay(index, rows, outcome)
    return newest


def _bad_error(spec: Merge, bad: BadRow) -> ErrorLine:
    ordinal = spec.first_ordinal + bad.row
    return ErrorLine(ordinal, bad.file, bad.line, bad.custom_id, BAD_ROW, bad.reason, 0, None)


def _place(spec: Merge, row: int) -> tuple[str, int]:
    """The file and the line, from 1, of a row."""
    piece = spec.pieces[0]
    for later in spec.pieces[1:]:
        if later.first_row <= row:
            piece = later
    return piece.name, piece.first_line + row - piece.first_row + 1
