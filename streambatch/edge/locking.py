"""The lock on a run directory: one engine at a time, be it on a network file system. It ends with the process.

Knows nothing of what the directory holds.
"""

import contextlib
import errno
import fcntl
import os
import time

from streambatch.edge.files import RunFiles, disk
from streambatch.errors import ConfigError

TRIES = 3
PAUSE_S = 0.02  # who only looks whether a run is locked holds it for a moment
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
NONE_THERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """An exclusive lock on a run directory, held by an open file."""

    def __init__(self, files: RunFiles) -> None:
        self._path = files.folder / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Raises ConfigError where another process holds the run or nothing can be locked, StorageError for the disk."""
        with disk(f"Opening {self._path}"):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with disk(f"Locking {self._path}"):
                self._lock(fd)
                os.ftruncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _lock(self, fd: int) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NONE_THERE:
                    raise ConfigError(
                        f"The file system of {self._path.parent} can't lock files ({os.strerror(error.errno)}), so two engines"
                        " could work on one run; name a --run-dir on another disk."
                    ) from error
                if error.errno not in HELD:
                    raise
                if attempt == TRIES:
                    if _holder(fd) == str(os.getpid()):
                        raise ConfigError(
                            f"This process has the run in {self._path.parent} already, in another call; wait for that one's end."
                        ) from error
                    raise ConfigError(
                        f"Another process{_told(_holder(fd))} is running {self._path.parent}; wait for it, or stop it first."
                    ) from error
            time.sleep(PAUSE_S)
        return None

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _holder(fd: int) -> str:
    with contextlib.suppress(OSError):  # some file systems keep a locked file from being read
        return os.pread(fd, 64, 0).decode("ascii", "replace").strip()
    return ""


def _told(holder: str) -> str:
    return f" (process {holder})" if holder else ""


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Whether a process holds the run now. Asks with a shared lock: on NFS only those who may write get the other kind."""
    try:
        fd = os.open(os.path.join(folder, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in HELD
    finally:
        os.close(fd)
    return False
