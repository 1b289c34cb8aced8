"""Whether what a contender wrote is right, in words; an empty list if it is. Streams every file."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import xxhash

from benchmarks.data import Made

BLOCK = 1 << 20
ID = re.compile(rb'"custom_id": ?"([^"]*)"')
NAME = re.compile(rb'"name": ?"([^"]*)"')


def same_lines(paths: Iterable[Path], made: Made) -> list[str]:
    """The files, one after the other, are these lines in this order."""
    digest, size = xxhash.xxh3_128(), 0
    for path in paths:
        for block in _blocks(path):
            digest.update(block)
            size += len(block)
    if size != made.bytes:
        return [f"wrote {size} bytes; {made.bytes} are right"]
    return (
        []
        if digest.hexdigest() == made.digest
        else ["wrote as many bytes as are right, but others or in another order"]
    )


def within_limits(paths: Iterable[Path], max_rows: int, max_bytes: int) -> list[str]:
    """Each file holds at most so many lines and bytes."""
    sizes = [(path.name, sum(b.count(b"\n") for b in _blocks(path)), os.path.getsize(path)) for path in paths]
    return [
        f"{name} holds {rows} rows in {size} bytes" for name, rows, size in sizes if rows > max_rows or size > max_bytes
    ]


def in_order(source: Path, output: Path, key: re.Pattern[bytes]) -> list[str]:
    """The output has a line for each line of the input, of the same id, in its place."""
    if not output.exists():
        return [f"{output.name} is not there"]
    for row, (asked, answered) in enumerate(zip_longest(_keys(source, key), _keys(output, key))):
        if asked != answered:
            return [f"row {row} of {output.name} is {_shown(answered)}, not {_shown(asked)}"]
    return []


def _keys(path: Path, key: re.Pattern[bytes]) -> Iterator[bytes | None]:
    with path.open("rb", buffering=BLOCK) as file:
        for line in file:
            found = key.search(line)
            yield b"a line without an id" if found is None else found[1]


def _shown(key: bytes | None) -> str:
    return "missing" if key is None else key.decode(errors="replace")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            yield block
