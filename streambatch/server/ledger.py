"""The ledger: the lines that were executed, as 8-byte hashes in one append-only file per batch, and how to count what came twice.

The witness of "paid once" is this file, never the engine. Counting keeps to bounded memory whatever the number of rows.
"""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

AT_ONCE = 100_000  # hashes counted in memory
BLOCK_ROWS = 8_192
HASH_BYTES = 8


def hashes_path(folder: Path, seq: int) -> Path:
    return folder / f"{seq}.hashes"


def count_again(folder: Path, executed: Iterable[tuple[int, int]]) -> int:
    """How many executions were of a line that had been executed before; `executed` is (batch, committed rows)."""
    parts = list(executed)
    total = sum(rows for _, rows in parts)
    if total <= AT_ONCE:
        return _repeated(_blocks(folder, parts), total)
    return _count_through_disk(folder, parts, total)


def _blocks(folder: Path, parts: Iterable[tuple[int, int]]) -> Iterator["array[int]"]:
    for seq, rows in parts:
        with hashes_path(folder, seq).open("rb") as file:
            for start in range(0, rows, BLOCK_ROWS):
                block = array("Q")
                block.frombytes(file.read(HASH_BYTES * min(BLOCK_ROWS, rows - start)))
                yield block


def _repeated(blocks: Iterable["array[int]"], total: int) -> int:
    seen: set[int] = set()
    for block in blocks:
        seen.update(block)
    return total - len(seen)


def _count_through_disk(folder: Path, parts: list[tuple[int, int]], total: int) -> int:
    """Spread the hashes over buckets on disk by their low bits, then count bucket by bucket."""
    many = 1 << (2 * total // AT_ONCE).bit_length()
    with tempfile.TemporaryDirectory(prefix="again-", dir=folder) as scratch:
        waiting = [array("Q") for _ in range(many)]
        for block in _blocks(folder, parts):
            for mark in block:
                waiting[mark & (many - 1)].append(mark)
            for n, bucket in enumerate(waiting):
                if len(bucket) >= BLOCK_ROWS // 4:
                    _spill(Path(scratch), n, bucket)
        again = 0
        for n, bucket in enumerate(waiting):
            _spill(Path(scratch), n, bucket)
            again += _count_bucket(Path(scratch) / str(n))
        return again


def _spill(scratch: Path, n: int, bucket: "array[int]") -> None:
    with (scratch / str(n)).open("ab") as file:
        bucket.tofile(file)
    del bucket[:]


def _count_bucket(path: Path) -> int:
    bucket = array("Q")
    bucket.frombytes(path.read_bytes())
    return len(bucket) - len(set(bucket))
