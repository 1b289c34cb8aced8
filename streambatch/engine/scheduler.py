"""The scheduler: starts uploads ahead of the submits, and submits while batches may fly.

Oldest segment first, nothing overtakes.
"""

from streambatch.core import events as e
from streambatch.core import lifecycle, scheduling
from streambatch.core.adoption import choose
from streambatch.core.models import Shard, ShardState
from streambatch.edge.journal import Store
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit

LOOK_PAST = 200  # shards of models that wait, looked past to find one of another model


class Scheduler:
    """Decides by counts from the journal, at every ring of the bell."""

    def __init__(self, visit: Visit, adoption: Adoption) -> None:
        self._visit = visit
        self._adoption = adoption

    async def run(self) -> None:
        visit = self._visit
        while True:
            ticket = visit.bell.ticket()
            if visit.ended is None:
                await self._uploads()
                await self._submits()
            await visit.bell.wait(ticket, self._patience())

    def _patience(self) -> float:
        """Until the first refused model may try again, at most."""
        now = self._visit.world.clock.monotonic()
        return max(0.05, min([600.0, *(b.until - now for b in self._visit.backoff.values() if b.until > now)]))

    async def _uploads(self) -> None:
        visit = self._visit
        if not visit.may_upload:
            return
        uploaded = await visit.journal.read(Store.count, ShardState.UPLOADED)
        uploading = visit.drivers(lifecycle.Upload)
        room = visit.capacity.uploads(uploaded, uploading)
        if room:
            for shard in await visit.journal.read(Store.shards, (ShardState.SEALED,), room + uploading):
                claimed = await visit.claim(shard.name, ShardState.SEALED) if room else None
                if claimed is not None:
                    visit.start_driver(claimed)
                    room -= 1

    async def _submits(self) -> None:
        visit = self._visit
        if not visit.may_create:
            return
        flying = await visit.journal.read(Store.count, *lifecycle.IN_FLIGHT)
        room = visit.capacity.submits(flying)
        if room:
            for shard in await visit.journal.read(Store.shards, (ShardState.UPLOADED,), room + LOOK_PAST):
                claimed = (
                    await visit.claim(shard.name, ShardState.UPLOADED) if room and not self._waits(shard) else None
                )
                if claimed is not None:
                    await self._intend(claimed)
                    room -= 1

    def _waits(self, shard: Shard) -> bool:
        backoff: scheduling.Backoff | None = self._visit.backoff.get(shard.model)
        return backoff is not None and backoff.until > self._visit.world.clock.monotonic()

    async def _intend(self, shard: Shard) -> None:
        """Adopt before create; intent before effect: the create number is journaled, and never used again."""
        visit = self._visit
        adopted = await self._adoption.of_fresh(shard)
        if adopted:
            await visit.journal.append(*adopted)
            visit.release(shard.name)
            return
        highest = choose(await visit.journal.read(Store.found, shard.name)).create
        event = e.Intended(shard=shard.name, create=max(shard.create, highest) + 1)
        await visit.journal.append(event)
        visit.start_driver(lifecycle.apply(shard, event))
