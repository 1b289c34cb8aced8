"""Raw segment files: the rows of serial inputs as they were read, one file per segment, so that workers find them on disk.

Knows where a segment's bytes lie, not what they mean.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from streambatch.core.jobs import Piece
from streambatch.core.models import InputFile, Segment
from streambatch.edge.jobs import storage_error

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.files import RunFiles

BLOCK_BYTES = 1 << 20


def pieces_of(files: "RunFiles", inputs: Sequence[InputFile], segment: Segment) -> tuple[Piece, ...]:
    """A segment's slices with their files; those of serial inputs lie one after the other in its raw file."""
    return pieces_in(files.raw, inputs, segment)


def pieces_in(raw: Callable[[int], str], inputs: Sequence[InputFile], segment: Segment) -> tuple[Piece, ...]:
    """The same, where `raw` names the raw file of a segment."""
    pieces, at = [], 0
    for s in segment.slices:
        file, path, start = inputs[s.input], inputs[s.input].path, s.start
        if file.serial:
            path, start = raw(segment.index), at
            at += s.end - s.start
        pieces.append(Piece(path, file.name, start, start + s.end - s.start, s.first_line, s.first_row))
    return tuple(pieces)


class RawWriter:
    """Writes what a scan reads of serial inputs. Each file gets its name (`name(index)`) once it is whole; not synced."""

    def __init__(self, name: Callable[[int], str], temporary: str, inputs: Sequence[InputFile]) -> None:
        self._name = name
        self._temporary = temporary
        self._serial = frozenset(index for index, file in enumerate(inputs) if file.serial)
        self._file: BinaryIO | None = None
        self._files = 0
        self._written = 0  # to the file at hand

    def take(self, block: bytes, segments: Iterable[Segment]) -> Iterator[Segment]:
        """The segments that end with this block, each when its file is whole; `block` is b"" for what lies in plain files.

        Raises StorageError.
        """
        rest = memoryview(block)
        for segment in segments:
            rest = self._finish(segment, rest)
            yield segment
        self._write(rest)

    def close(self) -> None:
        """Drop what is not whole."""
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):  # swept when the run is opened again
                os.unlink(self._path)
            self._file = None

    @property
    def _path(self) -> str:
        return f"{self._temporary}-{self._files}"

    def _write(self, data: memoryview) -> None:
        if not data:
            return
        with _storage():
            if self._file is None:
                self._file = self._create()
            self._file.write(data)
        self._written += len(data)

    def _create(self) -> BinaryIO:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return open(fd, "w+b")

    def _finish(self, segment: Segment, block: memoryview) -> memoryview:
        """Complete the segment's file with its part of the block; the rest of the block."""
        size = sum(s.end - s.start for s in segment.slices if s.input in self._serial)
        more = max(0, size - self._written)
        self._write(block[:more])
        whole, path = self._file, self._path
        if whole is None:
            return block
        surplus = self._written - size
        self._file, self._written = None, 0
        self._files += 1
        with _storage(), whole:
            if surplus:  # the begin of a line that belongs to the next segment
                self._move(whole, size)
            if size:
                os.replace(path, self._name(segment.index))
            else:
                os.unlink(path)
        return block[more:]

    def _move(self, whole: BinaryIO, size: int) -> None:
        whole.seek(size)
        while data := whole.read(BLOCK_BYTES):
            self._write(memoryview(data))
        whole.truncate(size)


@contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error
