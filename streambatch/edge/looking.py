"""The first row of some inputs, which says how all rows are shaped; nothing of a stream is lost by the look.

Decides nothing: `core.shaping` knows what a row means.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from streambatch.core.lines import LineCutter, LongLine, is_blank
from streambatch.core.models import InputFile
from streambatch.core.shaping import is_object
from streambatch.edge import sources
from streambatch.edge.serial import Serial, Serials, open_gzip

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.files import Blocking

FIRST_ROWS = 100  # among these, the first JSON object says how rows are shaped
HEAD_BYTES = 64 << 20  # of a stream, that are held for the look


def first_row(inputs: Sequence[InputFile], max_line_bytes: int, serials: Serials | None = None) -> bytes | None:
    """The first JSON object among the first rows, else the first row; None where there is no row. Raises SourceError."""
    streams = Serials() if serials is None else serials
    while isinstance(seen := look(inputs, max_line_bytes, streams), Serial):
        seen.look_ahead()
    return seen


async def first_row_of(
    inputs: Sequence[InputFile], max_line_bytes: int, serials: Serials, blocking: "Blocking"
) -> bytes | None:
    """`first_row` for an event loop."""
    while isinstance(seen := await blocking(look, inputs, max_line_bytes, serials), Serial):
        await seen.look_ahead_async(blocking)
    return seen


def look(inputs: Sequence[InputFile], max_line_bytes: int, serials: Serials) -> bytes | Serial | None:
    """The row, or the stream of which more must be seen first."""
    first: bytes | None = None
    for row in islice(_first_rows(inputs, max_line_bytes, serials), FIRST_ROWS):
        if isinstance(row, Serial) or is_object(row):
            return row
        first = row if first is None else first
    return first


def _first_rows(inputs: Sequence[InputFile], max_line_bytes: int, serials: Serials) -> Iterator[bytes | Serial]:
    for index, file in enumerate(inputs):
        if not file.stream:
            yield from _rows(blocks_of(file), max_line_bytes)
            continue
        stream = serials.at(index, file)
        yield from _rows(stream.head, max_line_bytes, whole=stream.ended)
        if not stream.ended and sum(map(len, stream.head)) < HEAD_BYTES + max_line_bytes:
            yield stream


def _rows(blocks: Iterable[bytes], max_line_bytes: int, *, whole: bool = True) -> Iterator[bytes]:
    cutter = LineCutter(max_line_bytes)
    for block in blocks:
        lines = cutter.feed(block)
        yield from (b"" if isinstance(line, LongLine) else line for line in lines if _is_row(line))
    if whole:
        yield from (b"" if isinstance(line, LongLine) else line for line in cutter.finish() if _is_row(line))


def _is_row(line: bytes | LongLine) -> bool:
    return isinstance(line, LongLine) or not is_blank(line)


def blocks_of(file: InputFile) -> Iterator[bytes]:
    """The content of a file from its start. Raises SourceError."""
    if file.serial:
        blocks = open_gzip(file)
        try:
            while block := blocks.read():
                yield block
        finally:
            blocks.close()
        return
    with sources.open_input(file.path, file.name) as fd:
        for position in range(0, file.size, sources.BLOCK_BYTES):
            yield sources.read_at(fd, min(sources.BLOCK_BYTES, file.size - position), position, file.name)
