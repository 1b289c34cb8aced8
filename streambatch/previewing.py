"""The first requests of some inputs, exactly as a run would send them, made row by row and sent nowhere."""

from collections.abc import Iterator, Sequence

import msgspec

from streambatch.core.lines import Line, LineCutter, LongLine, is_blank
from streambatch.core.models import InputFile, ShardLimits
from streambatch.core.shaping import Asked, Request, Unfit, make_shaper, resolve
from streambatch.edge import sources

MOST_UNFIT = 100  # rows that are no requests, before a look at an input gives up


class Preview(msgspec.Struct, frozen=True):
    """Request lines, newline included, and why rows before the last of them are none."""

    requests: tuple[bytes, ...]
    unfit: tuple[str, ...]


def preview(inputs: Sequence[str], asked: Asked, limits: ShardLimits, n: int) -> Preview:
    """The first `n` requests. Raises ConfigError, SourceError."""
    files = sources.discover(inputs)
    shaping, _ = resolve(sources.first_row(files, limits.max_line_bytes), asked)
    shaper = make_shaper(shaping)
    requests: list[bytes] = []
    unfit: list[str] = []
    for name, number, ordinal, line in _rows(files, limits.max_line_bytes):
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


def _rows(files: Sequence[InputFile], max_line_bytes: int) -> Iterator[tuple[str, int, int, Line]]:
    """(file, line from 1, ordinal, line) of all rows."""
    ordinal = 0
    for file in files:
        for number, line in enumerate(_lines(file, max_line_bytes), 1):
            if isinstance(line, LongLine) or not is_blank(line):
                yield file.name, number, ordinal, line
            ordinal += 1


def _lines(file: InputFile, max_line_bytes: int) -> Iterator[Line]:
    cutter = LineCutter(max_line_bytes)
    with sources.open_input(file.path, file.name) as fd, open(fd, "rb", buffering=0, closefd=False) as raw:
        while block := raw.read(sources.BLOCK_BYTES):
            yield from cutter.feed(block)
    yield from cutter.finish()
