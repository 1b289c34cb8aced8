"""Cutting inputs into segments: against a slow obvious model, for any size of block, from any point."""

from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from streambatch.core.models import Segment, ShardLimits, Slice
from streambatch.core.sharding import CutPoint, SegmentScanner, after, has_room

LINES = st.sampled_from((b"{}\n", b"{1234}\n", b"\n", b" \n", b"\r\n", b"{123456789012345}\n", b"\x00\n", b" {}\n"))
ENDS = st.sampled_from((b"", b"{}", b"  ", b"{123456789}"))
FILES = st.lists(st.tuples(st.lists(LINES, max_size=12).map(b"".join), ENDS).map(b"".join), max_size=4)
LIMITS = st.builds(ShardLimits, max_requests=st.integers(1, 5), max_bytes=st.integers(1, 30))


class Model:
    """Cuts line by line with all lines at hand."""

    def __init__(
        self, files: Sequence[bytes], limits: ShardLimits, known: Mapping[int, int], limit: int | None
    ) -> None:
        self.segments: list[Segment] = []
        self._open: list[tuple[int, int, int, bytes]] = []  # input, offset, line of file, line
        self._ordinal = 0
        rows = 0
        for index, text in enumerate(files):
            offset = 0
            for number, line in enumerate(_lines(text)):
                if self._breaks(line, limits, known):
                    self._cut()
                if not self._open and limit is not None and rows >= limit and self._ordinal not in known:
                    return
                self._open.append((index, offset, number, line))
                offset += len(line)
                rows += _row(line)
                if limit is not None and rows >= limit and len(self._open) >= known.get(self._ordinal, 0):
                    self._cut()
        self._cut()

    def _breaks(self, line: bytes, limits: ShardLimits, known: Mapping[int, int]) -> bool:
        if not self._open:
            return False
        if self._ordinal in known:
            return len(self._open) >= known[self._ordinal]
        lines = [*(entry[3] for entry in self._open), line]
        return sum(map(_row, lines)) > limits.max_requests or sum(map(len, lines)) > limits.max_bytes

    def _cut(self) -> None:
        if not self._open:
            return
        slices: dict[int, Slice] = {}
        for row, (index, offset, number, line) in enumerate(self._open):
            begun = slices.get(index, Slice(index, offset, offset, number, row))
            slices[index] = msgspec.structs.replace(begun, end=offset + len(line))
        size = sum(len(entry[3]) for entry in self._open)
        lines = len(self._open)
        self.segments.append(Segment(len(self.segments), tuple(slices.values()), self._ordinal, lines, size))
        self._ordinal += lines
        self._open = []


def _lines(text: bytes) -> list[bytes]:
    *whole, rest = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _row(line: bytes) -> int:
    return 0 if line.isspace() else 1


def scan(files: Sequence[bytes], scanner: SegmentScanner, block: int, start: CutPoint | None = None) -> list[Segment]:
    start = CutPoint() if start is None else start
    segments = []
    for index in range(start.input, len(files)):
        here = index == start.input
        position = start.offset if here else 0
        scanner.begin(index, position, start.line if here else 0)
        for at in range(position, len(files[index]), block):
            segments += scanner.feed(files[index][at : at + block])
        segments += scanner.end_input()
    return segments + scanner.finish()


@given(FILES, LIMITS, st.integers(1, 40))
@example([b"\n"], ShardLimits(1, 1), 1)
def test_segments_are_those_of_the_model(files: list[bytes], limits: ShardLimits, block: int) -> None:
    scanner = SegmentScanner(limits)
    assert scan(files, scanner, block) == Model(files, limits, {}, None).segments
    lines = [line for text in files for line in _lines(text)]
    assert (scanner.ordinals, scanner.rows, scanner.limited) == (len(lines), sum(map(_row, lines)), False)


