"""The job that makes a shard of rows that are left: lines of earlier shards, as they were, with their origins.

Reads its parents from front to back and only as far as it must.
"""

import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

import msgspec

from streambatch.core.jobs import LeftRows, Remainder, RemainderMade
from streambatch.core.models import ShardLimits
from streambatch.edge.jobs.appending import Files
from streambatch.edge.jobs.shards import ShardWriter
from streambatch.edge.sources import read_lines
from streambatch.errors import SourceError, StorageError

LEFT = 2
_OUTCOME = struct.Struct("<BBHIQQ")
_PAIR = struct.Struct("<II")
RECORDS = 4096  # of outcomes, read at once


class _Left(msgspec.Struct, gc=False):
    line: bytes
    custom_id: str
    segment: int
    row: int


class _Envelope(msgspec.Struct, gc=False):
    body: msgspec.Raw


def make_remainder(spec: Remainder) -> RemainderMade:
    """Writes the shard. Raises StorageError for a file that is missing or not whole, OSError for what it writes."""
    limits = ShardLimits(max_requests=spec.max_rows, max_bytes=spec.max_bytes)
    segments: Counter[int] = Counter()
    with Files() as files, _spool_files():
        shard = ShardWriter(files, spec.stem, spec.suffix, spec.model, limits)
        origins = files.create(f"{spec.stem}.origins{spec.suffix}")
        taken = [0] * len(spec.sources)
        ids: set[str] = set()
        spare = 0
        for source, left, ran in _left_rows(spec):
            if left.custom_id in ids or (ids and not shard.has_room(1, len(left.line))):
                break
            ids.add(left.custom_id)
            body = msgspec.json.decode(left.line, type=_Envelope).body if not shard.rows else b""
            shard.add(left.row, left.custom_id, left.line, len(memoryview(body)))
            origins.append(_PAIR.pack(left.segment, left.row))
            segments[left.segment] += 1
            taken[source] += 1
            spare = ran
        origins.finish(fsync=spec.fsync)
        made = shard.finish(fsync=spec.fsync)
    return RemainderMade(made, tuple(taken), tuple(sorted(segments.items())), spare)


@contextmanager
def _spool_files() -> Iterator[None]:
    try:
        yield
    except SourceError as error:  # what is read here is the run's own
        raise StorageError(f"{error} The spool is damaged.") from error


def _left_rows(spec: Remainder) -> Iterator[tuple[int, _Left, int]]:
    """Rows with the index of their source and their spare, which is the same for all."""
    if not spec.spares:
        yield from ((index, left, 0) for index, source in enumerate(spec.sources) for left in _rows_of(source))
        return
    from streambatch.edge import scratch  # few runs have spares, and a worker holds only what it needs

    chosen: int | None = None
    with scratch.looked_up(spec.scratch, spec.spares) as lookup:
        for index, source in enumerate(spec.sources):
            for left in _rows_of(source):
                spare = lookup.first(left.line, left.custom_id.encode(), source.seen)
                chosen = spare if chosen is None else chosen
                if spare != chosen:
                    break
                yield index, left, spare


def _rows_of(source: LeftRows) -> Iterator[_Left]:
    numbers = _line_numbers(source)
    wanted = next(numbers, None)
    if wanted is None:
        return
    done = 0
    with _Sidecars(source) as sidecars:
        for lines in _lines(source.stem):
            while wanted < done + len(lines):
                line = lines[wanted - done]
                if not line.endswith(b"\n"):
                    raise StorageError(f"{source.stem}.jsonl is not whole: the spool is damaged.")
                yield sidecars.left(wanted, line)
                wanted = next(numbers, None)
                if wanted is None:
                    return
            done += len(lines)
    raise StorageError(f"{source.stem}.jsonl has {done} lines, but line {wanted + 1} is left: the spool is damaged.")


def _lines(stem: str) -> Iterator[list[bytes]]:
    path = f"{stem}.jsonl"
    for chunk in read_lines(path, path, 0, os.path.getsize(path), max_line_bytes=sys.maxsize):
        yield chunk.lines


def _line_numbers(source: LeftRows) -> Iterator[int]:
    """Which lines of the shard, from 0, are the left rows `first` <= k < `last` of this generation."""
    if not source.settled:
        yield from range(source.first, source.last)
        return
    k = 0
    for number, (kind, _, generation, *_) in enumerate(_outcomes(f"{source.stem}.outcome")):
        if k >= source.last:
            return
        if kind == LEFT and generation == source.generation:
            if k >= source.first:
                yield number
            k += 1
    if k < source.last:
        raise StorageError(f"{source.stem}.outcome has {k} left rows, not {source.last}: the spool is damaged.")


def _outcomes(path: str) -> Iterator[tuple[int, ...]]:
    with open(path, "rb", buffering=0) as file:
        while block := file.read(RECORDS * _OUTCOME.size):
            if len(block) % _OUTCOME.size:
                raise StorageError(f"{path} is not whole: the spool is damaged.")
            yield from _OUTCOME.iter_unpack(block)


class _Sidecars:
    """Ids and origins of a shard, read forwards."""

    def __init__(self, source: LeftRows) -> None:
        self._segment = source.segment
        self._ids = open(f"{source.stem}.ids", "rb")  # noqa: SIM115 - closed by __exit__
        self._origins = open(f"{source.stem}.origins", "rb") if source.segment is None else None  # noqa: SIM115
        self._next = 0

    def __enter__(self) -> "_Sidecars":
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        if self._origins is not None:
            self._origins.close()

    def left(self, number: int, line: bytes) -> _Left:
        """The left row at line `number`, which is not before the last one asked for."""
        while self._next < number:
            self._record()
        row, custom_id = self._record()
        if self._origins is None:
            assert self._segment is not None
            return _Left(line, custom_id, self._segment, row)
        self._origins.seek(number * _PAIR.size)
        return _Left(line, custom_id, *_pair(self._origins))

    def _record(self) -> tuple[int, str]:
        row, size = _pair(self._ids)
        self._next += 1
        return row, _exactly(self._ids, size).decode()


def _pair(file: BufferedReader) -> tuple[int, int]:
    first, second = _PAIR.unpack(_exactly(file, _PAIR.size))
    return first, second


def _exactly(file: BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise StorageError(f"{file.name} is not whole: the spool is damaged.")
    return data
