"""Input files: are they there, their first row, and reading them in blocks; positions are byte offsets.

Opens and reads only; where to cut is `core.sharding`'s decision.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from stat import S_ISDIR, S_ISREG

import msgspec

from streambatch.core.lines import BOM, LineCutter, LongLine, is_blank
from streambatch.core.models import InputFile, Segment, ShardLimits
from streambatch.core.shaping import is_object
from streambatch.core.sharding import CutPoint, SegmentScanner
from streambatch.core.sharding import after as point_after
from streambatch.errors import SourceError

BLOCK_BYTES = 512 << 10
FIRST_ROWS = 100  # among these, the first JSON object says how rows are shaped


def discover(names: Sequence[str]) -> tuple[InputFile, ...]:
    """The inputs as they are now. Raises SourceError for one that can't be read."""
    return tuple(_look_at(name) for name in names)


def _look_at(name: str) -> InputFile:
    path = os.path.abspath(name)
    with open_input(path, name) as fd:
        state = os.fstat(fd)
    return InputFile(name=name, path=path, size=state.st_size, mtime_ns=state.st_mtime_ns)


@contextmanager
def open_input(path: str, name: str) -> Iterator[int]:
    """A file descriptor for reading; what fails inside becomes a SourceError that shows `name`."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
        mode = os.fstat(fd).st_mode
        if not S_ISREG(mode):
            kind = "a directory: name the files in it" if S_ISDIR(mode) else "no regular file: save its rows to one"
            raise SourceError(f"{name} is {kind}.", path=name)
        yield fd
    except OSError as error:
        raise SourceError(f"{name} can't be read: {error.strerror}.", path=name) from error
    finally:
        if fd >= 0:
            os.close(fd)


def _read(fd: int, size: int, position: int, name: str) -> bytes:
    block = os.pread(fd, size, position)
    if len(block) < size:
        end = position + len(block)
        raise SourceError(f"{name} ends at byte {end}: it has become shorter while it was read.", path=name)
    return block


# -- lines of a byte range


class Chunk(msgspec.Struct, gc=False):
    """Consecutive bytes of a file and the whole lines in them.

    Of a line that is too long to be held, `data` is a part; where it ends, `long_bytes` is its length, and `long_blank`
    says that it was white space.
    """

    data: memoryview
    lines: list[bytes]
    ascii_only: bool = False
    long_bytes: int = 0
    long_blank: bool = False


def read_lines(
    path: str, name: str, start: int, end: int, *, max_line_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Chunk]:
    """The lines of a range that holds whole lines; a line longer than both sizes is not held. Raises SourceError."""
    with open_input(path, name) as fd:
        position = start
        while position < end:
            block = _read(fd, min(block_bytes, end - position), position, name)
            lines = BytesIO(block).readlines()
            used = len(block)
            if position + used < end and not lines[-1].endswith(b"\n"):
                used -= len(lines.pop())
            if lines:
                yield Chunk(memoryview(block)[:used], lines, block.isascii())
                position += used
            else:
                yield from _long_line(fd, name, position, stop := _line_end(fd, name, position, end), max_line_bytes)
                position = stop


def _line_end(fd: int, name: str, start: int, end: int) -> int:
    """Where the line that begins at `start` ends, newline included."""
    position = start
    while position < end:
        block = _read(fd, min(BLOCK_BYTES, end - position), position, name)
        newline = block.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(block)
    return end


def _long_line(fd: int, name: str, start: int, end: int, max_line_bytes: int) -> Iterator[Chunk]:
    if end - start <= max_line_bytes:
        line = _read(fd, end - start, start, name)
        yield Chunk(memoryview(line), [line], line.isascii())
        return
    blank = True
    for position in range(start, end, BLOCK_BYTES):
        block = _read(fd, min(BLOCK_BYTES, end - position), position, name)
        blank = blank and block.isspace()
        over = position + len(block) == end
        yield Chunk(memoryview(block), [], long_bytes=end - start if over else 0, long_blank=over and blank)


# -- the first row


def first_row(inputs: Sequence[InputFile], max_line_bytes: int) -> bytes | None:
    """The row that says how all are shaped: the first JSON object among the first rows, else the first row; or None."""
    rows = list(islice(_first_rows(inputs, max_line_bytes), 1))
    for row in islice(_first_rows(inputs, max_line_bytes), FIRST_ROWS):
        if is_object(row):
            return row
    return rows[0] if rows else None


def _first_rows(inputs: Sequence[InputFile], max_line_bytes: int) -> Iterator[bytes]:
    for source in inputs:
        cutter = LineCutter(max_line_bytes)
        with open_input(source.path, source.name) as fd:
            for position in range(0, source.size, BLOCK_BYTES):
                lines = cutter.feed(_read(fd, min(BLOCK_BYTES, source.size - position), position, source.name))
                yield from (b"" if isinstance(line, LongLine) else line for line in lines if _is_row(line))
        yield from (b"" if isinstance(line, LongLine) else line for line in cutter.finish() if _is_row(line))


def _is_row(line: bytes | LongLine) -> bool:
    return isinstance(line, LongLine) or not is_blank(line)


# -- segments


class Scan:
    """The segments of all inputs, in order, as an iterator; blocking. After its end, `ordinals`, `rows` and `limited` hold.

    `point` is where to begin; for `known`, `limit` and `no_blanks` see `SegmentScanner`.
    """

    def __init__(
        self,
        inputs: Sequence[InputFile],
        limits: ShardLimits,
        *,
        point: CutPoint | None = None,
        known: Mapping[int, int] | None = None,
        limit: int | None = None,
        no_blanks: bool = False,
        block_bytes: int | None = None,
    ) -> None:
        self._inputs = inputs
        self._point = CutPoint() if point is None else point
        self._block_bytes = BLOCK_BYTES if block_bytes is None else block_bytes
        self._scanner = SegmentScanner(limits, self._point, known, limit, no_blanks=no_blanks)
        self._segments = self._scan()

    def __iter__(self) -> Iterator[Segment]:
        return self

    def __next__(self) -> Segment:
        return next(self._segments)

    @property
    def ordinals(self) -> int:
        """Lines up to here, over all inputs."""
        return self._scanner.ordinals

    @property
    def rows(self) -> int:
        """Rows up to here, over all inputs."""
        return self._scanner.rows

    @property
    def limited(self) -> bool:
        """Whether `limit` ended it: there may be more rows."""
        return self._scanner.limited

    def _scan(self) -> Iterator[Segment]:
        for index in range(self._point.input, len(self._inputs)):
            if self._scanner.limited:
                return
            yield from self._scan_input(index)
        if not self._scanner.limited:
            yield from self._scanner.finish()

    def _scan_input(self, index: int) -> Iterator[Segment]:
        source = self._inputs[index]
        here = self._point.input == index
        with open_input(source.path, source.name) as fd:
            position = _resume_at(fd, source, self._point) if here else 0
            if position == 0 and os.pread(fd, len(BOM), 0) == BOM:
                position = len(BOM)
            self._scanner.begin(index, position, self._point.line if here else 0)
            while position < source.size and not self._scanner.limited:
                block = _read(fd, min(self._block_bytes, source.size - position), position, source.name)
                position += len(block)
                yield from self._scanner.feed(block)
        if not self._scanner.limited:
            yield from self._scanner.end_input()


def _resume_at(fd: int, source: InputFile, point: CutPoint) -> int:
    """Where the rows after a sealed segment begin: rows may have been added after a last line without a newline."""
    if point.line == 0 or point.offset >= source.size or os.pread(fd, 1, point.offset - 1) == b"\n":
        return point.offset
    if os.pread(fd, 1, point.offset) != b"\n":
        raise SourceError(
            f"{source.name}, line {point.line}: this row was sent already and has been made longer; undo that.",
            path=source.name,
            line=point.line,
        )
    return point.offset + 1


def scan(
    inputs: Sequence[InputFile],
    limits: ShardLimits,
    *,
    after: Segment | None = None,
    known: Mapping[int, int] | None = None,
    limit: int | None = None,
    rows_before: int = 0,
    block_bytes: int | None = None,
) -> Scan:
    """The segments after `after` (None: all); `rows_before` counts the rows up to its end."""
    point = None if after is None else point_after(after, rows_before)
    return Scan(inputs, limits, point=point, known=known, limit=limit, block_bytes=block_bytes)