@given(FILES, LIMITS, st.integers(1, 40))
def test_segments_keep_the_limits_and_lose_nothing(files: list[bytes], limits: ShardLimits, block: int) -> None:
    seen = [b""] * len(files)
    ordinal = 0
    for segment in scan(files, SegmentScanner(limits), block):
        assert segment.first_ordinal == ordinal
        ordinal += segment.lines
        parts: list[bytes] = []
        for piece in segment.slices:
            assert len(seen[piece.input]) == piece.start
            assert piece.first_line == seen[piece.input].count(b"\n")
            assert piece.first_row == sum(len(_lines(part)) for part in parts)
            parts.append(files[piece.input][piece.start : piece.end])
            seen[piece.input] += parts[-1]
        lines = [line for part in parts for line in _lines(part)]
        assert len(lines) == segment.lines
        assert sum(map(len, lines)) == segment.bytes
        assert sum(_row(line) for line in lines) <= limits.max_requests
        assert segment.bytes <= limits.max_bytes or segment.lines == 1
    assert seen == files


@given(FILES, LIMITS, st.integers(1, 40), st.integers(0, 12), st.dictionaries(st.integers(0, 12), st.integers(1, 6)))
def test_limit_and_known_segments(
    files: list[bytes], limits: ShardLimits, block: int, limit: int, known: dict[int, int]
) -> None:
    for bound in (None, limit):
        scanner = SegmentScanner(limits, known=known, limit=bound)
        assert scan(files, scanner, block) == Model(files, limits, known, bound).segments


@given(FILES, LIMITS, st.integers(1, 40))
def test_it_goes_on_behind_any_segment(files: list[bytes], limits: ShardLimits, block: int) -> None:
    segments = scan(files, SegmentScanner(limits), block)
    rows = 0
    for number, segment in enumerate(segments):
        rows += sum(_row(line) for s in segment.slices for line in _lines(files[s.input][s.start : s.end]))
        point = after(segment, rows)
        scanner = SegmentScanner(limits, point)
        assert scan(files, scanner, block, point) == segments[number + 1 :]
        assert scanner.rows == sum(_row(line) for text in files for line in _lines(text))


@given(FILES, LIMITS, st.integers(1, 40), st.integers(0, 8))
def test_after_a_limit_it_goes_on_where_it_stopped(
    files: list[bytes], limits: ShardLimits, block: int, limit: int
) -> None:
    scanner = SegmentScanner(limits, limit=limit)
    first = scan(files, scanner, block)
    assert scanner.rows <= limit
    if first:
        point = after(first[-1], scanner.rows)
        rest = scan(files, SegmentScanner(limits, point), block, point)
        lines = sum(len(_lines(text)) for text in files)
        assert sum(segment.lines for segment in first + rest) == lines


@given(
    FILES, LIMITS, st.integers(1, 40), st.none() | st.integers(0, 12), st.dictionaries(st.integers(0, 9), st.just(3))
)
@example([b"{}\n{}\n{}\n"], ShardLimits(), 9, 3, {})
@example([b"{}\n{}\n{}\n"], ShardLimits(), 9, None, {0: 3})
def test_the_guess_of_no_blanks_is_right_where_there_are_none(
    files: list[bytes], limits: ShardLimits, block: int, limit: int | None, known: dict[int, int]
) -> None:
    files = [b"".join(line for line in _lines(text) if _row(line)) for text in files]
    scanner = SegmentScanner(limits, known=known, limit=limit, no_blanks=True)
    assert scan(files, scanner, block) == Model(files, limits, known, limit).segments


@given(FILES, LIMITS, st.integers(1, 40))
def test_the_guess_of_no_blanks_is_right_up_to_the_first_blank(
    files: list[bytes], limits: ShardLimits, block: int
) -> None:
    guessed, exact = (scan(files, SegmentScanner(limits, no_blanks=guess), block) for guess in (True, False))
    for one, other in zip(guessed, exact, strict=False):
        if any(not _row(line) for s in one.slices for line in _lines(files[s.input][s.start : s.end])):
            break
        assert one == other


def test_a_scanner_holds_no_lines() -> None:
    scanner = SegmentScanner(ShardLimits())
    for _ in range(1000):
        scanner.feed(b"x" * 1000)
    assert all(not isinstance(value, bytes) for value in vars(scanner).values())
    scanner.end_input()
    assert scanner.finish()[0].bytes == 1_000_000


def test_room_is_held_against_the_bytes_written() -> None:
    limits = ShardLimits(max_requests=2, max_bytes=10)
    assert has_room(limits, 1, 4, 1, 6)
    assert not has_room(limits, 1, 4, 1, 7)
    assert not has_room(limits, 2, 0, 1, 1)
