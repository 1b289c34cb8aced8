"""Many files, of which only so many are open at a time."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self, overload

OPEN_FILES = 128


class OpenFiles(Sequence[int]):
    """File descriptors for reading, by index; one that was not used for long is closed and opened again when it is."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        fd = self._open.get(index)
        if fd is None:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            fd = self._open[index] = os.open(self._paths[index], os.O_RDONLY | os.O_CLOEXEC)
        return fd

    def all_or_self(self) -> Sequence[int]:
        """All at once where they may be open together, which is quicker to look up."""
        return [*self] if len(self) <= OPEN_FILES else self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for fd in self._open.values():
            os.close(fd)
