"""What became of each row of a shard: one table of classes, and a ledger that result lines are entered into.

Pure: it is told what lines say and where they stand, and knows no files. An outcome record is 24 bytes, little-endian:
kind u8, class u8, generation u16, file u32 (output, error, notes), offset u64, length u64 (without the newline).
"""

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import accumulate, islice

import msgspec

from streambatch.core.results import Verdict

RECORD = struct.Struct("<BBHIQQ")
OUTPUT, ERROR, NOTES = 0, 1, 2  # the `file` of a record
OPEN = 0xFF  # the kind of a row of which nothing is known yet


class Kind(IntEnum):
    """The word on one row so far."""

    DONE = 0
    ERROR = 1
    LEFT = 2


class RowClass(IntEnum):
    """Why a row ended as it did; `label` is the `class` of the errors file."""

    OK = 0
    RATE_LIMITED = 1
    SERVER_ERROR = 2
    EXPIRED = 3
    CANCELLED = 4
    MISSING = 5
    INVALID_REQUEST = 6
    CONTENT_POLICY = 7
    REFUSED = 8
    UNKNOWN = 9
    MALFORMED = 10
    GONE = 11

    @property
    def label(self) -> str:
        return self.name.lower()


BAD_ROW = "bad_row"  # the `class` of a row that was never sent
LEFTABLE = frozenset(
    {
        RowClass.RATE_LIMITED,
        RowClass.SERVER_ERROR,
        RowClass.EXPIRED,
        RowClass.CANCELLED,
        RowClass.MISSING,
        RowClass.MALFORMED,
    }
)  # worth another try; all others are final

_BY_CODE = {
    "batch_expired": RowClass.EXPIRED,
    "batch_cancelled": RowClass.CANCELLED,
    "request_timeout": RowClass.SERVER_ERROR,
    "timeout": RowClass.SERVER_ERROR,
    "server_error": RowClass.SERVER_ERROR,
    "internal_error": RowClass.SERVER_ERROR,
    "server_is_overloaded": RowClass.SERVER_ERROR,
    "rate_limit_exceeded": RowClass.RATE_LIMITED,
    "slow_down": RowClass.RATE_LIMITED,
    "content_policy_violation": RowClass.CONTENT_POLICY,
    "content_filter": RowClass.CONTENT_POLICY,
    "moderation_blocked": RowClass.CONTENT_POLICY,
    "invalid_request": RowClass.INVALID_REQUEST,
    "invalid_request_error": RowClass.INVALID_REQUEST,
}


def class_of(verdict: Verdict) -> RowClass:
    """The class of a line by what it says."""
    if verdict.malformed:
        return RowClass.MALFORMED
    return classify(verdict.status, verdict.code, verdict.body_code, verdict.message)


def classify(
    status: int | None, code: str | None, body_code: str | None = None, message: str | None = None
) -> RowClass:
    """The class of one result line, by what it says and not by the file it stands in."""
    if status is None:
        return _unanswered(code, message)
    if 200 <= status < 300:
        return RowClass.OK
    if RowClass.CONTENT_POLICY in (_BY_CODE.get(body_code or ""), _BY_CODE.get(code or "")):
        return RowClass.CONTENT_POLICY
    return _answered(status)


def _answered(status: int) -> RowClass:
    if status == 429:
        return RowClass.RATE_LIMITED
    if status in (0, 408) or status >= 500:
        return RowClass.SERVER_ERROR
    return RowClass.INVALID_REQUEST if 400 <= status < 500 else RowClass.UNKNOWN


def _unanswered(code: str | None, message: str | None) -> RowClass:
    """No response at all: the error's code decides; no word whatever is the service's fault."""
    if code is None:
        return RowClass.SERVER_ERROR
    if code in _BY_CODE:
        return _BY_CODE[code]
    if len(code) == 3 and code.isascii() and code.isdigit():
        return _answered(int(code)) if int(code) >= 300 else RowClass.UNKNOWN
    again = message is not None and "try again" in message.lower()
    return RowClass.SERVER_ERROR if again else RowClass.UNKNOWN


class Rules(msgspec.Struct, frozen=True):
    """How the batch ran: what decides whether a row deserves another try, and what that costs it."""

    generation: int
    max_attempts: int
    executed: bool = True
    user_cancel: bool = False
    gone: str | None = None  # the user's word (error | rebuy) where paid results can't be found

    @property
    def unseen(self) -> RowClass:
        """The class of a row without a result line: lost, unless nothing ran or the user had it cancelled before it could."""
        if self.gone is not None:
            return RowClass.GONE if self.gone == "error" else RowClass.MISSING
        if not self.executed:
            return RowClass.REFUSED
        return RowClass.CANCELLED if self.user_cancel else RowClass.MISSING

    def judge(self, row_class: RowClass, *, found: bool = True) -> tuple[Kind, int]:
        """The kind of a row of this class, and how often it was executed by now. `found`: it has a result line."""
        attempts = self.generation + self._counts(row_class, found)
        if row_class is RowClass.OK:
            return Kind.DONE, attempts
        worth = row_class in LEFTABLE or (row_class is RowClass.REFUSED and not found)
        return (Kind.LEFT if worth and attempts < self.max_attempts else Kind.ERROR), attempts

    def _counts(self, row_class: RowClass, found: bool) -> bool:
        """Whether this batch counts as an execution of the row, or as a window that expired."""
        if row_class is RowClass.REFUSED or not (self.executed or found):
            return False
        spared = self.user_cancel and self.gone is None
        return not (spared and row_class in (RowClass.CANCELLED, RowClass.MISSING))


