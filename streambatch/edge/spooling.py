"""Measures the spool and the disk, and asks the journal who waits for room. Blocking; decides nothing."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from streambatch.core import lifecycle
from streambatch.core.models import ShardState
from streambatch.edge.files import ENDINGS, RunFiles, disk
from streambatch.edge.journal import Store

REQUESTS = (".jsonl", ".ids", ".origins", ".raw", ".bad")
RESULTS = tuple(ending for ending in ENDINGS if ending not in REQUESTS)
_MOVING = tuple(state.value for state in ShardState if state not in lifecycle.FINAL)


def free_bytes(folder: str) -> int:
    """What an ordinary user may still write on the file system of a folder. Raises StorageError."""
    with disk(f"Asking for the free space of {folder}"):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def elsewhere(output: str, folder: str) -> str | None:
    """The folder of an output that is on another file system than `folder`; None where it is on the same, or is stdout."""
    there = os.path.dirname(output)
    if output == "-" or not os.path.isdir(there):
        return None
    with disk(f"Looking at {there}"):
        return there if os.stat(there).st_dev != os.stat(folder).st_dev else None


def all_bytes(files: RunFiles) -> int:
    """Everything in the spool. Raises StorageError."""
    total = 0
    with disk(f"Measuring {files.spool}"), os.scandir(files.spool) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                total += entry.stat(follow_symlinks=False).st_size
    return total


def bytes_of(files: RunFiles, names: Iterable[str], endings: Sequence[str] = ENDINGS, suffix: str = "") -> int:
    """What files of shards or segments take. Raises StorageError."""
    total = 0
    with disk(f"Measuring {files.spool}"):
        for name in names:
            for ending in endings:
                with suppress(FileNotFoundError):  # few names have all of them
                    total += os.stat(f"{files.path(name, ending)}{suffix}").st_size
    return total


def busy_with(store: Store, segment: int) -> bool:
    """Whether a shard that touches a segment has not ended yet."""
    marks = ",".join("?" * len(_MOVING))
    query = f"""SELECT 1 FROM touches t JOIN shards s ON s.name = t.shard
                WHERE t.segment = ? AND s.state IN ({marks}) LIMIT 1"""
    return bool(store.ask(query, segment, *_MOVING))


def finished_since(store: Store) -> float | None:
    """When the first of the batches that wait to be fetched was seen to have finished, unix seconds; None where none waits."""
    query = """SELECT MIN(e.at) FROM shards s JOIN events e ON e.shard = s.name
               WHERE s.state = 'finished' AND e.kind = 'BatchFinished'"""
    [(at,)] = store.ask(query)
    return None if at is None else float(at)
