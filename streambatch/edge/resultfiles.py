"""Result files as blocks of whole lines with their places, in constant memory however long a line is.

A line ends at `\\n` only. Knows nothing of what a line says.
"""

import os
from collections.abc import Iterator
from io import BytesIO

import msgspec

from streambatch.core.heads import complete
from streambatch.core.results import HEAD_BYTES

BLOCK_BYTES = 512 << 10
HELD_BYTES = 1 << 20  # longer lines are passed on as ranges
TAIL_BYTES = 4 << 10
SEEK_BYTES = 16 << 10


class Lines(msgspec.Struct, frozen=True, gc=False):
    """Consecutive lines that end with a newline; the first begins at `offset`."""

    offset: int
    lines: list[bytes]


class LongLine(msgspec.Struct, frozen=True, gc=False):
    """A line that is not held: its place, its beginning and its end. `length` is without the newline."""

    offset: int
    length: int
    head: bytes
    tail: bytes


class LastLine(msgspec.Struct, frozen=True, gc=False):
    """What stands after the last newline; `torn` where it is no complete object. `line` is None for a long one."""

    offset: int
    length: int
    torn: bool
    line: bytes | None
    head: bytes
    tail: bytes


def read_lines(
    fd: int, start: int = 0, end: int | None = None, *, block_bytes: int = BLOCK_BYTES, held_bytes: int = HELD_BYTES
) -> Iterator[Lines | LongLine | LastLine]:
    """The lines of a range of whole lines, or of all from `start` on. A line of up to `held_bytes` is given whole."""
    at = start
    stop = os.fstat(fd).st_size if end is None else end
    while at < stop and (block := os.pread(fd, min(block_bytes, stop - at), at)):
        lines = BytesIO(block).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if lines:
            yield Lines(at, lines)
            at += len(block) - len(rest)
        else:
            piece = _long(fd, at, block_bytes, held_bytes)
            yield piece
            at += piece.length + 1 if isinstance(piece, LongLine) else _span(piece)


def _span(piece: Lines | LastLine) -> int:
    return len(piece.lines[0]) if isinstance(piece, Lines) else piece.length


def _long(fd: int, at: int, block_bytes: int, held_bytes: int) -> Lines | LongLine | LastLine:
    """The one line at `at`, which is longer than a block or the last of its file."""
    end, terminated = _end_of_line(fd, at, block_bytes)
    length = end - at
    line = os.pread(fd, length + terminated, at) if length <= held_bytes else None
    if line is not None and terminated:
        return Lines(at, [line])
    head = os.pread(fd, min(length, HEAD_BYTES), at)
    tail = os.pread(fd, min(length, TAIL_BYTES), max(at, end - TAIL_BYTES))
    if terminated:
        return LongLine(at, length, head, tail)
    torn = not complete(os.pread(fd, min(block_bytes, end - p), p) for p in range(at, end, block_bytes))
    return LastLine(at, length, torn, line, head, tail)


def _end_of_line(fd: int, at: int, block_bytes: int) -> tuple[int, bool]:
    while block := os.pread(fd, block_bytes, at):
        if (found := block.find(b"\n")) >= 0:
            return at + found, True
        at += len(block)
    return at, False


def next_line(fd: int, at: int, end: int) -> int:
    """Where the first line begins that begins at `at` or after it; `end` where there is none before it."""
    point, terminated = _end_of_line(fd, at - 1, SEEK_BYTES)
    return min(point + 1, end) if terminated else end


def cut_points(fd: int, start: int, end: int, step: int) -> list[int]:
    """Places from `start` to `end`, about `step` apart, at which lines begin."""
    points = [start]
    while points[-1] + step < end and (point := next_line(fd, points[-1] + step, end)) < end:
        points.append(point)
    return [*points, end]
