"""Where in the input the rows of one result file lie, and in which order: found by looking at a few places, then read in one go.

Holds the names that it was given, and of rows only those without a result. Knows nothing of result files.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat

import msgspec

from streambatch.core.joins import JoinSlice
from streambatch.core.naming import RowNamer
from streambatch.edge.jobs.sections import opened
from streambatch.edge.resultfiles import next_line
from streambatch.edge.sources import read_lines

MAX_ROW_BYTES = 32 << 20
MAX_GAP = 4096  # rows without a success, one after the other, before its rows count as scattered
PROBE_BYTES = 16 << 10
BLOCK_BYTES = 256 << 10


class Hole(msgspec.Struct, array_like=True, gc=False):
    """A row of the slice without a success: its input, its line among those of the slice in that input and in all, its name."""

    input: int
    line: int
    ordinal: int
    name: str | None
    bad: str | None


class Rows:
    """The rows of the input that a table of names has results for."""

    def __init__(self, spec: JoinSlice, table: dict[bytes, int]) -> None:
        self.start = self.end = 0
        self.spans = array("Q")  # what the table has for the rows, in their order
        self.holes: list[Hole] = []
        self.lines: dict[int, int] = {}
        self._inputs = spec.inputs
        self._bases = [*accumulate((span.end - span.start for span in spec.inputs), initial=0)]
        self._guess = spec.guess
        self._table = table
        self._total = len(table)
        self._namer = RowNamer(spec.names)
        self._waiting: list[tuple[int, bytes, bytes | None]] = []  # lines after the last match: input, line, name

    def find(self) -> bool:
        """Whether each name has its row, and all of them lie together. The table is used up."""
        begin = self._begin()
        for at, size, source, lines in () if begin is None else self._blocks(begin):
            self._take(at, size, source, lines)
            if not self._table:
                return True
            if not lines or len(self._waiting) > MAX_GAP or len(self.holes) > self._total:
                break
        return False

    # -- matching

    def _take(self, at: int, size: int, source: int, lines: list[bytes]) -> None:
        """A block of lines. A name is taken out of the table with its first row."""
        names: Sequence[bytes | None] | None = self._namer.alike(lines) if lines else None
        if names is None:
            names = self._namer.names(lines) if lines else ()
        before = len(self.spans)
        hits = [*map(self._table.pop, names, repeat(None))]  # type: ignore[arg-type] # None is in no table
        try:
            self.spans.extend(hits)
        except TypeError:
            del self.spans[before:]
            self._take_singly(at, source, lines, names, hits)
            return
        if hits:
            self._match(at, source, first=not before)
            self.lines[source] = self.lines.get(source, 0) + len(lines)
            self.end = at + size

    def _take_singly(
        self, at: int, source: int, lines: list[bytes], names: Sequence[bytes | None], hits: Sequence[int | None]
    ) -> None:
        for line, name, hit in zip(lines, names, hits, strict=True):
            if hit is not None:
                self._match(at, source, first=not self.spans)
                self.spans.append(hit)
                self.lines[source] = self.lines.get(source, 0) + 1
                self.end = at + len(line)
            elif self.spans and len(self.spans) < self._total:
                self._waiting.append((source, line, name))
            at += len(line)

    def _match(self, at: int, source: int, *, first: bool) -> None:
        """A match: lines without one since the last are holes now."""
        if first:
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
            for chunk in read_lines(
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
        return max(PROBE_BYTES, average * self._total // 2)

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
        chunks = read_lines(
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
