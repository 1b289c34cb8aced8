"""The pool: left rows wait here and leave as remainder shards, many parents' rows in one batch.

A remainder is sealed when it fills a shard, when nothing older can add to it, or when it has waited long enough.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core import jobs
from streambatch.core.models import Shard
from streambatch.edge import spares, spooling
from streambatch.edge.journal import PoolEntry, PoolGroup, SegmentRow, Store
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
        self._held: set[tuple[str, int, int]] = set()  # due, but the spool has no room for them

    async def seal_due(self) -> bool:
        """Seal at most one remainder; whether one was sealed."""
        groups = await self._visit.journal.read(Store.pool)
        row = await self._visit.journal.read(Store.next_to_merge) if groups else None
        now = self._visit.world.clock.monotonic()
        keys = {_key(group): now for group in groups}
        self._waits_since = {key: self._waits_since.get(key, at) for key, at in keys.items()}
        self._held.clear()
        self._visit.spool.pool_held = False
        for group in groups:
            if (await self._due(group) or await self._awaited(group, row)) and await self._seal(group, row):
                return True
        return False

    def next_due_s(self) -> float:
        """Seconds until the oldest group has waited long enough, as far as known."""
        if not self._visit.may_create:
            return float("inf")  # nothing is sealed before; that rings the bell
        if self._spares.next_look_s() > 0:
            return max(0.05, self._spares.next_look_s())
        now = self._visit.world.clock.monotonic()
        waiting = (since for key, since in self._waits_since.items() if key not in self._held)
        ends = [since + self._visit.config.pool_wait_s for since in waiting]
        return max(0.05, min(ends, default=float("inf")) - now)

    async def _due(self, group: PoolGroup) -> bool:
        visit = self._visit
        if group.rows >= self._max_rows(group):
            return True
        since = self._waits_since[_key(group)]
        if visit.world.clock.monotonic() - since >= (0.0 if visit.once else visit.config.pool_wait_s):
            return True
        return visit.maker_done and not await visit.journal.read(Store.busy, group.model, group.generation)

    async def _awaited(self, group: PoolGroup, row: SegmentRow | None) -> bool:
        """Whether the spool holds others back, and the oldest unmerged segment waits for these rows alone."""
        visit = self._visit
        if not visit.spool.holds or row is None or group.first_segment > row.segment.index:
            return False
        return not await visit.journal.read(spooling.busy_with, row.segment.index)

    def _max_rows(self, group: PoolGroup) -> int:
        limit = self._visit.started.settings.limits.max_requests
        return min(limit, group.max_rows) if group.max_rows else limit

    async def _seal(self, group: PoolGroup, row: SegmentRow | None) -> bool:
        """Seal a remainder of a group. False while it is not known whether its rows, or some, were bought already, or while the
        spool has no room for it."""
        visit = self._visit
        if not visit.may_create or not await self._spares.ready():
            return False
        entries = self._fitting(group, await visit.journal.read(Store.pool_entries, group, PARENTS), row)
        if not entries:
            return False
        name = f"r{await visit.journal.read(spares.next_remainder):06d}"
        table, highest = await self._spares.table()
        job = msgspec.structs.replace(self._job(group, entries, name), scratch=table, spares=highest)
        visit.spool.promise(name, sum(_row_bytes(x.parent) * (x.rows - x.taken) for x in entries))
        made = await visit.world.executor.run(job)
        if not isinstance(made, jobs.RemainderMade):
            raise JournalError(f"Making remainder {name} gave a {type(made).__name__}.")
        stem = visit.files.stem(name)
        await visit.world.blocking(
            visit.files.settle_names, [f"{stem}{ending}" for ending in (".jsonl", ".ids", ".origins")]
        )
        await visit.spool.came(name, [name])
        sealed = _sealed(name, group, entries, made)
        if made.spare:
            spare = await visit.journal.read(spares.spare, made.spare)
            await visit.journal.append(*_claimed(sealed, made.spare, spare))
        else:
            await visit.journal.append(msgspec.structs.replace(sealed, seen=highest))
        visit.bell.ring()
        return True

    def _fitting(self, group: PoolGroup, entries: list[PoolEntry], row: SegmentRow | None) -> list[PoolEntry]:
        """All entries where the spool has room for a remainder of them; else those that the oldest unmerged segment waits for."""
        spool = self._visit.spool
        rows = min(group.rows, self._max_rows(group))
        if spool.cap is None or spool.room.fits(max(_row_bytes(entry.parent) * rows for entry in entries)):
            return entries
        oldest = -1 if row is None else row.segment.index
        in_turn = [entry for entry in entries if entry.parent.first_segment <= oldest]
        if not in_turn:
            spool.pool_held = True
            self._held.add(_key(group))
        return in_turn

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


def _key(group: PoolGroup) -> tuple[str, int, int]:
    return group.model, group.generation, group.max_rows


def _row_bytes(shard: Shard) -> int:
    return -(-shard.bytes // max(1, shard.rows))


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
    if spare.status == spares.GIVEN_UP:
        reason = "it neither ended in time nor let itself be cancelled"
        return [*events, e.GivenUp(made.name, find.batch_id, reason, "rebuy")]
    events.append(e.BatchFinished(made.name, find.batch_id, spare.status, spare.output_id, spare.error_id, 0, 0, 0))
    return events
