"""The ledger row by row: a list of the executed rows in one append-only file per batch, and the sums over them by run and row.

Summing keeps to bounded memory whatever the number of rows. Knows no database: it is told what is committed.
"""

import tempfile
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
from xxhash import xxh3_64_intdigest

IN_OUTPUT, IN_ERROR, NOWHERE = b"o", b"e", b"-"  # where the result of an executed row stands: how its line begins
BYTES_AT_ONCE = 4 << 20  # of lists, summed in memory
BLOCK_ROWS = 8_192


class Account(msgspec.Struct, frozen=True):
    """A batch in the ledger: its run, how much of its list is committed, and which of its files were delivered (0 or 1)."""

    run: str
    seq: int
    bytes: int
    output_delivered: int
    error_delivered: int


def names_path(folder: Path, seq: int) -> Path:
    """The list of a batch's executed rows: where the result stands, then the custom_id as JSON in ASCII; a line each."""
    return folder / f"{seq}.rows"


def sums(folder: Path, accounts: list[Account]) -> Generator[bytes, None, None]:
    """A JSON line for each row of each run: how often it was executed, its result delivered, its result lost. In no order."""
    total = sum(account.bytes for account in accounts)
    if total <= BYTES_AT_ONCE:
        yield from _summed(_entries(folder, accounts))
        return
    many = 1 << (2 * total // BYTES_AT_ONCE).bit_length()
    with tempfile.TemporaryDirectory(prefix="rows-", dir=folder) as scratch:
        buckets = [Path(scratch) / str(n) for n in range(many)]
        _spread(_entries(folder, accounts), buckets)
        for path in buckets:
            if path.exists():
                with path.open("rb") as bucket:
                    yield from _summed(bucket)


def _entries(folder: Path, accounts: Iterable[Account]) -> Iterator[bytes]:
    """`delivered lost "run" "custom_id"` of each execution, a line each; the first two are a digit."""
    for account in accounts:
        run = msgspec.json.encode(account.run)
        heads = {
            IN_OUTPUT: b"%d 0 %b " % (account.output_delivered, run),
            IN_ERROR: b"%d 0 %b " % (account.error_delivered, run),
            NOWHERE: b"0 1 %b " % run,
        }
        left = account.bytes
        with names_path(folder, account.seq).open("rb") as file:
            while left > 0:
                line = file.readline(left)
                left -= len(line)
                yield heads[line[:1]] + line[1:]


def _spread(entries: Iterator[bytes], buckets: list[Path]) -> None:
    """Each entry into the bucket of its run and row."""
    while block := list(islice(entries, BLOCK_ROWS)):
        lists: dict[int, list[bytes]] = {}
        for entry in block:
            lists.setdefault(xxh3_64_intdigest(entry[4:]) & (len(buckets) - 1), []).append(entry)
        for n, of_bucket in lists.items():
            with buckets[n].open("ab") as file:
                file.writelines(of_bucket)


def _summed(entries: Iterable[bytes]) -> Iterator[bytes]:
    counts: dict[bytes, list[int]] = {}
    for entry in entries:
        count = counts.setdefault(entry[4:-1], [0, 0, 0])
        count[0] += 1
        count[1] += entry[:1] == b"1"
        count[2] += entry[2:3] == b"1"
    for key, told in counts.items():
        run, name = key.split(b'" "', 1)
        executed, delivered, lost = told
        form = b'{"run":%b","custom_id":"%b,"executed":%d,"delivered":%d,"lost":%d}\n'
        yield form % (run, name, executed, delivered, lost)
