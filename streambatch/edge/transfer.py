"""Files over a connection: the body of an upload, and the file of a download. Blocks, constant memory, no time-outs of its own.

Every file operation runs on a thread, and whoever is cancelled waits for it: no write lands after its caller is gone.
"""

import errno
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from streambatch.edge.files import disk, in_thread, private, to_the_end
from streambatch.errors import StorageError

T = TypeVar("T")
BLOCK = 1 << 20
PIECE = 1 << 16  # what an upload hands over at once: progress is seen in steps of this size
WRITE = 1 << 19  # what a download collects before it is written


class Form:
    """The multipart body that uploads one file, built anew for each attempt. `waiting` is called with True as a piece is
    handed over, with False while the other side owes us nothing.

    The file is open between `open` and `close`. A failure to read it is kept in `failure`, because the transport hides it.
    """

    def __init__(
        self, path: str, name: str, purpose: str, waiting: Callable[[bool], None], expire_s: int | None = None
    ) -> None:
        self._path = path
        self._waiting = waiting
        self._reading = threading.Lock()
        self._fd = -1
        self._size = 0
        self.failure: StorageError | None = None
        boundary = f"streambatch-{secrets.token_hex(16)}"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        quoted = "".join(f"%{ord(c):02X}" if c in '"\r\n' else c for c in name)
        fields = {"purpose": purpose}
        if expire_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expire_s)}
        self._head = (
            "".join(
                f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{text}\r\n'
                for field, text in fields.items()
            )
            + f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    async def open(self) -> None:
        await in_thread(self._open)

    @property
    def length(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    async def body(self) -> AsyncIterator[bytes | memoryview]:
        """Exactly `length` bytes: head, the file, tail."""
        yield self._head
        left = self._size
        while left:
            self._waiting(False)
            block = await in_thread(self._read, min(BLOCK, left))
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
        self._file: AsyncBufferedIOBase | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    async def open(self) -> None:
        opening = aiofiles.open(self._path, "wb", opener=private)
        self._file = await self._on_disk(opening)

    async def restart(self) -> None:
        """Forget everything that was received."""
        self._forget_waiting()
        if self.received:
            self.received = 0
            await self._on_disk(self._opened.seek(0))
            await self._on_disk(self._opened.truncate())

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
            await self._on_disk(self._write(block))
            self.received += len(block)

    async def sync(self) -> None:
        await self.flush()
        await self._on_disk(in_thread(os.fsync, self._opened.fileno()))

    async def aclose(self) -> None:
        if self._file is not None:
            await self._on_disk(self._file.close())
            self._file = None

    @property
    def _opened(self) -> AsyncBufferedIOBase:
        if self._file is None:
            raise StorageError(f"{self._path} is not open.")
        return self._file

    async def _write(self, block: bytes) -> None:
        await self._opened.write(block)
        await self._opened.flush()

    def _forget_waiting(self) -> None:
        self._waiting = []
        self._waiting_bytes = 0

    async def _on_disk(self, work: Awaitable[T]) -> T:
        with disk(f"Writing {self._path}"):
            return await to_the_end(work)