class Ledger:
    """The outcome records of one shard while its result lines come in. First success wins; a success beats an error."""

    def __init__(self, rows: int, rules: Rules) -> None:
        self.duplicate = 0
        self._heads = array("Q", (OPEN,)) * rows  # the first 8 bytes of each record as one number
        self._offsets = array("Q", bytes(8 * rows))
        self._lengths = array("Q", bytes(8 * rows))
        self._rules = rules
        self._found = [self._head(row_class, *rules.judge(row_class)) for row_class in RowClass]

    @staticmethod
    def _head(row_class: RowClass, kind: Kind, generation: int) -> int:
        return kind | row_class << 8 | generation << 16

    # -- lines in

    def enter(self, row: int, row_class: RowClass, file: int, offset: int, length: int) -> bool:
        """Enter one result line; False for a duplicate that changes nothing."""
        if (head := self._heads[row]) != OPEN:
            self.duplicate += 1
            if head & 0xFF == Kind.DONE or row_class is not RowClass.OK:
                return False
        self._set(row, self._found[row_class], file, offset, length)
        return True

    def enter_line(self, row: int, verdict: Verdict, file: int, offset: int, length: int) -> bool:
        """`enter` by what the line says."""
        return self.enter(row, class_of(verdict), file, offset, length)

    def enter_successes(self, rows: Sequence[int], file: int, offset: int, lengths: Sequence[int]) -> bool:
        """Enter lines that follow each other, newlines included in their lengths; False, and nothing, if a row came before."""
        heads = self._heads
        if len(set(rows)) != len(rows) or set(map(heads.__getitem__, rows)) != {OPEN}:
            return False
        head = self._found[RowClass.OK] | file << 32
        for row, place, length in zip(rows, accumulate(lengths, initial=offset), lengths, strict=False):
            heads[row] = head
            self._offsets[row] = place
            self._lengths[row] = length - 1
        return True

    def _set(self, row: int, head: int, file: int, offset: int, length: int) -> None:
        self._heads[row] = head | file << 32
        self._offsets[row] = offset
        self._lengths[row] = length

    # -- rows without a line

    def open_rows(self) -> list[int]:
        """The rows without a result line, ascending."""
        return [row for row, head in enumerate(self._heads) if head == OPEN] if OPEN in self._heads else []

    def refuse(self, row: int, offset: int, length: int) -> None:
        """Enter the note on a line for which the service refused the whole batch."""
        self._set(row, self._found[RowClass.REFUSED], NOTES, offset, length)

    def close(self) -> int:
        """Enter all rows that are still open, as `Rules.unseen` has it. The number of rows that may have been billed and have
        no outcome of the service's: missing ones, and those of which only a malformed line came."""
        heads = Counter(self._heads).items()
        broken = sum(rows for head, rows in heads if head != OPEN and head >> 8 & 0xFF == RowClass.MALFORMED)
        row_class = self._rules.unseen
        head = self._head(row_class, *self._rules.judge(row_class, found=False))
        rows = self.open_rows()
        for row in rows:
            self._heads[row] = head
        return broken + (len(rows) if row_class in (RowClass.MISSING, RowClass.GONE) else 0)

    # -- what came of it

    def records(self) -> bytes:
        """All records, in the order of the rows."""
        words = array("Q", bytes(RECORD.size * len(self._heads)))
        words[0::3], words[1::3], words[2::3] = self._heads, self._offsets, self._lengths
        if sys.byteorder == "big":
            words.byteswap()
        return words.tobytes()

    def totals(self) -> list[int]:
        """Rows done, in error, left."""
        return _by_kind(Counter(self._heads).items())

    def totals_by(self, segments: Sequence[int]) -> dict[int, list[int]]:
        """The same for each segment; `segments` holds the segment of each row."""
        pairs: dict[int, list[tuple[int, int]]] = {}
        for (segment, head), rows in Counter(zip(segments, self._heads, strict=True)).items():
            pairs.setdefault(segment, []).append((head, rows))
        return {segment: _by_kind(of_segment) for segment, of_segment in pairs.items()}

    def errors(self, most: int) -> list[tuple[int, RowClass, int, int, int]]:
        """Up to so many rows in error, ascending: (row, class, file, offset, length)."""
        found = (row for row, head in enumerate(self._heads) if head & 0xFF == Kind.ERROR)
        return [
            (row, RowClass(head >> 8 & 0xFF), head >> 32, self._offsets[row], self._lengths[row])
            for row in islice(found, most)
            for head in (self._heads[row],)
        ]

    def left(self) -> tuple[tuple[int, int], ...]:
        """(generation of the next try, rows) of the left rows, ascending."""
        counts: Counter[int] = Counter()
        for head, rows in Counter(self._heads).items():
            if head & 0xFF == Kind.LEFT:
                counts[head >> 16 & 0xFFFF] += rows
        return tuple(sorted(counts.items()))


def _by_kind(heads: Iterable[tuple[int, int]]) -> list[int]:
    counts = [0, 0, 0]
    for head, rows in heads:
        counts[head & 0xFF] += rows
    return counts
