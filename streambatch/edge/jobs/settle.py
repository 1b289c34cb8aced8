"""The settle job: both result files of a shard against its ids; an outcome record per row, notes where there is no line.

Blocking, constant memory. What a line means and which outcome wins is decided in `core.settling`.
"""

import os
from contextlib import closing
from io import FileIO

import msgspec

from streambatch.core.jobs import ErrorKind, Outcomes, SegmentCount, Settle
from streambatch.core.merging import reason_of, reason_of_note
from streambatch.core.models import Usage
from streambatch.core.results import TokenCounts, Verdict, decode_usual, read_ends, read_head, read_line
from streambatch.core.settling import ERROR, NOTES, OUTPUT, Ledger, Rules
from streambatch.edge.resultfiles import BLOCK_BYTES, HELD_BYTES, LastLine, Lines, LongLine, read_lines
from streambatch.edge.sidecars import read_ids, read_origins
from streambatch.errors import JournalError

ERRORS_READ, KINDS_TOLD, PLACES_TOLD = 200, 2, 3  # of one shard: enough to say what is wrong
ERROR_BYTES = 64 << 10


class _Reader:
    """Enters result lines into the ledger, and counts what has no place there."""

    def __init__(self, spec: Settle) -> None:
        self.ids = ids_by_text(spec)
        self.ledger = Ledger(
            spec.rows, Rules(spec.generation, spec.max_attempts, spec.executed, spec.user_cancel, spec.gone)
        )
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.unknown = 0
        self.torn = False

    def read(self, path: str, file: int, block_bytes: int, held_bytes: int) -> None:
        with closing(FileIO(path)) as source:
            for piece in read_lines(source.fileno(), block_bytes=block_bytes, held_bytes=held_bytes):
                match piece:
                    case Lines():
                        self._lines(piece, file)
                    case LongLine():
                        self._enter(read_ends(piece.head, piece.tail), file, piece.offset, piece.length)
                    case LastLine():
                        self._last(piece, file)

    def _lines(self, piece: Lines, file: int) -> None:
        """A block of successes of the usual shape takes the short way, any other goes line by line."""
        if self._successes(piece, file):
            return
        offset = piece.offset
        for line in piece.lines:
            if not line.isspace():
                self._enter(read_line(line), file, offset, len(line) - 1)
            offset += len(line)

    def _successes(self, piece: Lines, file: int) -> bool:
        try:
            told = [*map(decode_usual, piece.lines)]
            rows = [self.ids[line.custom_id] for line in told]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
            return False
        if not all(200 <= status < 300 for status in {line.response.status_code for line in told}):
            return False
        if not self.ledger.enter_successes(rows, file, piece.offset, [*map(len, piece.lines)]):
            return False
        for line in told:
            body = line.response.body
            if body is not None and body.usage is not None:
                self._spend(body.usage)
        return True

    def _spend(self, counts: TokenCounts) -> None:
        self.input_tokens += counts.prompt_tokens or counts.input_tokens or 0
        self.output_tokens += counts.completion_tokens or counts.output_tokens or 0
        details = counts.prompt_tokens_details or counts.input_tokens_details
        if details is not None:
            self.cached_tokens += details.cached_tokens or 0

    def _add(self, usage: Usage) -> None:
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.output_tokens

    def _last(self, piece: LastLine, file: int) -> None:
        if piece.line is not None and piece.line.isspace():
            return
        self.torn |= piece.torn
        if not piece.torn:
            verdict = read_line(piece.line) if piece.line is not None else read_head(piece.head, piece.tail)
            self._enter(verdict, file, piece.offset, piece.length)

    def _enter(self, verdict: Verdict | None, file: int, offset: int, length: int) -> None:
        row = None if verdict is None else self.ids.get(verdict.custom_id)
        if verdict is None or row is None:
            self.unknown += 1
        elif self.ledger.enter_line(row, verdict, file, offset, length) and verdict.usage is not None:
            self._add(verdict.usage)


