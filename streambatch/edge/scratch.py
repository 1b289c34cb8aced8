"""The scratch table: which request lines the spares of a run have. One SQLite file beside the spool; a row per line, on disk only.

A line is known by its xxh3-128, or, where the file that had it is gone, by that of its custom_id. It can be made again as long
as the service has the files, but never silently: a number that it should have and has not is damage.
"""

import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from urllib.parse import quote

import xxhash

from streambatch.core.results import read_ends, read_head, read_line
from streambatch.edge import resultfiles
from streambatch.edge.sources import read_lines
from streambatch.errors import StorageError

SCHEMA = """
CREATE TABLE IF NOT EXISTS lines(key BLOB, number INTEGER, PRIMARY KEY(key, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spares(number INTEGER PRIMARY KEY, count INTEGER NOT NULL);
"""


def line_key(line: bytes) -> bytes:
    """By what a request line is known, newline included."""
    return xxhash.xxh3_128_digest(line)


def id_key(custom_id: bytes) -> bytes:
    """By what a request is known of which only the custom_id is left; never the key of a line."""
    return xxhash.xxh3_128_digest(b"\0" + custom_id)


def lines_of(path: str) -> Iterator[bytes]:
    """The lines of one of our shard files."""
    for chunk in read_lines(path, path, 0, os.path.getsize(path), max_line_bytes=sys.maxsize):
        yield from chunk.lines


def ids_of(path: str) -> Iterator[bytes]:
    """The ids in a result file."""
    with closing(FileIO(path)) as source:
        for piece in resultfiles.read_lines(source.fileno()):
            match piece:
                case resultfiles.Lines(lines=lines):
                    verdicts = [read_line(line) for line in lines]
                case resultfiles.LongLine(head=head, tail=tail):
                    verdicts = [read_ends(head, tail)]
                case resultfiles.LastLine(line=line, head=head, tail=tail):
                    verdicts = [read_head(head, tail) if line is None else read_line(line)]
            yield from (verdict.custom_id.encode() for verdict in verdicts if verdict is not None)


def add(path: str, number: int, keys: Iterable[bytes]) -> int:
    """Store what a spare has, durably; how many lines. What a process that died wrote under its number goes."""
    with _open(path, "rwc") as db:
        db.executescript(SCHEMA)
        db.execute("PRAGMA synchronous=EXTRA")  # with FULL a power loss may bring back the state before
        with db:
            if db.execute("DELETE FROM spares WHERE number >= ?", (number,)).rowcount:
                db.execute("DELETE FROM lines WHERE number >= ?", (number,))
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO lines VALUES(?,?)", ((key, number) for key in keys))
            count = db.total_changes - before
            db.execute("INSERT INTO spares VALUES(?,?)", (number, count))
    return count


def forget(paths: Iterable[str]) -> None:
    """Remove files that were read once; not every spare needs all of them."""
    for path in paths:
        with suppress(FileNotFoundError):  # see above
            os.unlink(path)


class Lookup:
    """Asks the table for lines. Raises StorageError where it does not have all spares up to `highest`."""

    def __init__(self, db: sqlite3.Connection, path: str, highest: int) -> None:
        self._db = db
        if db.execute("SELECT COUNT(*) FROM spares WHERE number <= ?", (highest,)).fetchone()[0] < highest:
            raise _damaged(path)

    def first(self, line: bytes, custom_id: bytes, above: int) -> int:
        """The lowest number above one whose spare has this line; 0: none has."""
        query = "SELECT MIN(number) FROM lines WHERE key IN (?, ?) AND number > ?"
        found = self._db.execute(query, (line_key(line), id_key(custom_id), above)).fetchone()[0]
        return 0 if found is None else int(found)


@contextmanager
def looked_up(path: str, highest: int) -> Iterator[Lookup]:
    """The table, to be read. Raises StorageError."""
    if not os.path.exists(path):
        raise _damaged(path)
    with _open(path, "ro") as db:
        yield Lookup(db, path, highest)


def has_any(path: str, highest: int, shard_file: str, ids: Iterable[bytes], above: int) -> bool:
    """Whether a spare above a number has any line of a shard."""
    with looked_up(path, highest) as lookup:
        return any(
            lookup.first(line, custom_id, above) for line, custom_id in zip(lines_of(shard_file), ids, strict=True)
        )


def has_all(path: str, number: int, shard_file: str, ids: Iterable[bytes]) -> bool:
    """Whether one spare has every line of a shard."""
    with looked_up(path, number) as lookup:
        return all(
            lookup.first(line, i, number - 1) == number for line, i in zip(lines_of(shard_file), ids, strict=True)
        )


@contextmanager
def _open(path: str, mode: str) -> Iterator[sqlite3.Connection]:
    try:
        if mode == "rwc":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True, timeout=10)) as db:
            yield db
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"{path} can't be used: {error}. Free space or mend the disk, then run the same command again."
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path) from error


def _damaged(path: str) -> StorageError:
    return StorageError(
        f"{path} is gone or damaged, and with it which rows were bought already: name an empty --run-dir, and this run's id with"
        " --run-id, to find its batches again."
    )
