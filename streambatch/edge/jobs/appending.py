"""Files that a job makes: written in large pieces, hashed on the way, synced at the end.

Many may be open to their job at once; only so many hold a file descriptor, and all together hold so much memory.
"""

import contextlib
import os
from types import TracebackType
from typing import Self

import xxhash

OPEN_FILES = 48
HELD_BYTES = 2 << 20  # over all files of a job
PIECE_BYTES = 256 << 10  # of one file

_fallocate = getattr(os, "posix_fallocate", None)  # not on macOS


class Files:
    """All files that one job makes; removed again if the job fails. `mode` is theirs before the umask."""

    def __init__(self, *, mode: int = 0o600) -> None:
        self.mode = mode
        self._all: list[Appender] = []
        self._open: dict[Appender, None] = {}  # the longest open first
        self._held_bytes = 0

    def create(self, path: str, *, hashed: bool = False) -> "Appender":
        """A new, empty file in place of whatever `path` was."""
        file = Appender(self, path, hashed=hashed)
        self._all.append(file)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in list(self._open):
            file.close()
        if kind is not None:
            for file in self._all:
                with contextlib.suppress(OSError):  # the error that is on its way matters more
                    os.unlink(file.path)

    # -- for Appender

    def opening(self, file: "Appender") -> None:
        """Make room for one more descriptor."""
        if len(self._open) >= OPEN_FILES:
            next(iter(self._open)).close()
        self._open[file] = None

    def closed(self, file: "Appender") -> None:
        del self._open[file]

    def hold(self, more: int) -> None:
        """So many more bytes are kept by one of the files; above the bound all are written."""
        self._held_bytes += more
        if self._held_bytes > HELD_BYTES:
            for file in self._all:
                file.flush()


class Appender:
    """One file, from its first byte. `hashed` says whether its xxh3-128 is wanted."""

    def __init__(self, files: Files, path: str, *, hashed: bool) -> None:
        self.path = path
        self._files = files
        self._hash = xxhash.xxh3_128() if hashed else None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._written = 0
        self._fd = -1
        self._exists = False
        self._reserved = False

    @property
    def size(self) -> int:
        """How long the file is, with what is kept."""
        return self._written + self._held_bytes

    def reserve(self, size: int) -> None:
        """Say how long the file may become, which saves the file system work; `finish` gives back what was not used."""
        if _fallocate is not None and size:
            with contextlib.suppress(OSError):  # not every file system can; a full disk is said by the write
                _fallocate(self._open(), 0, size)
                self._reserved = True

    def append(self, data: bytes) -> None:
        """A small piece; kept until there is enough of it."""
        self._held.append(data)
        self._held_bytes += len(data)
        self._files.hold(len(data))
        if self._held_bytes >= PIECE_BYTES:
            self.flush()

    def append_block(self, data: bytes | memoryview) -> None:
        """A large piece; goes to the file at once."""
        self.flush()
        self._write(data)

    def flush(self) -> None:
        """Write what is kept."""
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._files.hold(-len(data))
            self._write(data)

    def finish(self, *, fsync: bool) -> str:
        """Complete the file. Returns its hash, or nothing."""
        self.flush()
        fd = self._open()
        if self._reserved:
            os.ftruncate(fd, self._written)
        if fsync:
            os.fsync(fd)
        self.close()
        return "" if self._hash is None else self._hash.hexdigest()

    def close(self) -> None:
        """Give the descriptor back; the file can go on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._files.closed(self)

    def _write(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)
        fd, rest = self._open(), memoryview(data)
        while rest:
            written = os.write(fd, rest)
            self._written += written
            rest = rest[written:]

    def _open(self) -> int:
        if self._fd < 0:
            self._files.opening(self)
            fresh = 0 if self._exists else os.O_CREAT | os.O_TRUNC
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | fresh, self._files.mode)
            self._exists = True
            os.lseek(self._fd, self._written, os.SEEK_SET)
        return self._fd
