"""Where to cut: inputs into segments, rendered lines into shards.

Pure: it is fed blocks and answers with segments, the same ones for any size of block. It knows no file and no worker.
"""

from collections.abc import Mapping
from io import BytesIO

import msgspec

from streambatch.core.models import Segment, ShardLimits, Slice

MAX_LINES = 1 << 20  # of a segment, blank ones included: merging holds a record of each


class CutPoint(msgspec.Struct, frozen=True):
    """Where cutting goes on: segment `index` begins at byte `offset` of `input`, with line `line` of that file, from 0.

    `ordinal` counts the lines and `rows` the rows before it, over all inputs.
    """

    input: int = 0
    offset: int = 0
    line: int = 0
    ordinal: int = 0
    index: int = 0
    rows: int = 0


def after(segment: Segment, rows: int) -> CutPoint:
    """The point behind `segment`; `rows` counts all rows up to its end."""
    last = segment.slices[-1]
    return CutPoint(
        input=last.input,
        offset=last.end,
        line=last.first_line + segment.lines - last.first_row,
        ordinal=segment.first_ordinal + segment.lines,
        index=segment.index + 1,
        rows=rows,
    )


def has_room(limits: ShardLimits, rows: int, size: int, more_rows: int, more_bytes: int) -> bool:
    """Whether a shard of `rows` lines and `size` bytes may take so much more; bytes as written, newlines included."""
    return rows + more_rows <= limits.max_requests and size + more_bytes <= limits.max_bytes


class _OpenSlice(msgspec.Struct):
    input: int
    start: int
    end: int
    first_line: int
    first_row: int


