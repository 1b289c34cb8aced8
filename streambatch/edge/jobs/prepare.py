"""The job that makes one segment's shards: source rows in; shard files, ids sidecars and bad rows out.

Blocks of sound ready-made lines are written as they are; whatever is not that simple goes line by line. Which way a row
went can't be seen in the files.
"""

import msgspec
import xxhash

from streambatch.core.jobs import BadRow, Piece, Prepare, Prepared
from streambatch.core.lines import is_blank
from streambatch.core.ready import ready_blocks
from streambatch.core.rows import Request, Unfit, shown
from streambatch.core.seen import SeenIds
from streambatch.core.shaping import make_shaper
from streambatch.edge.jobs.appending import Appender, Files
from streambatch.edge.jobs.shards import ShardWriter
from streambatch.edge.sources import BLOCK_BYTES, Chunk, read_lines

NEWLINE = 0x0A
_encode = msgspec.json.Encoder().encode


def prepare(spec: Prepare, *, block_bytes: int = BLOCK_BYTES) -> Prepared:
    """Makes the files of a segment. Raises SourceError, OSError of the files it writes, ConfigError for a bad template."""
    with Files(mode=0o666 if spec.bare else 0o600) as files:
        segment = _Segment(spec, files)
        for piece in spec.pieces:
            if segment.take_piece(piece, block_bytes):
                break
        return segment.finish()


class _Segment:
    """One segment on its way: where each line goes, and the counts."""

    def __init__(self, spec: Prepare, files: Files) -> None:
        self._spec = spec
        self._files = files
        self._shaper = make_shaper(spec.shaping)
        self._hash = None if spec.bare else xxhash.xxh3_128()
        self._shards: list[ShardWriter] = []
        self._growing: dict[str, ShardWriter] = {}  # of each model
        self._last: ShardWriter | None = None  # the one that got the last row
        self._ids = SeenIds()  # of the whole segment
        self._bad_file: Appender | None = None
        self._first_bad: BadRow | None = None
        self._row = self._rows = self._bad = self._skipped = self._leading_bad = 0
        self._unread_bytes = sum(piece.end - piece.start for piece in spec.pieces)

    def finish(self) -> Prepared:
        """Complete all files."""
        shards = tuple(shard.finish(fsync=self._spec.fsync) for shard in self._shards)
        if self._bad_file is not None:
            self._bad_file.finish(fsync=self._spec.fsync)
        return Prepared(
            source_hash="" if self._hash is None else self._hash.hexdigest(),
            lines=self._row,
            rows=self._rows,
            bad=self._bad,
            skipped=self._skipped,
            leading_bad=self._leading_bad,
            first_bad=self._first_bad,
            shards=shards,
        )

    # -- lines in

    def take_piece(self, piece: Piece, block_bytes: int) -> bool:
        """All lines of a slice. True if the job is to stop at a bad row."""
        max_line_bytes = self._spec.limits.max_line_bytes
        chunks = read_lines(
            piece.path, piece.name, piece.start, piece.end, max_line_bytes=max_line_bytes, block_bytes=block_bytes
        )
        for chunk in chunks:
            if self._hash is not None:
                self._hash.update(chunk.data)
            self._take_chunk(piece, chunk)
            self._unread_bytes -= len(chunk.data)
            if self._spec.stop_on_bad and self._bad:
                return True
        return False

    def _take_chunk(self, piece: Piece, chunk: Chunk) -> None:
        """All lines at once if they are sound and alike, else one by one; a shard is begun by a single line."""
        data, lines = chunk.data, chunk.lines
        if self._last is None and lines:
            self._take_line(piece, lines[0])
            data, lines = data[len(lines[0]) :], lines[1:]
        if lines and not self._take_block(data, lines, ascii_only=chunk.ascii_only):
            for line in lines:
                self._take_line(piece, line)
        if chunk.long_blank:
            self._row += 1
        elif chunk.long_bytes:
            self._take_unfit(piece, self._too_long(chunk.long_bytes))

    def _take_block(self, data: memoryview, lines: list[bytes], *, ascii_only: bool) -> bool:
        shard, shaping, limits = self._last, self._spec.shaping, self._spec.limits
        if not shaping.ready_made or shard is None or not shard.has_room(len(lines), len(data)) or data[-1] != NEWLINE:
            return False
        if limits.max_line_bytes < len(data) and max(map(len, lines)) > limits.max_line_bytes:
            return False
        ids = ready_blocks(shaping.endpoint, shaping.column, shard.model).ids(lines, ascii_only=ascii_only)
        if ids is None or not self._ids.add_all(ids):
            return False
        shard.add_block(self._row, data, ids)
        self._row += len(lines)
        self._rows += len(lines)
        return True

    def _take_line(self, piece: Piece, line: bytes) -> None:
        if is_blank(line):
            self._row += 1
            return
        shaped = self._shape(line)
        if isinstance(shaped, Unfit):
            self._take_unfit(piece, shaped)
            return
        self._shard_for(shaped).add(self._row, shaped.custom_id, shaped.line, shaped.body_bytes)
        self._row += 1
        self._rows += 1

    def _shape(self, line: bytes) -> Request | Unfit:
        if len(line) > self._spec.limits.max_line_bytes:
            return self._too_long(len(line))
        shaped = self._shaper.shape(line, self._spec.first_ordinal + self._row)
        if isinstance(shaped, Unfit):
            return shaped
        if len(shaped.line) > self._spec.limits.max_bytes:
            reason = f"the request is {len(shaped.line)} bytes long, over the limit of {self._spec.limits.max_bytes}"
            return Unfit(reason, shaped.custom_id)
        if not self._ids.add(shaped.custom_id):
            return Unfit(f"custom_id {shown(shaped.custom_id)} is that of an earlier row too", shaped.custom_id)
        return shaped

    def _too_long(self, size: int) -> Unfit:
        return Unfit(f"the line is {size} bytes long, over the limit of {self._spec.limits.max_line_bytes}")

    # -- where rows go

    def _shard_for(self, request: Request) -> ShardWriter:
        shard = self._growing.get(request.model)
        if shard is None or not shard.has_room(1, len(request.line)):
            shard = self._new_shard(request.model)
            self._shards.append(shard)
            self._growing[request.model] = shard
        self._last = shard
        return shard

    def _new_shard(self, model: str) -> ShardWriter:
        spec, number = self._spec, len(self._shards)
        shard = ShardWriter(self._files, f"{spec.prefix}-{number}", spec.suffix, model, spec.limits, bare=spec.bare)
        if number == 0 and spec.shaping.ready_made:
            shard.reserve(self._unread_bytes)  # most segments have one model and no bad row
        return shard

    def _take_unfit(self, piece: Piece, unfit: Unfit) -> None:
        line = piece.first_line + self._row - piece.first_row + 1
        bad = BadRow(self._row, piece.name, line, unfit.reason, unfit.custom_id, unfit.skipped)
        self._row += 1
        self._rows += 1
        if self._bad_file is None:
            self._bad_file = self._files.create(f"{self._spec.prefix}.bad{self._spec.suffix}")
        self._bad_file.append(_encode(bad) + b"\n")
        if unfit.skipped:
            self._skipped += 1
            return
        self._bad += 1
        self._leading_bad += 0 if self._shards else 1
        self._first_bad = bad if self._first_bad is None else self._first_bad
