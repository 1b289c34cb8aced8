"""The job of the fast join: the rows of one result file, which lie together in the input, in one go and in memory.

It finds where they begin by looking, holds the names of one file at most, and answers "does not fit" to anything unusual.
"""

import fcntl
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, repeat
from operator import sub

import msgspec

from streambatch.core.joins import JoinSlice, SliceJoined
from streambatch.core.naming import ResultNamer, RowNamer, name_result, name_verdict
from streambatch.core.results import read_head
from streambatch.core.settling import RowClass
from streambatch.edge.gathering import Spans, gather
from streambatch.edge.jobs.sections import opened, write_sections
from streambatch.edge.resultfiles import LastLine, Lines, LongLine, next_line, read_lines
from streambatch.edge.sources import read_lines as read_rows

MAX_LINES = 1 << 16  # of a result file: more names would take too much memory
MAX_ROW_BYTES = 32 << 20
MAX_GAP = 4096  # rows without a success, one after the other, before its rows count as scattered
MAP_BYTES = 32 << 20
PROBE_BYTES = 16 << 10
BLOCK_BYTES = 256 << 10


class Hole(msgspec.Struct, array_like=True, gc=False):
    """A row of the slice without a success: its input, its line among those of the slice in that input and in all, its name."""

    input: int
    line: int
    ordinal: int
    name: str | None
    bad: str | None


class Other(msgspec.Struct, array_like=True, gc=False):
    """A line of the result file that is no success."""

    name: str | None
    row_class: int
    offset: int
    length: int


def join_slice(spec: JoinSlice) -> SliceJoined:
    """Find the rows, write their results. Raises SourceError for inputs, OSError."""
    results = _Results()
    with opened(spec.result.path) as fd:
        if not results.read(fd):
            return SliceJoined(fits=False)
        table = results.table
        if len(table) != len(results.lengths) or results.room > spec.room:
            return SliceJoined(fits=False)
        rows = _Rows(spec, table)
        if table and not rows.find():
            return SliceJoined(fits=False)
        table.clear()
        write_sections(spec.spill, [rows.holes, results.others])
        return SliceJoined(
            fits=True,
            start=rows.start,
            end=rows.end,
            lines=tuple(rows.lines.items()),
            done=len(rows.order),
            out_bytes=_write(spec, fd, results, rows.order) - spec.at,
            holes=len(rows.holes),
            others=len(results.others),
            torn=results.torn,
        )


