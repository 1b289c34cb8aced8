"""The pool: left rows wait here and leave as remainder shards, many parents' rows in one batch.

A remainder is sealed when it fills a shard, when nothing older can add to it, or when it has waited long enough.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core import jobs
from streambatch.core.models import Shard
from streambatch.edge import spares
from streambatch.edge.journal import PoolEntry, PoolGroup, Store
from streambatch.engine.context import Visit
from streambatch.engine.spares import Spares
from streambatch.errors import JournalError

PARENTS = 1000  # of one remainder, at most: their files are read in one job


class Pool:
    """Seals remainders when they are due."""

    def __init__(self, visit: Visit, held: Spares) -> None:
        self._visit = visit
        self._spares = held
        self._waits_since: dict[tuple[str, int, int], float] = {}

    async def seal_due(self) -> bool:
        """Seal at most one remainder; whether one was sealed."""
        groups = await self._visit.journal.read(Store.pool)
        now = self._visit.world.clock.monotonic()
        keys = {(g.model, g.generation, g.max_rows): now for g in groups}
        self._waits_since = {key: self._waits_since.get(key, at) for key, at in keys.items()}
        for group in groups:
            if await self._due(group):
                return await self._seal(group)
        return False

    def next_due_s(self) -> float:
        """Seconds until the oldest group has waited long enough, as far as known."""
        if self._spares.next_look_s() > 0:
            return max(0.05, self._spares.next_look_s())
        now = self._visit.world.clock.monotonic()
        ends = [since + self._visit.config.pool_wait_s for since in self._waits_since.values()]
        return max(0.05, min(ends, default=float("inf")) - now)

    async def _due(self, group: PoolGroup) -> bool:
        visit = self._visit
        if group.rows >= self._max_rows(group):
            return True
        since = self._waits_since[(group.model, group.generation, group.max_rows)]
        if visit.world.clock.monotonic() - since >= (0.0 if visit.once else visit.config.pool_wait_s):
            return True
        return visit.maker_done and not await visit.journal.read(Store.busy, group.model, group.generation)

    def _max_rows(self, group: PoolGroup) -> int:
        limit = self._visit.started.settings.limits.max_requests
        return min(limit, group.max_rows) if group.max_rows else limit

    async def _seal(self, group: PoolGroup) -> bool:
        """Seal a remainder of a group. False while it is not known whether its rows, or some, were bought already."""
        visit = self._visit
        if not visit.may_create or not await self._spares.ready():
            return False
        entries = await visit.journal.read(Store.pool_entries, group, PARENTS)
        name = f"r{await visit.journal.read(spares.next_remainder):06d}"
        table, highest = await self._spares.table()
        job = msgspec.structs.replace(self._job(group, entries, name), scratch=table, spares=highest)
        made = await visit.world.executor.run(job)
        if not isinstance(made, jobs.RemainderMade):
            raise JournalError(f"Making remainder {name} gave a {type(made).__name__}.")
        stem = visit.files.stem(name)
        await visit.world.blocking(
            visit.files.settle_names, [f"{stem}{ending}" for ending in (".jsonl", ".ids", ".origins")]
        )
        sealed = _sealed(name, group, entries, made)
        if made.spare:
            spare = await visit.journal.read(spares.spare, made.spare)
            await visit.journal.append(*_claimed(sealed, made.spare, spare))
        else:
            await visit.journal.append(msgspec.structs.replace(sealed, seen=highest))
        visit.bell.ring()
        return True

    def _job(self, group: PoolGroup, entries: list[PoolEntry], name: str) -> jobs.Remainder:
        limits = self._visit.started.settings.limits
        return jobs.Remainder(
            sources=tuple(self._left(entry) for entry in entries),
            stem=self._visit.files.stem(name),
            model=group.model,
            max_rows=self._max_rows(group),
            max_bytes=limits.max_bytes,
            suffix=self._visit.files.suffix,
        )

    def _left(self, entry: PoolEntry) -> jobs.LeftRows:
        return jobs.LeftRows(
            stem=self._visit.files.stem(entry.parent.name),
            segment=entry.parent.segment,
            settled=entry.settled,
            generation=entry.generation,
            first=entry.taken,
            last=entry.rows,
            seen=entry.seen,
        )


def _sealed(name: str, group: PoolGroup, entries: list[PoolEntry], made: jobs.RemainderMade) -> e.RemainderSealed:
    if not made.shard.rows:
        raise JournalError(f"Remainder {name} found none of the {group.rows} rows that wait in the pool.")
    takes = tuple(
        e.PoolTake(entry.parent.name, entry.generation, entry.taken, entry.taken + taken)
        for entry, taken in zip(entries, made.taken, strict=True)
        if taken
    )
    shard = Shard(
        name=name,
        segment=None,
        first_segment=made.segments[0][0],
        last_segment=made.segments[-1][0],
        generation=group.generation,
        model=group.model,
        rows=made.shard.rows,
        bytes=made.shard.bytes,
        tokens=made.shard.tokens,
        hash=made.shard.hash,
    )
    return e.RemainderSealed(made=shard, takes=takes, segments=made.segments)


def _claimed(sealed: e.RemainderSealed, number: int, spare: spares.Spare) -> list[e.Event]:
    """Rows that a spare ran become a remainder which that batch ran: nothing is bought. What the batch counts is not of these
    rows alone, so it is left out."""
    find = spare.find
    generation = max(sealed.made.generation, find.generation)
    made = msgspec.structs.replace(sealed.made, generation=generation)
    events: list[e.Event] = [msgspec.structs.replace(sealed, made=made, seen=number)]
    events.append(e.Submitted(made.name, find.batch_id, find.file_id, find.create, found=True))
    if spare.cancelled:
        events.append(e.CancelAsked(made.name, find.batch_id))
    events.append(e.BatchFinished(made.name, find.batch_id, spare.status, spare.output_id, spare.error_id, 0, 0, 0))
    return events
