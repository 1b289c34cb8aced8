"""The pool: left rows wait here and leave as remainder shards, many parents' rows in one batch.

A remainder is sealed when it fills a shard, when nothing older can add to it, or when it has waited long enough.
"""

from streambatch.core import events as e
from streambatch.core import jobs
from streambatch.core.models import Shard
from streambatch.edge.journal import PoolEntry, PoolGroup, Store
from streambatch.engine.context import Visit
from streambatch.errors import JournalError

PARENTS = 1000  # of one remainder, at most: their files are read in one job


class Pool:
    """Seals remainders when they are due."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._waits_since: dict[tuple[str, int, int], float] = {}

    async def seal_due(self) -> bool:
        """Seal at most one remainder; whether one was sealed."""
        groups = await self._visit.journal.read(Store.pool)
        now = self._visit.world.clock.monotonic()
        keys = {(g.model, g.generation, g.max_rows): now for g in groups}
        self._waits_since = {key: self._waits_since.get(key, at) for key, at in keys.items()}
        for group in groups:
            if await self._due(group):
                await self._seal(group)
                return True
        return False

    def next_due_s(self) -> float:
        """Seconds until the oldest group has waited long enough, as far as known."""
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

    async def _seal(self, group: PoolGroup) -> None:
        visit = self._visit
        entries = await visit.journal.read(Store.pool_entries, group, PARENTS)
        count = (await visit.journal.read(Store.totals)).get("remainders", 0)
        name = f"r{count:06d}"
        made = await visit.world.executor.run(self._job(group, entries, name))
        if not isinstance(made, jobs.RemainderMade):
            raise JournalError(f"Making remainder {name} gave a {type(made).__name__}.")
        stem = visit.files.stem(name)
        await visit.world.blocking(
            visit.files.settle_names, [f"{stem}{ending}" for ending in (".jsonl", ".ids", ".origins")]
        )
        await visit.journal.append(_sealed(name, group, entries, made))
        visit.bell.ring()

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