def ids_by_text(spec: Settle) -> dict[str, int]:
    """Line of the shard by custom_id. Raises JournalError where the sidecar is not this shard's."""
    ids = dict(zip(map(bytes.decode, read_ids(spec.stem)[1]), range(spec.rows), strict=False))
    if len(ids) != spec.rows:
        raise JournalError(
            f"{spec.stem}.ids names {len(ids)} rows where the journal has {spec.rows}: the run directory is damaged."
        )
    return ids


def settle(spec: Settle, *, block_bytes: int = BLOCK_BYTES, held_bytes: int = HELD_BYTES) -> Outcomes:
    """Write `STEM.outcome`, and `STEM.notes` where needed. Raises JournalError for a damaged sidecar, OSError for the disk."""
    reader = _Reader(spec)
    for path, file in ((spec.output, OUTPUT), (spec.error, ERROR)):
        if path is not None:
            reader.read(path, file, block_bytes, held_bytes)
    found = spec.rows - len(reader.ledger.open_rows())
    notes = _note_refused(spec, reader.ledger)
    missing = reader.ledger.close()
    if notes:
        _write(f"{spec.stem}.notes{spec.suffix}", notes, spec.fsync)
    _write(f"{spec.stem}.outcome{spec.suffix}", reader.ledger.records(), spec.fsync)
    return _outcomes(spec, reader, found, missing, notes)


def _note_refused(spec: Settle, ledger: Ledger) -> bytes:
    """Enter the lines that the service refused; the notes on them, a line each. A row with a result line keeps that."""
    open_rows = set(ledger.open_rows()) if spec.refused else set()
    notes = bytearray()
    for line in spec.refused:
        if line.line - 1 in open_rows:
            open_rows.remove(line.line - 1)
            note = msgspec.json.encode({"code": line.code, "message": line.message})
            ledger.refuse(line.line - 1, len(notes), len(note))
            notes += note + b"\n"
    return bytes(notes)


def _write(path: str, data: bytes, fsync: bool) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def _outcomes(spec: Settle, reader: _Reader, found: int, missing: int, notes: bytes) -> Outcomes:
    ledger = reader.ledger
    if spec.segment is None:
        origins = read_origins(spec.stem)
        if len(origins) != spec.rows:
            raise JournalError(
                f"{spec.stem}.origins names {len(origins)} rows where the journal has {spec.rows}: the run directory is damaged.",
                damaged=True,
            )
        counts = ledger.totals_by([segment for segment, _ in origins])
    else:
        counts = {spec.segment: ledger.totals()}
    done, errors, _ = ledger.totals()
    return Outcomes(
        done=done,
        errors=errors,
        left=ledger.left(),
        segments=tuple(SegmentCount(segment, *counts[segment]) for segment in sorted(counts)),
        usage=Usage(reader.input_tokens, reader.cached_tokens, reader.output_tokens),
        missing=missing,
        unknown=reader.unknown,
        duplicate=ledger.duplicate,
        torn=reader.torn,
        found=found,
        kinds=_kinds(spec, ledger, notes) if errors else (),
    )


def _kinds(spec: Settle, ledger: Ledger, notes: bytes) -> tuple[ErrorKind, ...]:
    """What the first errors are, most frequent ones first, with a few rows of each."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, row_class, file, offset, length in ledger.errors(ERRORS_READ):
        if file == NOTES and length:
            reason = reason_of_note(notes[offset : offset + length])
        else:
            reason = reason_of(row_class, _line(spec, file, offset, length) if length else None)
        rows.setdefault((row_class.label, reason), []).append(row)
    ranked = sorted(rows.items(), key=lambda item: (-len(item[1]), item[1][0]))[:KINDS_TOLD]
    places = _places(spec)
    return tuple(
        ErrorKind(label, reason, len(found), tuple(places[row] for row in found[:PLACES_TOLD]))
        for (label, reason), found in ranked
    )


def _line(spec: Settle, file: int, offset: int, length: int) -> bytes:
    with closing(FileIO(str(spec.error if file == ERROR else spec.output))) as source:
        return os.pread(source.fileno(), min(length, ERROR_BYTES), offset)


def _places(spec: Settle) -> list[tuple[int, int]]:
    """(segment, row in segment) of each line of the shard."""
    if spec.segment is None:
        return read_origins(spec.stem)
    return [(spec.segment, row) for row in read_ids(spec.stem)[0]]
