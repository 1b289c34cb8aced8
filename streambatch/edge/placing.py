"""Writing at given places of a file, all of it; and a sink that collects small pieces into large ones."""

import os

HELD_BYTES = 512 << 10


def pwrite_all(fd: int, data: bytes, at: int) -> None:
    """Write all of `data` at `at`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


class Sink:
    """Appends to a file from `end` on, in large pieces. `flush` before the file is used otherwise."""

    def __init__(self, fd: int, end: int = 0) -> None:
        self.fd = fd
        self.end = end  # with what is held
        self._held: list[bytes] = []
        self._held_bytes = 0

    def add(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        self.end += len(data)
        if self._held_bytes >= HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        pwrite_all(self.fd, b"".join(self._held), self.end - self._held_bytes)
        self._held.clear()
        self._held_bytes = 0