class SegmentScanner:
    """Cuts the longest runs of rows that keep the limits; holds counts, never a line.

    A segment ends before the row that would break a limit; a row that breaks it alone is a segment alone. `known` maps
    a first ordinal to the lines of a segment that exists already: that one is cut so, whatever the limits and `limit`
    say. `limit` ends the last segment after so many rows (counted over all inputs). `no_blanks` is the caller's guess
    that no line is blank, which makes it faster; where it is wrong the cuts after that line are not to be used.
    """

    def __init__(
        self,
        limits: ShardLimits,
        start: CutPoint = CutPoint(),  # noqa: B008 - frozen
        known: Mapping[int, int] | None = None,
        limit: int | None = None,
        *,
        no_blanks: bool = False,
    ) -> None:
        self._limits = limits
        self._known = {} if known is None else known
        self._limit = limit
        self._no_blanks = no_blanks
        self._index = start.index
        self._first_ordinal = start.ordinal
        self._total_rows = start.rows
        self._input, self._offset, self._line = start.input, start.offset, start.line
        self._part_bytes = 0  # of the line that is not whole yet
        self._part_blank = True
        self._slices: list[_OpenSlice] = []
        self._lines = self._rows = self._bytes = 0  # of the open segment
        self.limited = self._is_over()

    @property
    def ordinals(self) -> int:
        """Lines taken so far, over all inputs."""
        return self._first_ordinal + self._lines

    @property
    def rows(self) -> int:
        """Rows taken so far, over all inputs."""
        return self._total_rows

    @property
    def part(self) -> tuple[int, int]:
        """The line of the input, from 0, that is not whole yet, and its bytes so far."""
        return self._line, self._part_bytes

    # -- feeding

    def begin(self, index: int, offset: int = 0, line: int = 0) -> None:
        """The next block is of input `index`, from `offset`, where line `line` begins."""
        self._input, self._offset, self._line = index, offset, line

    def feed(self, block: bytes) -> list[Segment]:
        """The segments that are known to be over with this block."""
        if self._no_blanks and self._take_uncut(block):
            return []
        lines = BytesIO(block).readlines()
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        done: list[Segment] = []
        if lines and self._part_bytes:
            done += self._end_part(lines.pop(0))
        if lines:
            done += self._take_lines(lines)
        self._part_blank = self._part_blank and (not rest or rest.isspace())
        self._part_bytes += len(rest)
        return done

    def end_input(self) -> list[Segment]:
        """The input is over: its last line ends here, with or without a newline."""
        return self._end_part(b"") if self._part_bytes else []

    def finish(self) -> list[Segment]:
        """All inputs are over."""
        return [self._cut()] if self._lines else []

    def _end_part(self, end: bytes) -> list[Segment]:
        size, blank = self._part_bytes + len(end), self._part_blank and (not end or end.isspace())
        self._part_bytes, self._part_blank = 0, True
        return self._take_line(size, blank)

    # -- taking lines

    def _take_uncut(self, block: bytes) -> bool:
        """The whole lines of a block, if they fit and don't fill the segment; their number is all there is to know."""
        lines = len(block) - len(block.replace(b"\n", b""))  # three times as fast as bytes.count
        whole = block.rfind(b"\n") + 1
        size = self._part_bytes + whole
        if self.limited or not lines or not self._fits(lines + 1, lines + 1, size):
            return False
        self._take(lines, lines, size)
        self._part_bytes = len(block) - whole
        self._part_blank = self._part_bytes == 0
        return True

    def _take_lines(self, lines: list[bytes]) -> list[Segment]:
        """Takes all at once where nothing is to be decided: all fit, and no blank line may follow the row at `limit`."""
        size = sum(map(len, lines))
        blanks = 0 if min(lines) >= b"!" else sum(map(bytes.isspace, lines))
        rows = len(lines) - blanks
        if not self.limited and self._fits(len(lines), rows, size) and not (blanks and self._reaches_limit(rows)):
            return self._take(len(lines), rows, size)
        if len(lines) == 1:
            return self._take_line(size, rows == 0)
        middle = len(lines) // 2
        return self._take_lines(lines[:middle]) + self._take_lines(lines[middle:])

    def _take_line(self, size: int, blank: bool) -> list[Segment]:
        rows = 0 if blank else 1
        done = [self._cut()] if self._lines and not self._fits(1, rows, size) else []
        return done if self.limited else done + self._take(1, rows, size)

    def _fits(self, lines: int, rows: int, size: int) -> bool:
        known = self._known.get(self._first_ordinal)
        if known is not None:
            return self._lines + lines <= known
        if self._limit is not None and self._total_rows + rows > self._limit:
            return False
        return self._lines + lines <= MAX_LINES and has_room(self._limits, self._rows, self._bytes, rows, size)

    def _reaches_limit(self, rows: int) -> bool:
        return self._limit is not None and self._total_rows + rows >= self._limit

    def _take(self, lines: int, rows: int, size: int) -> list[Segment]:
        if not self._slices or self._slices[-1].input != self._input:
            self._slices.append(_OpenSlice(self._input, self._offset, self._offset, self._line, self._lines))
        self._offset += size
        self._line += lines
        self._slices[-1].end = self._offset
        self._lines += lines
        self._rows += rows
        self._bytes += size
        self._total_rows += rows
        return [self._cut()] if self._is_full() else []

    # -- ending a segment

    def _is_full(self) -> bool:
        known = self._known.get(self._first_ordinal)
        if known is not None:
            return self._lines >= known
        return self._reaches_limit(0)

    def _is_over(self) -> bool:
        """Whether `limit` is reached where a segment begins; segments that exist already are cut in any case."""
        return self._reaches_limit(0) and self._first_ordinal not in self._known

    def _cut(self) -> Segment:
        slices = tuple(Slice(s.input, s.start, s.end, s.first_line, s.first_row) for s in self._slices)
        segment = Segment(self._index, slices, self._first_ordinal, self._lines, self._bytes)
        self._index += 1
        self._first_ordinal += self._lines
        self._slices = []
        self._lines = self._rows = self._bytes = 0
        self.limited = self._is_over()
        return segment
