"""The sidecars of a shard, read: which rows it holds, by which ids, and (of a remainder) where they came from.

Formats are those of `core.jobs`: `.ids` per line row u32, length u32, id; `.origins` per line segment u32, row u32.
"""

import struct

from streambatch.errors import JournalError

_PAIR = struct.Struct("<II")


def read_ids(stem: str) -> tuple[list[int], list[bytes]]:
    """Rows in the segment, and ids as UTF-8, of the lines of a shard. Raises JournalError where the file ends too early."""
    with open(f"{stem}.ids", "rb") as file:
        data = file.read()
    found = _of_one_length(data)
    return _of_any_length(data, stem) if found is None else found


def _of_one_length(data: bytes) -> tuple[list[int], list[bytes]] | None:
    """At once, where all ids are of one length; None where they are not."""
    length = int.from_bytes(data[4:8], "little")
    stride = 8 + length
    lines, rest = divmod(len(data), stride)
    if rest or any(data[4 + k :: stride] != data[4 + k : 5 + k] * lines for k in range(4)):
        return None
    rows, _, ids = zip(*struct.iter_unpack(f"<II{length}s", data), strict=True) if lines else ((), (), ())
    return list(rows), list(ids)


def _of_any_length(data: bytes, stem: str) -> tuple[list[int], list[bytes]]:
    rows, ids = [], []
    at, end, unpack = 0, len(data), _PAIR.unpack_from
    while at + 8 <= end:
        row, length = unpack(data, at)
        at += 8 + length
        rows.append(row)
        ids.append(data[at - length : at])
    if at != end:
        raise JournalError(f"{stem}.ids ends in the middle of an id: the run directory is damaged.", damaged=True)
    return rows, ids


def read_origins(stem: str) -> list[tuple[int, int]]:
    """(segment, row in segment) of each line of a remainder. Raises JournalError where the file ends too early."""
    with open(f"{stem}.origins", "rb") as file:
        data = file.read()
    if len(data) % _PAIR.size:
        raise JournalError(
            f"{stem}.origins ends in the middle of an origin: the run directory is damaged.", damaged=True
        )
    return list(_PAIR.iter_unpack(data))
