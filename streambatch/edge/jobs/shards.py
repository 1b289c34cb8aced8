"""A shard file with its ids sidecar while it grows; limits are held against the very bytes written."""

import struct

from streambatch.core.jobs import ShardFile
from streambatch.core.models import ShardLimits
from streambatch.core.sharding import has_room
from streambatch.edge.jobs.appending import Files

BYTES_PER_TOKEN = 4
_pack_head = struct.Struct("<II").pack


class ShardWriter:
    """Requests for one model. `bare`: the file alone, no sidecar and no hash."""

    def __init__(
        self, files: Files, stem: str, suffix: str, model: str, limits: ShardLimits, *, bare: bool = False
    ) -> None:
        self.stem = stem
        self.model = model
        self.rows = 0
        self._limits = limits
        self._envelope_bytes = 0  # of its first line: what is no body
        self._file = files.create(f"{stem}.jsonl{suffix}", hashed=not bare)
        self._ids = None if bare else files.create(f"{stem}.ids{suffix}")

    def reserve(self, size: int) -> None:
        """Say how many bytes it will have at most."""
        self._file.reserve(size)

    def has_room(self, rows: int, size: int) -> bool:
        """Whether so many more lines, of so many bytes, are within the limits."""
        return has_room(self._limits, self.rows, self._file.size, rows, size)

    def add(self, row: int, custom_id: str, line: bytes, body_bytes: int) -> None:
        """One line; `row` is its row in the segment."""
        if not self.rows:
            self._envelope_bytes = len(line) - body_bytes
        self._file.append(line)
        self.rows += 1
        if self._ids is not None:
            self._ids.append(pack_ids(row, [custom_id]))

    def add_block(self, first_row: int, data: memoryview, ids: list[str]) -> None:
        """Many lines of consecutive rows, to a shard that has one already."""
        self._file.append_block(data)
        self.rows += len(ids)
        if self._ids is not None:
            self._ids.append(pack_ids(first_row, ids))

    def finish(self, *, fsync: bool) -> ShardFile:
        """Complete both files."""
        size = self._file.size
        digest = self._file.finish(fsync=fsync)
        if self._ids is not None:
            self._ids.finish(fsync=fsync)
        body_bytes = max(0, size - self.rows * self._envelope_bytes)
        tokens = -(-body_bytes // BYTES_PER_TOKEN)
        return ShardFile(stem=self.stem, model=self.model, rows=self.rows, bytes=size, tokens=tokens, hash=digest)


def pack_ids(first_row: int, ids: list[str]) -> bytes:
    """Records of the ids sidecar, for consecutive rows."""
    parts: list[bytes] = []
    for row, custom_id in enumerate(ids, first_row):
        encoded = custom_id.encode()
        parts += (_pack_head(row, len(encoded)), encoded)
    return b"".join(parts)
