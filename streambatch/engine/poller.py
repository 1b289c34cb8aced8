"""The poller: one for all batches. Reads list pages, looks up by id what no page shows, and journals what ended.

A terminal word in a list is confirmed by id before it counts. In a cancelling visit it also asks the service to cancel.
"""

from collections.abc import AsyncIterator

import anyio

from streambatch.core import events as e
from streambatch.core import scheduling, verdicts
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import BatchInfo
from streambatch.edge.journal import Store
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit
from streambatch.errors import ApiError

CONFIRMATIONS = 8  # look-ups at once
PATIENT_LOOKUPS = 5  # "not found" answers for a batch that we know, before it counts as gone


class Poller:
    """Keeps what is in flight in view."""

    def __init__(self, visit: Visit, adoption: Adoption) -> None:
        self._visit = visit
        self._adoption = adoption
        self._confirming = anyio.CapacityLimiter(CONFIRMATIONS)
        self._looked: dict[str, float] = {}  # batch id -> when it was last looked up by id
        self._missing: dict[str, int] = {}
        self._asked: set[str] = set()  # batches that this process asked to cancel

    async def run(self) -> None:
        visit = self._visit
        while True:
            flying = {str(s.batch_id): s for s in await visit.journal.read(Store.shards, (ShardState.SUBMITTED,))}
            self._forget(flying)
            if visit.cancelling:
                await self._cancel(flying)
            idle = visit.world.clock.monotonic() - visit.changed
            plan = scheduling.poll_plan(len(flying), self._fixed(), idle)
            if flying:
                await self._tick(flying, plan)
            await self._pause(plan.wait_s, bool(flying))

    def _fixed(self) -> float | None:
        config = self._visit.config
        if config.poll_interval_s is None and config.local:
            return 0.5  # the embedded server is near, and nobody counts its calls
        return config.poll_interval_s

    async def _pause(self, wait_s: float, flying: bool) -> None:
        """With batches in flight the pace is fixed; without, the first submit ends the wait."""
        visit = self._visit
        if flying and not visit.cancelling:
            await visit.cancel_bell.wait(visit.cancel_bell.ticket(), wait_s)
        elif flying:
            await visit.world.clock.sleep(wait_s)
        else:
            await visit.bell.wait(visit.bell.ticket(), wait_s)

    def _forget(self, flying: dict[str, Shard]) -> None:
        visit = self._visit
        now = visit.world.clock.monotonic()
        visit.since = {b: visit.since.get(b, now) for b in flying}
        visit.words = {b: word for b, word in visit.words.items() if b in flying}
        self._looked = {b: at for b, at in self._looked.items() if b in flying}

    # -- one tick

    async def _tick(self, flying: dict[str, Shard], plan: scheduling.PollPlan) -> None:
        unseen = dict(flying)
        async with anyio.create_task_group() as tasks:
            async for batch in self._pages(plan.pages):
                shard = unseen.pop(batch.id, None)
                if shard is None:
                    await self._adoption.consider(batch)
                elif batch.terminal:
                    tasks.start_soon(self._look_up, shard, batch.id)
                else:
                    self._note(batch)
            by_age = sorted(unseen, key=lambda b: self._looked.get(b, 0.0))
            for batch_id in by_age[: plan.lookups]:
                tasks.start_soon(self._look_up, unseen[batch_id], batch_id)
        await self._adoption.settle_found()

    async def _pages(self, pages: int) -> AsyncIterator[BatchInfo]:
        after: str | None = None
        for _ in range(pages):
            page = await self._visit.world.api.list_batches(after, 100)
            for batch in page.data:
                yield batch
            after = page.last_id
            if not page.has_more or after is None:
                return

    async def _look_up(self, shard: Shard, batch_id: str) -> None:
        async with self._confirming:
            self._looked[batch_id] = self._visit.world.clock.monotonic()
            try:
                batch = await self._visit.world.api.get_batch(batch_id)
            except ApiError as error:
                if error.status != 404:
                    raise
                self._not_found(shard, batch_id)
                return
        self._missing.pop(batch_id, None)
        self._note(batch)
        await self._judge(shard, batch)

    def _not_found(self, shard: Shard, batch_id: str) -> None:
        """A batch that we know can hide from one look-up, a young one for a grace; only one that hides for long is gone."""
        visit = self._visit
        self._missing[batch_id] = self._missing.get(batch_id, 0) + 1
        known_s = visit.world.clock.monotonic() - visit.since[batch_id]
        if self._missing[batch_id] >= PATIENT_LOOKUPS and known_s >= visit.config.adopt_grace_s:
            visit.stuck.add(shard.name)
            visit.end(
                "paused",
                f"The service no longer knows batch {batch_id}, which runs {shard.rows} rows of shard {shard.name}; they may have"
                " been paid, so nothing is bought again without your word.",
                4,
            )

    def _note(self, batch: BatchInfo) -> None:
        visit = self._visit
        if visit.words.get(batch.id) != batch.status:
            visit.words[batch.id] = batch.status
            visit.changed = visit.world.clock.monotonic()
            visit.bell.ring()

    async def _judge(self, shard: Shard, batch: BatchInfo) -> None:
        verdict = verdicts.of_batch(shard, batch)
        if verdict is None:
            return
        visit = self._visit
        await visit.journal.append(verdict.event)
        if isinstance(verdict.event, e.Refused):
            visit.refused(shard, verdict)
        else:
            visit.relieved(shard.model)
        visit.bell.ring()

    # -- cancelling

    async def _cancel(self, flying: dict[str, Shard]) -> None:
        """Ask the service to cancel each batch once; the intent is journaled first, so its rows keep their generation."""
        for batch_id, shard in flying.items():
            if batch_id in self._asked or shard.name in self._visit.stuck:
                continue
            if not shard.cancel_asked:
                await self._visit.journal.append(e.CancelAsked(shard=shard.name, batch_id=batch_id))
            try:
                await self._visit.world.api.cancel_batch(batch_id)
                self._asked.add(batch_id)
            except ApiError as error:
                if error.status != 404:  # else its look-ups tell, and the others are cancelled all the same
                    raise
