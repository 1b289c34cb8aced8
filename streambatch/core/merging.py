"""The newest outcome of every row of a segment, and what is written for a row: an error line, or the user's row with its answer.

Pure. It is given outcome records and the bytes of rows and results; which files they come from is the edge's business.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import compress

import msgspec

from streambatch.core.matching import AGAIN
from streambatch.core.results import Verdict, read_line
from streambatch.core.rows import shown
from streambatch.core.settling import BAD_ROW, OPEN, RECORD, Kind, RowClass
from streambatch.core.wording import one_line

REASONS = 20
REASONS_HELD = 1000
REASON_CHARACTERS = 300
OTHERS = "other reasons"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One outcome record, unpacked."""

    kind: int
    row_class: RowClass
    attempts: int
    file: int
    offset: int
    length: int


class Newest:
    """For each line of a segment its newest outcome, and the part and the line of it that it came from."""

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self.records = bytearray(lines * RECORD.size)
        self.records[0 :: RECORD.size] = bytes((OPEN,)) * lines
        self.parts = array("I", bytes(4 * lines))
        self.places = array("I", bytes(4 * lines))

    def overlay(self, part: int, rows: Sequence[tuple[int, int]], outcome: bytes) -> None:
        """Lay a part's records over the older ones; `rows` is (line of the part, row of the segment). DONE always stays."""
        records, size = self.records, RECORD.size
        for place, row in rows:
            at = row * size
            if records[at] != Kind.DONE:
                records[at : at + size] = outcome[place * size : place * size + size]
                self.parts[row] = part
                self.places[row] = place

    def overlay_whole(self, outcome: bytes) -> None:
        """The one part of a segment of which every line is a row that was sent."""
        self.records[:] = outcome
        self.places = array("I", range(self.lines))

    @property
    def kinds(self) -> bytes:
        return bytes(self.records[0 :: RECORD.size])

    def first_waiting(self, awaited: Iterable[int]) -> int:
        """The first row that waits: left for another try, or one of those `awaited`. `lines` where there is none."""
        left, unknown = self.kinds.find(Kind.LEFT), min(awaited, default=self.lines)
        return unknown if left < 0 else min(left, unknown)

    def cut(self, lines: int) -> None:
        """Forget the rows from `lines` on."""
        self.lines = lines
        del self.records[lines * RECORD.size :], self.parts[lines:], self.places[lines:]

    def record(self, row: int) -> Record:
        kind, row_class, attempts, file, offset, length = RECORD.unpack_from(self.records, row * RECORD.size)
        return Record(kind, RowClass(row_class), attempts, file, offset, length)

    def done(self) -> tuple[Sequence[int], Sequence[int], "array[int]", "array[int]"]:
        """Of all rows that are done, in order: parts, files, offsets, lengths."""
        words = array("Q", bytes(self.records))
        if sys.byteorder == "big":
            words.byteswap()
        heads, offsets, lengths = words[0::3], words[1::3], words[2::3]
        files = [head >> 32 for head in heads]
        if not any(self.kinds):
            return self.parts, files, offsets, lengths
        done = [kind == Kind.DONE for kind in self.kinds]
        parts, files = array("I", compress(self.parts, done)), [*compress(files, done)]
        return parts, files, array("Q", compress(offsets, done)), array("Q", compress(lengths, done))


# -- errors


class ErrorLine(msgspec.Struct, frozen=True):
    """One line of the errors file; the order of the fields is that of its keys."""

    ordinal: int
    file: str
    line: int
    custom_id: str | None
    class_: str = msgspec.field(name="class")
    reason: str
    attempts: int | None
    result: msgspec.Raw | None


WORDS = {
    RowClass.RATE_LIMITED: "the service limited the rate of requests",
    RowClass.SERVER_ERROR: "the service failed on this row",
    RowClass.EXPIRED: "the completion window expired before this row was executed",
    RowClass.CANCELLED: "the batch was cancelled before this row was executed",
    RowClass.MISSING: "the service returned neither a result nor an error for this row",
    RowClass.INVALID_REQUEST: "the service refused this request",
    RowClass.CONTENT_POLICY: "the service refused this content",
    RowClass.REFUSED: "the service refused this line of the batch",
    RowClass.UNKNOWN: "the service gave an answer that nobody knows",
    RowClass.MALFORMED: "the service's result for this row came back malformed",
    RowClass.GONE: "the service no longer has the result of this row, which was probably paid",
}


def reason_of(row_class: RowClass, line: bytes | None) -> str:
    """Why a row ended in an error, in the service's words where it gave some."""
    verdict = None if line is None else read_line(line)
    return _reason(row_class, verdict)


def _reason(row_class: RowClass, verdict: Verdict | None) -> str:
    if verdict is None:
        return WORDS[row_class]
    code = verdict.body_code if verdict.body_code is not None else verdict.code
    text = one_line(verdict.message) if verdict.message is not None else ""
    if not text:
        text = f"status {verdict.status}" if verdict.status else WORDS[row_class]
    if code is not None and code not in text:
        text = f"{one_line(code)}: {text}"
    return _cut(text)


def reason_of_note(note: bytes) -> str:
    """Why a line was refused, from its note."""
    told = msgspec.json.decode(note, type=dict[str, str])
    return _cut(one_line(f"{told['code']}: {told['message']}"))


def _cut(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else f"{text[: REASON_CHARACTERS - 3]}..."


def as_object(line: bytes) -> msgspec.Raw:
    """A service's line as it is, if it is an object of JSON; else as one text."""
    try:
        whole = isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        whole = False
    return msgspec.Raw(line.strip(b" \t\r\n") if whole else msgspec.json.encode(line.decode(errors="replace")))


class Ended(msgspec.Struct, frozen=True):
    """A row that has no success, of a join: `bad` says why it is no row that could have one; `line` is the service's."""

    ordinal: int
    file: str
    line: int
    name: str | None
    row_class: int
    bad: str | None = None
    text: bytes | None = None


def ended_line(row: Ended) -> ErrorLine:
    """Its line in the errors file; how often it was tried is not known."""
    place = (row.ordinal, row.file, row.line, row.name)
    if row.bad is not None:
        return ErrorLine(*place, BAD_ROW, row.bad, 0, None)
    if row.row_class == AGAIN:
        reason = f"the result for {shown(str(row.name))} went to an earlier row of that name"
        return ErrorLine(*place, RowClass.MISSING.label, reason, None, None)
    row_class = RowClass(row.row_class)
    result = None if row.text is None else as_object(row.text)
    return ErrorLine(*place, row_class.label, reason_of(row_class, row.text), None, result)


class Reasons:
    """Counts (class, reason) in bounded memory: past a bound, new reasons count as `OTHERS` of their class."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, row_class: str, reason: str, rows: int = 1) -> None:
        key = (row_class, reason)
        if key not in self._counts and len(self._counts) >= REASONS_HELD:
            key = (row_class, OTHERS)
        self._counts[key] = self._counts.get(key, 0) + rows

    def include(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """Counts of others."""
        for row_class, reason, count in counts:
            self.add(row_class, reason, count)

    def top(self) -> tuple[tuple[str, str, int], ...]:
        """The most frequent ones first."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple((row_class, reason, count) for (row_class, reason), count in ranked[:REASONS])
