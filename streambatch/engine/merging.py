"""The merge job of a segment; and what a visit that ends early leaves in the partials beyond what is merged: the rows of the oldest
unmerged segment, up to the first one that waits.

Nothing is journaled of those, so nobody believes them: the next visit cuts them off and merges their segment whole.
"""

import contextlib

import msgspec

from streambatch.core import events as e
from streambatch.core import jobs
from streambatch.edge import lookbacks
from streambatch.edge.files import segment_name
from streambatch.edge.journal import Journal, SegmentRow, Store
from streambatch.edge.segmentfiles import part_of
from streambatch.engine.context import Visit
from streambatch.errors import SourceError


async def merge_job(visit: Visit, row: SegmentRow) -> jobs.Merge:
    """What a worker must know to merge a segment."""
    segment, settings = row.segment, visit.started.settings
    name = segment_name(segment.index)
    parts = await visit.journal.read(Store.parts, segment.index)
    return jobs.Merge(
        segment=segment.index,
        pieces=visit.pieces(segment),
        first_ordinal=segment.first_ordinal,
        lines=segment.lines,
        rows=row.rows,
        source_hash=row.source_hash,
        parts=tuple(part_of(visit.files, shard) for shard in parts),
        bad=visit.files.path(name, ".bad") if row.bad or row.skipped else None,
        emit=settings.emit,
        column=settings.column,
        endpoint=settings.shaping.endpoint,
        id_field=settings.shaping.id_field,
        out=visit.files.path(name, f".merged{visit.files.suffix}"),
        err=visit.files.path(name, f".failed{visit.files.suffix}"),
    )


async def merged_ends(journal: Journal) -> tuple[int, int]:
    """Where the partials end, as far as they are believed: output, errors."""
    last = await journal.read(Store.last, e.Merged)
    return (0, 0) if last is None else (last.output_end, last.errors_end)


async def append_prefix(visit: Visit) -> None:
    """The last write of a visit that ended before its run, and not by an error. Raises JournalError, StorageError."""
    if visit.ended is None or visit.ended.error is not None or not await visit.disk.look():
        return
    row = await visit.journal.read(Store.next_to_merge)
    if row is None:
        return
    job = await merge_job(visit, row)
    if not job.parts and job.bad is None:
        return
    awaited = await visit.journal.read(lookbacks.awaited, row.segment.index)
    job = msgspec.structs.replace(job, awaited=tuple(visit.files.stem(shard.name) for shard in awaited))
    with contextlib.suppress(SourceError):  # an input that changed is told when the whole segment is merged
        await visit.world.executor.run(job)
        await visit.world.blocking(visit.files.append_sinks, job.out, job.err, *await merged_ends(visit.journal))
