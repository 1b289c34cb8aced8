"""The journal's SQLite file: shared with readers, kept to one process, or only read; and SQLite's errors as ours.

Knows no table.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from streambatch.errors import JournalError

PATIENCE_S = 10.0  # with a lock of another process
HINT = "Free space or mend the disk, then run the same command again."


class HeldError(JournalError):
    """An engine keeps the journal to itself: what it does is told by the snapshot alone."""


def private(path: str) -> None:
    """Only the user reads a journal; SQLite gives the files beside it the same mode."""
    if path != ":memory:":
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise JournalError(f"The journal {path} can't be opened: {error.strerror}.", hint=HINT) from error


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=PATIENCE_S)


def connect_shared(path: str) -> sqlite3.Connection | None:
    """None where the file system has no memory that processes share."""
    db = _connect(path)
    try:
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        db.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.OperationalError as error:
        db.close()
        if not error.sqlite_errorname.startswith(_UNSHARED):
            raise
        return None
    if mode in ("wal", "memory"):
        return db
    db.close()
    return None


def connect_alone(path: str) -> sqlite3.Connection:
    db = _connect(path)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA journal_mode=DELETE")
    return db


_UNSHARED = ("SQLITE_IOERR_SHM", "SQLITE_PROTOCOL", "SQLITE_CANTOPEN", "SQLITE_NOLFS")


@contextmanager
def mapped(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname.startswith("SQLITE_BUSY"):
            raise HeldError(f"The journal {path} is in use; look again in a moment.") from error
        raise JournalError(f"The journal {path} can't be opened: {error}.", hint=HINT) from error
    except sqlite3.DatabaseError as error:
        hint = "Give the run's id with --run-id and an empty run directory to find its batches again."
        raise JournalError(f"The journal {path} is damaged: {error}.", hint=hint, damaged=True) from error


def connect_to_read(path: str) -> sqlite3.Connection:
    """Where we may not write, SQLite can't make its shared memory: a journal that nobody writes is read as it lies."""
    address = f"file:{quote(os.fsencode(path))}?mode=ro"
    db = sqlite3.connect(address, uri=True, timeout=PATIENCE_S)
    try:
        db.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.OperationalError as error:
        db.close()
        if os.path.exists(f"{path}-wal") or error.sqlite_errorname.startswith("SQLITE_BUSY"):
            raise
        return sqlite3.connect(f"{address}&immutable=1", uri=True)
    return db
