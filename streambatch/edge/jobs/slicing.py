"""The job of the fast join: the rows of one result file, which lie together in the input, in one go and in memory.

It holds the names of one file at most, and answers "does not fit" to anything unusual.
"""

import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice

import msgspec

from streambatch.core.joins import JoinSlice, SliceJoined
from streambatch.core.naming import ResultNamer, name_result, name_verdict
from streambatch.core.results import read_ends
from streambatch.core.settling import RowClass
from streambatch.edge.jobs.locating import Rows
from streambatch.edge.jobs.sections import opened, write_sections
from streambatch.edge.resultfiles import LastLine, Lines, LongLine, read_lines

MAX_LINES = 1 << 16  # of a result file: more names would take too much memory
MAX_BYTES = (1 << 32) - 1  # of a result file: places are 32 bits
BLOCK_BYTES = 256 << 10


class Other(msgspec.Struct, array_like=True, gc=False):
    """A line of the result file that is no success."""

    name: str | None
    row_class: int
    offset: int
    length: int


def join_slice(spec: JoinSlice) -> SliceJoined:
    """Find the rows, write down the places of their results. Raises SourceError for inputs, OSError."""
    results = _Results()
    with opened(spec.result.path) as fd:
        if not results.read(fd):
            return SliceJoined(fits=False)
    rows = Rows(spec, results.table)
    if results.table and not rows.find():
        return SliceJoined(fits=False)
    write_sections(spec.spill, [rows.holes, results.others, rows.spans.tobytes()])
    return SliceJoined(
        fits=True,
        start=rows.start,
        end=rows.end,
        lines=tuple(rows.lines.items()),
        done=len(rows.spans),
        holes=len(rows.holes),
        others=len(results.others),
        torn=results.torn,
    )


# -- places as one number each: they are what a table of names holds


def packed(offsets: Iterable[int], lengths: Sequence[int]) -> list[int]:
    """Offset and length, 32 bits each, in one number per line."""
    halves = array("I", bytes(8 * len(lengths)))
    halves[_LENGTH::2] = array("I", lengths)
    halves[_OFFSET::2] = array("I", offsets)
    return memoryview(halves).cast("B").cast("Q").tolist()


def unpacked(spans: bytes) -> tuple["array[int]", "array[int]"]:
    """Offsets and lengths of many such numbers."""
    halves = array("I", spans)
    return halves[_OFFSET::2], halves[_LENGTH::2]


_LENGTH, _OFFSET = (0, 1) if sys.byteorder == "little" else (1, 0)


class _Results:
    """The lines of one result file: the places of successes by name, all others one by one."""

    def __init__(self) -> None:
        self.table: dict[bytes, int] = {}
        self.others: list[Other] = []
        self.torn = False
        self._successes = 0
        self._namer = ResultNamer()

    def read(self, fd: int) -> bool:
        """False where there are too many lines, or two successes of one name."""
        if os.fstat(fd).st_size > MAX_BYTES:
            return False
        for piece in read_lines(fd, block_bytes=BLOCK_BYTES):
            match piece:
                case Lines():
                    self._take(piece)
                case LastLine(torn=True):
                    self.torn = True
                case LastLine(line=bytes() as line):
                    self._add(*name_result(line), piece.offset, piece.length)
                case LongLine() | LastLine():
                    self._add(*name_verdict(read_ends(piece.head, piece.tail)), piece.offset, piece.length)
            if self._successes + len(self.others) > MAX_LINES:
                return False
        return len(self.table) == self._successes

    def _take(self, piece: Lines) -> None:
        names, lengths = self._namer.successes(piece.lines), [*map(len, piece.lines)]
        places = accumulate(lengths, initial=piece.offset)
        if names is None:
            for line, offset, length in zip(piece.lines, places, lengths, strict=False):
                if not line.isspace():
                    self._add(*name_result(line), offset, length - 1)
            return
        for name, place in zip(names, packed(islice(places, len(lengths)), lengths), strict=True):
            self.table[name] = place - 1  # its newline
        self._successes += len(lengths)

    def _add(self, name: bytes | None, row_class: RowClass, offset: int, length: int) -> None:
        if name is not None and row_class is RowClass.OK:
            (self.table[name],) = packed([offset], [length])
            self._successes += 1
        else:
            self.others.append(Other(None if name is None else name.decode(), row_class, offset, length))
