"""What the jobs of the general join hand on to each other: names and places, in sections of one file per job."""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from streambatch.core.joins import Section
from streambatch.edge.gathering import read_span

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


class RowPart(msgspec.Struct, array_like=True, gc=False):
    """Rows of one span in one partition: names, and lines of the span."""

    names: list[bytes]
    rows: list[int]


class ResultPart(msgspec.Struct, array_like=True, gc=False):
    """Result lines of one span in one partition."""

    names: list[bytes]
    offsets: list[int]
    lengths: list[int]
    classes: list[int]


class MatchedPart(msgspec.Struct, array_like=True, gc=False):
    """What one partition knows of one chunk; `names` are those of the rows that are no success."""

    rows: list[int]
    classes: list[int]
    files: list[int]
    offsets: list[int]
    lengths: list[int]
    names: list[bytes]


class BadLine(msgspec.Struct, array_like=True, gc=False):
    """A line of a chunk that is a row, but has no name."""

    row: int
    reason: str


def write_sections(path: str, sections: Iterable[object]) -> None:
    """Write each as a section of a new file; where they end stands at the end of it."""
    ends = [0]
    with open(path, "wb") as file:
        for section in sections:
            ends.append(ends[-1] + file.write(_encode(section)))
        file.write(struct.pack(f"<{len(ends)}QQ", *ends, len(ends)))


def read_section(section: Section, kind: type[T]) -> T:
    """What `write_sections` was given."""
    with opened(section.path) as fd:
        size = os.fstat(fd).st_size
        (count,) = struct.unpack("<Q", read_span(fd, size - 8, 8))
        start, end = struct.unpack("<QQ", read_span(fd, size - 8 - 8 * (count - section.index), 16))
        return msgspec.msgpack.decode(read_span(fd, start, end - start), type=kind)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A file descriptor for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
