"""Jobs of the general join, first half: index rows and results by their names, then match one partition after the other.

Blocking, bounded memory: a job holds the names and places of one span, or of one partition, never a row.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from zlib import crc32

from streambatch.core.joins import (
    CountLines,
    IndexResults,
    IndexRows,
    LinesCounted,
    MatchPart,
    PartMatched,
    ResultsIndexed,
    RowsIndexed,
)
from streambatch.core.matching import Matcher
from streambatch.core.naming import ResultNamer, RowNamer, name_verdict
from streambatch.core.results import Verdict, read_ends, read_head, read_line
from streambatch.edge import resultfiles
from streambatch.edge.jobs.sections import (
    BadLine,
    MatchedPart,
    ResultPart,
    RowPart,
    opened,
    read_section,
    write_sections,
)
from streambatch.edge.resultfiles import LastLine, Lines, LongLine
from streambatch.edge.sources import read_lines

MAX_ROW_BYTES = 32 << 20


def count_lines(spec: CountLines) -> LinesCounted:
    """Lines of a span. Raises SourceError."""
    span = spec.span
    chunks = read_lines(span.path, span.name, span.start, span.end, max_line_bytes=0)
    return LinesCounted(sum(len(chunk.lines) + bool(chunk.long_bytes) for chunk in chunks))


# -- rows


def index_rows(spec: IndexRows) -> RowsIndexed:
    """The names of a span's rows, and its bad rows. Raises SourceError."""
    span, namer = spec.span, RowNamer(spec.names)
    parts = [RowPart([], []) for _ in range(spec.partitions)]
    bad: list[BadLine] = []
    line = 0
    for chunk in read_lines(span.path, span.name, span.start, span.end, max_line_bytes=MAX_ROW_BYTES):
        if chunk.lines:
            names = namer.names(chunk.lines, spec.first_ordinal + line)
            _deal_rows(parts, names, line)
            bad.extend(_faults(namer, chunk.lines, names, line))
            line += len(chunk.lines)
        if chunk.long_bytes:
            bad.append(BadLine(line, f"the line is {chunk.long_bytes} bytes long, over the limit of {MAX_ROW_BYTES}"))
            line += 1
    write_sections(spec.out, [*parts, bad])
    return RowsIndexed(line, len(bad) + sum(len(part.rows) for part in parts))


def _deal_rows(parts: list[RowPart], names: Sequence[bytes | None], first: int) -> None:
    adds = [(part.names.append, part.rows.append) for part in parts]
    count = len(parts)
    for row, name in enumerate(names, first):
        if name is not None:
            add_name, add_row = adds[crc32(name) % count]
            add_name(name)
            add_row(row)


def _faults(namer: RowNamer, lines: list[bytes], names: Sequence[bytes | None], first: int) -> Iterator[BadLine]:
    if None in names:
        for row, (line, name) in enumerate(zip(lines, names, strict=True), first):
            if name is None and (reason := namer.fault(line)) is not None:
                yield BadLine(row, reason)


# -- results


def index_results(spec: IndexResults) -> ResultsIndexed:
    """The names, places and classes of a span's result lines."""
    index = _ResultIndex(spec.partitions)
    with opened(spec.span.path) as fd:
        for piece in resultfiles.read_lines(fd, spec.span.start, spec.span.end):
            index.take(piece)
    write_sections(spec.out, index.parts)
    return ResultsIndexed(index.lines, index.nameless, index.torn)


class _ResultIndex:
    """Result lines on their way to their partitions."""

    def __init__(self, partitions: int) -> None:
        self.parts = [ResultPart([], [], [], []) for _ in range(partitions)]
        self.lines = self.nameless = 0
        self.torn = False
        self._namer = ResultNamer()
        self._adds = [
            (part.names.append, part.offsets.append, part.lengths.append, part.classes.append) for part in self.parts
        ]

    def take(self, piece: Lines | LongLine | LastLine) -> None:
        match piece:
            case Lines():
                self._take_lines(piece)
            case LongLine():
                self._take_one(piece, read_ends(piece.head, piece.tail))
            case LastLine(torn=True):
                self.torn = True
            case LastLine(line=None):
                self._take_one(piece, read_head(piece.head, piece.tail))
            case LastLine(line=line):
                self._take_one(piece, read_line(line or b""))

    def _take_lines(self, piece: Lines) -> None:
        named, lengths = self._namer.named(piece.lines), [*map(len, piece.lines)]
        adds, count = self._adds, len(self.parts)
        places = accumulate(lengths, initial=piece.offset)
        for name, row_class, offset, length in zip(named.names, named.classes, places, lengths, strict=False):
            if name is not None:
                add_name, add_offset, add_length, add_class = adds[crc32(name) % count]
                add_name(name)
                add_offset(offset)
                add_length(length - 1)
                add_class(row_class)
        self._count(named.names, piece.lines)

    def _count(self, names: Sequence[bytes | None], lines: list[bytes]) -> None:
        blank = 0
        if None in names:
            without = [line for name, line in zip(names, lines, strict=True) if name is None]
            blank = sum(map(bytes.isspace, without))
            self.nameless += len(without) - blank
        self.lines += len(lines) - blank

    def _take_one(self, piece: LongLine | LastLine, verdict: Verdict | None) -> None:
        name, row_class = name_verdict(verdict)
        if name is not None:
            place = crc32(name) % len(self.parts)
            for add, value in zip(self._adds[place], (name, piece.offset, piece.length, row_class), strict=True):
                add(value)  # type: ignore[operator]
        self.nameless += name is None
        self.lines += 1


# -- matching


def match_part(spec: MatchPart) -> PartMatched:
    """Who belongs to whom in one partition; by chunk of the input."""
    matcher = Matcher()
    for file, section in spec.results:
        part = read_section(section, ResultPart)
        matcher.add(file, part.names, part.offsets, part.lengths, part.classes)
    chunks, done_bytes = [], []
    for section in spec.rows:
        rows = read_section(section, RowPart)
        matched = _matched(matcher, rows)
        chunks.append(matched)
        done_bytes.append(_done_bytes(matched))
    write_sections(spec.out, chunks)
    return PartMatched(tuple(done_bytes), matcher.duplicate, matcher.unused)


def _matched(matcher: Matcher, part: RowPart) -> MatchedPart:
    hits = matcher.match(part.names)
    columns = matcher.columns(hits)
    names = [*compress(part.names, columns[0])]
    return MatchedPart(part.rows, *columns, names)


def _done_bytes(part: MatchedPart) -> int:
    """What the successes take, a newline after each."""
    if any(part.classes):
        return sum(length + 1 for length, row_class in zip(part.lengths, part.classes, strict=True) if not row_class)
    return sum(part.lengths) + len(part.lengths)
