"""The first requests of some inputs, exactly as a run would send them, made row by row and sent nowhere."""

from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from streambatch.core.lines import Line, LineCutter, LongLine, is_blank
from streambatch.core.models import InputFile, ShardLimits
from streambatch.core.profiles import OPENAI, Profile, check_endpoint
from streambatch.core.shaping import Asked, Request, Unfit, make_shaper, resolve
from streambatch.edge import looking, sources
from streambatch.edge.serial import ROWS, Serial, Serials
from streambatch.errors import ConfigError

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.feeds import Row, Rows

MOST_UNFIT = 100  # rows that are no requests, before a look at an input gives up


class Preview(msgspec.Struct, frozen=True):
    """Request lines, newline included, and why rows before the last of them are none."""

    requests: tuple[bytes, ...]
    unfit: tuple[str, ...]


def preview(
    inputs: Sequence[str],
    asked: Asked,
    limits: ShardLimits,
    n: int,
    rows: "Rows | None" = None,
    *,
    profile: Profile = OPENAI,
) -> Preview:
    """The first `n` requests of the inputs, or of `rows`, of which it takes no more. Raises ConfigError, SourceError."""
    serials = Serials(rows)
    files = sources.discover(inputs) if rows is None else (ROWS,)
    shaping, _ = resolve(looking.first_row(files, limits.max_line_bytes, serials), asked)
    check_endpoint(profile, shaping.endpoint)
    shaper = make_shaper(shaping)
    requests: list[bytes] = []
    unfit: list[str] = []
    for name, number, ordinal, line in _rows(files, limits.max_line_bytes, serials):
        if len(requests) == n or len(unfit) == MOST_UNFIT:
            break
        made = (
            Unfit(f"longer than {limits.max_line_bytes} bytes")
            if isinstance(line, LongLine)
            else shaper.shape(line, ordinal)
        )
        if isinstance(made, Request):
            requests.append(made.line)
        else:
            unfit.append(f"{name}, line {number}: {made.reason}")
    return Preview(tuple(requests), tuple(unfit))


async def preview_async(
    rows: "AsyncIterable[Row]", asked: Asked, limits: ShardLimits, n: int, *, profile: Profile = OPENAI
) -> Preview:
    """`preview` of an async iterable, of which it takes no more rows than it needs."""
    taken: list[Row] = []
    async for row in rows:
        taken.append(row)
        if len(taken) == n + MOST_UNFIT or (len(taken) >= n and _enough(taken, asked, limits, n)):
            break
    return preview([], asked, limits, n, taken, profile=profile)


def _enough(taken: "list[Row]", asked: Asked, limits: ShardLimits, n: int) -> bool:
    try:
        return len(preview([], asked, limits, n, taken).requests) == n
    except ConfigError:  # a later row may be the one that says how all are shaped
        return False


def _rows(files: Sequence[InputFile], max_line_bytes: int, serials: Serials) -> Iterator[tuple[str, int, int, Line]]:
    """(file, line from 1, ordinal, line) of all rows."""
    ordinal = 0
    for index, file in enumerate(files):
        blocks = _stream(serials.at(index, file)) if file.stream else looking.blocks_of(file)
        for number, line in enumerate(_lines(blocks, max_line_bytes), 1):
            if isinstance(line, LongLine) or not is_blank(line):
                yield file.name, number, ordinal, line
            ordinal += 1


def _stream(serial: Serial) -> Iterator[bytes]:
    while block := serial.read():
        yield block


def _lines(blocks: Iterable[bytes], max_line_bytes: int) -> Iterator[Line]:
    cutter = LineCutter(max_line_bytes)
    for block in blocks:
        yield from cutter.feed(block)
    yield from cutter.finish()
