"""Serial inputs: read once from front to back, in blocks; what was looked at comes again.

Gzip files can be opened again, streams (stdin, rows of a program) can't. Knows neither lines nor segments.
"""

import contextlib
import fcntl
import os
import select
import sys
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from streambatch.core.models import InputFile
from streambatch.edge.sources import GZIP_MAGIC
from streambatch.errors import ConfigError, SourceError

if TYPE_CHECKING:  # they bring an event loop along
    from streambatch.edge.feeds import Rows
    from streambatch.edge.files import Blocking

BLOCK_BYTES = 1 << 20  # of content
UNKNOWN_BYTES = 1 << 40
GUESSED_RATIO = 10  # content of a gzip file to its size
PACKED_BYTES = 128 << 10  # of a gzip file, read at once
ROWS = InputFile(name="rows", path="", size=0, mtime_ns=0, kind="rows")
_GZIP = 16 + zlib.MAX_WBITS


class Blocks(Protocol):
    """Where the blocks of one input come from. Both give the next one, b"" at the end, and raise SourceError."""

    def read(self) -> bytes: ...

    async def fetch(self, blocking: "Blocking") -> bytes: ...

    def close(self) -> None: ...


# -- gzip


class GzipBlocks:
    """The content of a gzip file of any number of members; memory is one block, however much a byte stands for."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._member = zlib.decompressobj(_GZIP)
        self._begun = True  # inside of a member
        self._packed = b""  # read, and not unpacked yet
        self._at = 0  # bytes read of the file
        self._content = 0

    def read(self) -> bytes:
        """Raises SourceError for a file that is cut short or damaged."""
        while True:
            if not self._packed and not self._load():
                return b""
            if not self._begun and not self._begin():
                continue
            block = self._unpack()
            if block:
                self._content += len(block)
                return block

    async def fetch(self, blocking: "Blocking") -> bytes:
        return await blocking(self.read)

    def close(self) -> None:
        os.close(self._fd)

    def _load(self) -> bool:
        try:
            self._packed = os.read(self._fd, PACKED_BYTES)
        except OSError as error:
            raise SourceError(f"{self._name} can't be read: {error.strerror}.", path=self._name) from error
        self._at += len(self._packed)
        if not self._packed and self._begun:
            raise self._damaged("ends in the middle")
        return bool(self._packed)

    def _begin(self) -> bool:
        """The next member; zeros between and behind members are padding."""
        self._packed = self._packed.lstrip(b"\0")
        if self._packed:
            if not GZIP_MAGIC.startswith(self._packed[:2]):
                raise self._damaged("goes on with something that is no gzip")
            self._member, self._begun = zlib.decompressobj(_GZIP), True
        return self._begun

    def _unpack(self) -> bytes:
        try:
            block = self._member.decompress(self._packed, BLOCK_BYTES)
        except zlib.error as error:
            raise self._damaged("is damaged") from error
        if self._member.eof:
            self._packed, self._begun = self._member.unused_data, False
        else:
            self._packed = self._member.unconsumed_tail
        return block

    def _damaged(self, how: str) -> SourceError:
        near = self._at - len(self._packed)
        return SourceError(
            f"{self._name} {how}, near byte {near} of the file and behind byte {self._content} of its content: restore it, then"
            " run the same command again.",
            path=self._name,
        )


# -- stdin

NAME = "stdin"


class StdinBlocks:
    """Standard input. A waiting reader can be cancelled: no thread is left behind in a read."""

    def __init__(self) -> None:
        if sys.stdin is None:  # then its number may be that of a file of ours
            raise SourceError("stdin is closed: pipe rows in, or name a file.", path=NAME)
        self._fd = 0
        self._at_start = True
        self._waits = True  # nobody can wait for a regular file, which is always ready
        with contextlib.suppress(OSError, AttributeError):  # only a pipe has a size, and only on Linux
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)

    def read(self) -> bytes:
        refuse_terminal()
        while (block := self._read_now()) is None:
            select.select([self._fd], [], [])
        return block

    async def fetch(self, blocking: "Blocking") -> bytes:
        import anyio

        refuse_terminal()
        while self._waits:
            try:
                await anyio.wait_readable(self._fd)
            except PermissionError:
                self._waits = False
            else:
                if (block := self._read_now()) is not None:
                    return block
        return await blocking(self.read)

    def _read_now(self) -> bytes | None:
        """What is there; None where nothing is, and its other end made it a pipe that says so."""
        try:
            block = os.read(self._fd, BLOCK_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise SourceError(f"stdin can't be read: {error.strerror}.", path=NAME) from error
        if self._at_start and block.startswith(GZIP_MAGIC):
            raise SourceError(
                "stdin is compressed: unpack it first (gunzip -c FILE | ...), or name the file.", path=NAME
            )
        self._at_start = False
        return block

    def close(self) -> None:
        """It is not ours to close."""


def at_terminal() -> bool:
    """Whether nobody pipes anything in."""
    return sys.stdin is not None and os.isatty(0)


def refuse_terminal() -> None:
    """Raises ConfigError."""
    if at_terminal():
        raise ConfigError("The input - is this terminal: pipe the rows in, or name a file.")


# -- any of them


class Serial:
    """One serial input and how far it was read: `position` is the offset in its content of the byte that comes next."""

    def __init__(self, file: InputFile, blocks: Blocks) -> None:
        self.file = file
        self.position = 0
        self.ended = False  # nothing more comes from its source
        self.last = b""  # the byte before `position`
        self._blocks = blocks
        self._kept: deque[bytes] = deque()
        self._failure: Exception | None = None

    def read(self) -> bytes:
        """The next block, b"" at the end. Raises SourceError, and from then on always that."""
        return self._passed(self._kept.popleft() if self._kept else self._load())

    async def fetch(self, blocking: "Blocking") -> bytes:
        """`read` for an event loop."""
        return self._passed(self._kept.popleft() if self._kept else await self._load_async(blocking))

    def cut(self, block: bytes, end: int) -> bytes:
        """Of the last block, which began before `end`, what lies before it; the rest comes again."""
        excess = self.position - end
        if excess > 0:
            self._kept.appendleft(block[-excess:])
            self.position, block = end, block[:-excess]
            self.last = block[-1:]
        return block

    @property
    def head(self) -> Sequence[bytes]:
        """What was looked at and is still to come."""
        return self._kept

    def look_ahead(self) -> None:
        """One block more in `head`, unless it has `ended`."""
        self._keep(self._load())

    async def look_ahead_async(self, blocking: "Blocking") -> None:
        """`look_ahead` for an event loop."""
        self._keep(await self._load_async(blocking))

    async def take(self, start: int, end: int, blocking: "Blocking") -> AsyncIterator[bytes]:
        """The content from `start`, which is ahead, to `end`; less where it ends before."""
        while self.position < end and (block := await self.fetch(blocking)):
            begin = self.position - len(block)
            if block := self.cut(block, end)[max(0, start - begin) :]:
                yield block

    def close(self) -> None:
        self._blocks.close()

    def _passed(self, block: bytes) -> bytes:
        self.position += len(block)
        self.last = block[-1:] if block else self.last
        return block

    def _keep(self, block: bytes) -> None:
        if block:
            self._kept.append(block)

    def _load(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            block = b"" if self.ended else self._blocks.read()
        except Exception as error:
            self._failure = error
            raise
        self.ended = not block
        return block

    async def _load_async(self, blocking: "Blocking") -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            block = b"" if self.ended else await self._blocks.fetch(blocking)
        except Exception as error:
            self._failure = error
            raise
        self.ended = not block
        return block


class Serials:
    """The serial inputs of one process, by their place among the inputs. A stream is opened once, whoever asks."""

    def __init__(self, rows: "Rows | None" = None, patient: "Callable[[], Blocking] | None" = None) -> None:
        self._rows = rows
        self._patient = patient
        self._open: dict[int, Serial] = {}

    def at(self, index: int, file: InputFile, start: int = 0) -> Serial:
        """The input, not read beyond `start`. Raises SourceError."""
        serial = self._open.get(index)
        if serial is not None and serial.position > start and not file.stream:
            serial.close()
            serial = None
        if serial is None:
            serial = self._open[index] = Serial(file, self._blocks(file))
        return serial

    def guess(self, index: int, file: InputFile) -> int:
        """About how many bytes an input has; a stream that was not seen as a whole may have any number."""
        serial = self._open.get(index)
        if file.stream:
            return sum(map(len, serial.head)) if serial is not None and serial.ended else UNKNOWN_BYTES
        return file.size * GUESSED_RATIO if file.serial else file.size

    def close(self) -> None:
        for serial in self._open.values():
            serial.close()
        self._open.clear()

    def _blocks(self, file: InputFile) -> Blocks:
        if file.kind == "stdin":
            return StdinBlocks()
        if file.kind == "rows":
            if self._rows is None:
                raise ConfigError("This run's rows came from a program: run it again with the same rows.")
            from streambatch.edge.feeds import row_blocks

            return row_blocks(self._rows, self._patient)
        return open_gzip(file)


def open_gzip(file: InputFile) -> GzipBlocks:
    """From its start. Raises SourceError."""
    try:
        return GzipBlocks(os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), file.name)
    except OSError as error:
        raise SourceError(f"{file.name} can't be read: {error.strerror}.", path=file.name) from error
