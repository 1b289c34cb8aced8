"""Files over a connection: the body of an upload, and the file of a download. Blocks, constant memory, no time-outs of its own.

Every file operation runs on a thread, and whoever is cancelled waits for it: no write lands after its caller is gone.
"""

import asyncio
import errno
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio

from streambatch.edge.files import disk
from streambatch.errors import StorageError

T = TypeVar("T")
BLOCK = 1 << 20
PIECE = 1 << 16  # what an upload hands over at once: progress is seen in steps of this size
WRITE = 1 << 19  # what a download collects before it is written


async def to_the_end(function: Callable[..., T], *args: object) -> T:
    """Run on a thread; come back only when it has returned, also when cancelled, by a scope or natively."""
    running = asyncio.get_running_loop().run_in_executor(None, function, *args)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        running.exception()  # its failure matters to nobody any more
        raise cancelled
    return running.result()


class Form:
    """The multipart body that uploads one file, built anew for each attempt. `waiting` is called with True as a piece is
    handed over, with False while the other side owes us nothing.

    The file is open between `open` and `close`. A failure to read it is kept in `failure`, because the transport hides it.
    """

    def __init__(self, path: str, name: str, waiting: Callable[[bool], None]) -> None:
        self._path = path
        self._waiting = waiting
        self._reading = threading.Lock()
        self._fd = -1
        self._size = 0
        self.failure: StorageError | None = None
        boundary = f"streambatch-{secrets.token_hex(16)}"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        quoted = "".join(f"%{ord(c):02X}" if c in '"\r\n' else c for c in name)
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    async def open(self) -> None:
        await to_the_end(self._open)

    @property
    def length(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    async def body(self) -> AsyncIterator[bytes | memoryview]:
        """Exactly `length` bytes: head, the file, tail."""
        yield self._head
        left = self._size
        while left:
            self._waiting(False)
            block = await to_the_end(self._read, min(BLOCK, left))
            left -= len(block)
            for at in range(0, len(block), PIECE):
                self._waiting(True)
                yield memoryview(block)[at : at + PIECE]
        self._waiting(True)
        yield self._tail
        self._waiting(False)

    def close(self) -> None:
        """Waits for a read that is under way, so that its descriptor is not given to another file meanwhile."""
        with self._reading:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> None:
        with disk(f"Reading {self._path}"):
            self._fd = os.open(self._path, os.O_RDONLY)
            self._size = os.fstat(self._fd).st_size

    def _read(self, size: int) -> bytes:
        try:
            with self._reading, disk(f"Reading {self._path}"):
                block = os.read(self._fd, size)
                if not block:
                    raise OSError(errno.EIO, "shorter than when it was opened")
                return block
        except StorageError as error:
            self.failure = error
            raise


class Sink:
    """The file that a download writes, from its start or on from where it was cut."""

    def __init__(self, path: str) -> None:
        self.received = 0
        self._path = path
        self._fd = -1
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    async def open(self) -> None:
        await to_the_end(self._on_disk, self._open)

    async def restart(self) -> None:
        """Forget everything that was received."""
        self._forget_waiting()
        if self.received:
            self.received = 0
            await to_the_end(self._on_disk, self._rewind)

    async def add(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= WRITE:
            await self.flush()

    async def flush(self) -> None:
        """Write what is collected; after it `received` bytes are in the file."""
        block = b"".join(self._waiting)
        self._forget_waiting()
        if block:
            await to_the_end(self._on_disk, self._write, block)
            self.received += len(block)

    async def sync(self) -> None:
        await self.flush()
        await to_the_end(self._on_disk, os.fsync, self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _forget_waiting(self) -> None:
        self._waiting = []
        self._waiting_bytes = 0

    def _on_disk(self, function: Callable[..., T], *args: object) -> T:
        with disk(f"Writing {self._path}"):
            return function(*args)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def _rewind(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[os.write(self._fd, view) :]
