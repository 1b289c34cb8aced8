"""The files of one segment, read: its rows again, its bad rows, the outcomes of its shards and the results they point at.

Blocking; holds one line of each file at a time. What is made of them is its readers' business.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
import xxhash

from streambatch.core.jobs import BadRow, MergePart, Piece
from streambatch.core.models import Shard
from streambatch.core.settling import RECORD
from streambatch.edge.sidecars import read_ids, read_origins
from streambatch.edge.sources import read_lines
from streambatch.errors import JournalError

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.files import RunFiles

MAX_ROW_BYTES = 32 << 20  # of the user's rows that are given back


def part_of(files: "RunFiles", shard: Shard) -> MergePart:
    """A settled shard's place in the spool."""
    stem = files.stem(shard.name)
    return MergePart(
        stem=stem,
        segment=shard.segment,
        output=f"{stem}.output" if shard.output_id else None,
        error=f"{stem}.error" if shard.error_id else None,
    )


def read_outcome(part: MergePart) -> bytes:
    """The records of a settled shard. Raises JournalError where they are torn, OSError."""
    with open(f"{part.stem}.outcome", "rb") as file:
        outcome = file.read()
    if len(outcome) % RECORD.size:
        raise damaged(part)
    return outcome


def rows_of(part: MergePart, segment: int, lines: int, records: int) -> list[tuple[int, int]]:
    """(line of the part, row of the segment) of its rows there. Raises JournalError where the part's files don't fit."""
    if part.segment is not None:
        rows = read_ids(part.stem)[0]
        found, held = list(enumerate(rows)), len(rows)
    else:
        origins = read_origins(part.stem)
        rows = [row for where, row in origins if where == segment]
        found, held = [(place, row) for place, (where, row) in enumerate(origins) if where == segment], len(origins)
    if held != records or max(rows, default=0) >= max(lines, 1):
        raise damaged(part)
    return found


def damaged(part: MergePart) -> JournalError:
    return JournalError(f"{part.stem}.outcome does not fit its shard: the run directory is damaged.", damaged=True)


def bad_rows(path: str | None) -> dict[int, BadRow]:
    """Bad rows by their row in the segment."""
    if path is None:
        return {}
    decode = msgspec.json.Decoder(BadRow).decode
    with open(path, "rb") as file:
        return {bad.row: bad for bad in map(decode, file)}


def source_lines(pieces: Sequence[Piece], source_hash: xxhash.xxh3_128) -> Iterator[bytes | None]:
    """The user's lines again, hashed on the way; None for one that is too long to be held."""
    for piece in pieces:
        for chunk in read_lines(piece.path, piece.name, piece.start, piece.end, max_line_bytes=MAX_ROW_BYTES):
            source_hash.update(chunk.data)
            yield from chunk.lines
            if chunk.long_bytes:
                yield None


class Results:
    """The result files of a segment's parts, opened when they are first asked for."""

    def __init__(self, parts: Sequence[MergePart], stack: ExitStack) -> None:
        self._parts = parts
        self._stack = stack
        self._open: dict[tuple[int, int], int] = {}

    def fd(self, part: int, file: int) -> int:
        """The open file of a part: output, error or notes, by the index that a record has. Raises JournalError, OSError."""
        key = (part, file)
        if key not in self._open:
            place = self._parts[part]
            path = (place.output, place.error, f"{place.stem}.notes")[file]
            if path is None:
                raise JournalError(f"{place.stem}.outcome points into a result file that shard does not have.")
            self._open[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, self._open[key])
        return self._open[key]
