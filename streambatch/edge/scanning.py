"""Scanning inputs for the segments that `core.sharding` cuts: plain files by position, serial ones from front to back.

Reads plain files itself; of a serial input it asks its caller for each block, who knows how to wait for one.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from streambatch.core.lines import BOM
from streambatch.core.models import InputFile, Segment, ShardLimits
from streambatch.core.sharding import CutPoint, SegmentScanner
from streambatch.core.sharding import after as point_after
from streambatch.edge import sources
from streambatch.edge.rawfiles import RawWriter
from streambatch.edge.serial import Serial, Serials
from streambatch.errors import SourceError

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.files import Blocking

Steps = Generator[Segment | Serial, bytes, None]  # segments; and each serial input whose next block is wanted


class Scan:
    """The segments of all inputs, in order, as an iterator; blocking. After its end, `ordinals`, `rows` and `limited` hold.

    `point` is where to begin; for `known`, `limit` and `no_blanks` see `SegmentScanner`. `raw` takes what is read of serial
    inputs. A serial input may have been read as far as `point`, and not further.
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
        serials: Serials | None = None,
        raw: RawWriter | None = None,
    ) -> None:
        self._inputs = inputs
        self._limits = limits
        self._point = CutPoint() if point is None else point
        self._block_bytes = sources.BLOCK_BYTES if block_bytes is None else block_bytes
        self._scanner = SegmentScanner(limits, self._point, known, limit, no_blanks=no_blanks)
        self._serials = Serials() if serials is None else serials
        self._raw = raw
        self._steps = self._scan()
        self._block: bytes | None = None  # what was asked for

    def __iter__(self) -> Iterator[Segment]:
        return self

    def __next__(self) -> Segment:
        while isinstance(step := self.step(), Serial):
            self.give(step.read())
        if step is None:
            raise StopIteration
        return step

    async def ahead(self, blocking: "Blocking") -> Segment | None:
        """The next segment, None at the end, for an event loop; a cancelled wait loses nothing but the block on its way."""
        while isinstance(step := await blocking(self.step), Serial):
            self.give(await step.fetch(blocking))
        return step

    def step(self) -> Segment | Serial | None:
        """The next segment, or the input of which a block is wanted first, or None at the end."""
        block, self._block = self._block, None
        try:
            return next(self._steps) if block is None else self._steps.send(block)
        except StopIteration:
            return None

    def give(self, block: bytes) -> None:
        """The block that was wanted, b"" at the end of the input."""
        self._block = block

    def close(self) -> None:
        """Drop what is not whole."""
        self._steps.close()

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

    # -- inputs in turn

    def _scan(self) -> Steps:
        try:
            for index in range(self._point.input, len(self._inputs)):
                if self._scanner.limited:
                    return
                yield from self._scan_serial(index) if self._inputs[index].serial else self._scan_plain(index)
                if not self._scanner.limited:
                    yield from self._taken(b"", self._scanner.end_input())
            if not self._scanner.limited:
                yield from self._taken(b"", self._scanner.finish())
        finally:
            if self._raw is not None:
                self._raw.close()

    def _taken(self, raw: bytes, segments: list[Segment]) -> Iterator[Segment]:
        """Segments that are over; `raw` is what was read of a serial input."""
        return iter(segments) if self._raw is None else self._raw.take(raw, segments)

    def _starts_here(self, index: int) -> tuple[int, int]:
        """Offset and line where to begin in an input."""
        return (self._point.offset, self._point.line) if self._point.input == index else (0, 0)

    def _scan_plain(self, index: int) -> Steps:
        source = self._inputs[index]
        position, line = self._starts_here(index)
        with sources.open_input(source.path, source.name) as fd:
            if self._point.input == index:
                position = _resume_at(fd, source, self._point)
            if position == 0 and os.pread(fd, len(BOM), 0) == BOM:
                position = len(BOM)
            self._scanner.begin(index, position, line)
            while position < source.size and not self._scanner.limited:
                size = min(self._block_bytes, source.size - position)
                block = sources.read_at(fd, size, position, source.name)
                position += len(block)
                yield from self._taken(b"", self._scanner.feed(block))

    # -- a serial input

    def _scan_serial(self, index: int) -> Steps:
        offset, line = self._starts_here(index)
        serial = self._serials.at(index, self._inputs[index], offset)
        yield from _pass(serial, offset)
        whole = serial.last == b"\n"
        rest = yield from _head(serial)
        if offset == 0:
            rest = rest.removeprefix(BOM)
        elif line and rest and not whole:
            rest = _behind_newline(serial.file, rest, line)
        self._scanner.begin(index, serial.position - len(rest), line)
        while not self._scanner.limited:
            rest = rest if rest else (yield serial)
            if not rest:
                return
            yield from self._taken(rest, self._scanner.feed(rest))
            self._check_line(index)
            rest = b""

    def _check_line(self, index: int) -> None:
        """A line that no batch could hold is no row: it could as well have no end. Raises SourceError."""
        line, size = self._scanner.part
        most = max(self._limits.max_bytes, self._limits.max_line_bytes)
        if size > most:
            name = self._inputs[index].name
            raise SourceError(
                f"{name}, line {line + 1} is longer than {most} bytes: this is no JSONL, or it is damaged.",
                path=name,
                line=line + 1,
            )


def _pass(serial: Serial, offset: int) -> Generator[Serial, bytes, None]:
    """Go to where the rows after a sealed segment begin. Raises SourceError where the input ends before."""
    while serial.position < offset and (block := (yield serial)):
        serial.cut(block, offset)
    if serial.position < offset:
        raise SourceError(
            f"{serial.file.name} ends before rows that this run has cut already; restore it, or start a new run with another -o.",
            path=serial.file.name,
        )


def _head(serial: Serial) -> Generator[Serial, bytes, bytes]:
    """So much that a BOM would be seen; less at the end."""
    head = b""
    while len(head) < len(BOM) and (block := (yield serial)):
        head += block
    return head


def _behind_newline(source: InputFile, rest: bytes, line: int) -> bytes:
    """Rows may have been added after a last line without a newline, but that line is what it was. Raises SourceError."""
    if not rest.startswith(b"\n"):
        raise SourceError(
            f"{source.name}, line {line}: this row was sent already and has been made longer; undo that.",
            path=source.name,
            line=line,
        )
    return rest[1:]


def _resume_at(fd: int, source: InputFile, point: CutPoint) -> int:
    """Where the rows after a sealed segment begin in a plain file."""
    if point.line == 0 or point.offset >= source.size or os.pread(fd, 1, point.offset - 1) == b"\n":
        return point.offset
    _behind_newline(source, os.pread(fd, 1, point.offset), point.line)
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
    serials: Serials | None = None,
    raw: RawWriter | None = None,
) -> Scan:
    """The segments after `after` (None: all); `rows_before` counts the rows up to its end."""
    point = None if after is None else point_after(after, rows_before)
    return Scan(
        inputs, limits, point=point, known=known, limit=limit, block_bytes=block_bytes, serials=serials, raw=raw
    )