def _write(spec: JoinSlice, fd: int, results: "_Results", order: "array[int]") -> int:
    """One process at a time maps its file: memory is shared by all."""
    if not order:
        return spec.at
    offsets = array("Q", map(results.offsets.__getitem__, order))
    lengths = array("Q", map(results.lengths.__getitem__, order))
    lock = os.open(spec.lock, os.O_RDWR | os.O_CLOEXEC)
    out = os.open(spec.out, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return gather(out, spec.at, [fd], Spans(offsets, lengths), map_bytes=MAP_BYTES)
    finally:
        os.close(lock)
        os.close(out)


class _Results:
    """The lines of one result file: successes by columns, all others one by one."""

    def __init__(self) -> None:
        self.table: dict[bytes, int] = {}  # the line of each success by its name
        self.offsets = array("Q")
        self.lengths = array("Q")
        self.others: list[Other] = []
        self.torn = False
        self._namer = ResultNamer()

    @property
    def room(self) -> int:
        """What the successes take, a newline after each."""
        return sum(self.lengths) + len(self.lengths)

    def read(self, fd: int) -> bool:
        """False where there are too many."""
        for piece in read_lines(fd, block_bytes=BLOCK_BYTES):
            match piece:
                case Lines():
                    self._take(piece)
                case LastLine(torn=True):
                    self.torn = True
                case LastLine(line=bytes() as line):
                    self._add(*name_result(line), piece.offset, piece.length)
                case LongLine() | LastLine():
                    closed = piece.tail.rstrip().endswith(b"}")
                    verdict = read_head(piece.head, piece.tail) if closed else None
                    self._add(*name_verdict(verdict), piece.offset, piece.length)
            if len(self.lengths) + len(self.others) > MAX_LINES:
                return False
        return True

    def _take(self, piece: Lines) -> None:
        names, lengths = self._namer.successes(piece.lines), [*map(len, piece.lines)]
        places = accumulate(lengths, initial=piece.offset)
        if names is not None:
            for number, name in enumerate(names, len(self.lengths)):
                self.table[name] = number
            self.offsets.extend(islice(places, len(lengths)))
            self.lengths.extend(map(sub, lengths, repeat(1)))
            return
        for line, offset, length in zip(piece.lines, places, lengths, strict=False):
            if not line.isspace():
                self._add(*name_result(line), offset, length - 1)

    def _add(self, name: bytes | None, row_class: RowClass, offset: int, length: int) -> None:
        if name is not None and row_class is RowClass.OK:
            self.table[name] = len(self.lengths)
            self.offsets.append(offset)
            self.lengths.append(length)
        else:
            self.others.append(Other(None if name is None else name.decode(), row_class, offset, length))


class _Rows:
    """The rows of the input that a table of names has results for."""

    def __init__(self, spec: JoinSlice, table: dict[bytes, int]) -> None:
        self.start = self.end = 0
        self.order = array("I")
        self.holes: list[Hole] = []
        self.lines: dict[int, int] = {}
        self._inputs = spec.inputs
        self._bases = [*accumulate((span.end - span.start for span in spec.inputs), initial=0)]
        self._guess = spec.guess
        self._table = table
        self._namer = RowNamer(spec.names)
        self._waiting: list[tuple[int, bytes, bytes | None]] = []  # lines after the last match: input, line, name

    def find(self) -> bool:
        """Whether each name has its one row, and all of them lie together."""
        begin = self._begin()
        for at, size, source, lines in () if begin is None else self._blocks(begin):
            if self._take(at, size, source, lines):
                break
            if not lines or len(self._waiting) > MAX_GAP or len(self.holes) > len(self._table):
                return False
        return len(self.order) == len(self._table) and self._all_differ()

    def _all_differ(self) -> bool:
        seen = bytearray(len(self._table))
        for line in self.order:
            seen[line] = 1
        return all(seen)

    # -- matching

    def _take(self, at: int, size: int, source: int, lines: list[bytes]) -> bool:
        """A block of lines; whether the last name has found its row."""
        names = self._namer.alike(lines) if lines else None
        try:
            hits = None if names is None else [*map(self._table.__getitem__, names)]
        except KeyError:
            hits = None
        if hits is None or len(self.order) + len(hits) > len(self._table):
            return self._take_singly(at, source, lines, names if names is not None else self._namer.names(lines))
        self._match(at, source)
        self.order.extend(hits)
        self.lines[source] = self.lines.get(source, 0) + len(lines)
        self.end = at + size
        return len(self.order) == len(self._table)

    def _take_singly(self, at: int, source: int, lines: list[bytes], names: Sequence[bytes | None]) -> bool:
        for line, name in zip(lines, names, strict=True):
            hit = None if name is None else self._table.get(name)
            if hit is not None:
                self._match(at, source)
                self.order.append(hit)
                self.lines[source] = self.lines.get(source, 0) + 1
                self.end = at + len(line)
                if len(self.order) == len(self._table):
                    return True
            elif self.order:
                self._waiting.append((source, line, name))
            at += len(line)
        return False

    def _match(self, at: int, source: int) -> None:
        """A match: lines without one since the last are holes now."""
        if not self.order:
            self.start = at
        for input_, line, name in self._waiting:
            bad = self._namer.fault(line) if name is None else None
            if name is not None or bad is not None:
                text = None if name is None else name.decode()
                self.holes.append(Hole(input_, self.lines.get(input_, 0), sum(self.lines.values()), text, bad))
            self.lines[input_] = self.lines.get(input_, 0) + 1
        self._waiting.clear()

    def _blocks(self, begin: int) -> Iterator[tuple[int, int, int, list[bytes]]]:
        """Place, size, input and lines; no lines stand for one that is too long."""
        first, offset = self._locate(begin)
        for which in range(first, len(self._inputs)):
            span = self._inputs[which]
            at = self._bases[which] + offset - span.start
            for chunk in read_rows(
                span.path, span.name, offset, span.end, max_line_bytes=MAX_ROW_BYTES, block_bytes=BLOCK_BYTES
            ):
                if chunk.lines or chunk.long_bytes:
                    yield at, len(chunk.data), which, chunk.lines
                at += len(chunk.data)
            offset = self._inputs[which + 1].start if which + 1 < len(self._inputs) else 0

    # -- where they begin

    def _begin(self) -> int | None:
        """A place at or shortly before the first row, where a line begins."""
        step = self._step()
        hit = next((at for at in self._around(step) if self._probe(at)), None)
        if hit is None:
            return None
        low, high = hit - step, hit
        while low > 0 and self._probe(low):
            low, high = low - step, low
        low = max(low, 0)
        while high - low > PROBE_BYTES:
            middle = (low + high) // 2
            low, high = (low, middle) if self._probe(middle) else (middle, high)
        return self._line_at(low)

    def _step(self) -> int:
        """Half of the bytes that the rows may take."""
        lines = self._lines_near(self._guess)
        average = sum(map(len, lines)) // len(lines) if lines else PROBE_BYTES
        return max(PROBE_BYTES, average * len(self._table) // 2)

    def _around(self, step: int) -> Iterator[int]:
        """The guess, then places to both sides of it."""
        total = self._bases[-1]
        yield self._guess
        for distance in range(step, total + step, step):
            yield from (at for at in (self._guess + distance, self._guess - distance) if 0 <= at < total)
        yield 0

    def _probe(self, at: int) -> bool:
        lines = self._lines_near(at)
        return bool(lines) and any(name in self._table for name in self._namer.names(lines))

    def _lines_near(self, at: int) -> list[bytes]:
        """The first lines that begin at a place or after it."""
        at = self._line_at(at)
        if at >= self._bases[-1]:
            return []
        which, offset = self._locate(at)
        span = self._inputs[which]
        chunks = read_rows(
            span.path, span.name, offset, span.end, max_line_bytes=MAX_ROW_BYTES, block_bytes=PROBE_BYTES
        )
        return next(chunks).lines

    def _line_at(self, at: int) -> int:
        """Where the first line begins that begins at a place or after it; the end of all where there is none."""
        which, offset = self._locate(at)
        span = self._inputs[which]
        if offset <= span.start:
            return self._bases[which]
        with opened(span.path) as fd:
            return at + next_line(fd, offset, span.end) - offset

    def _locate(self, at: int) -> tuple[int, int]:
        """The input and the offset in it."""
        which = bisect_right(self._bases, at, 0, len(self._inputs)) - 1
        return which, self._inputs[which].start + at - self._bases[which]
