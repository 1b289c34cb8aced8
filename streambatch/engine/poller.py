"""The poller: one for all batches. Reads list pages, looks up by id what no page shows, and journals what ended.

A terminal word in a list is confirmed by id before it counts. In a cancelling visit it also asks the service to cancel.
"""

import contextlib
from collections import Counter

import anyio

from streambatch.core import events as e
from streambatch.core import patience, scheduling, verdicts
from streambatch.core.adoption import Reading, stuck, turned
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import BatchInfo
from streambatch.edge import lookbacks, spares
from streambatch.edge.journal import Store
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit
from streambatch.errors import ApiError

CONFIRMATIONS = 8  # look-ups at once
LOSSES_PER_SHARD = 6  # in one visit, before it pauses
LOST_AGAIN = (
    "The service took the file of shard {shard} {times} times and could not find it each time; check that the key may read what it"
    " uploads (its project), then run the same command again."
)
LATE_S = 60.0  # between two looks at a batch that was given up
PATIENT_LOOKUPS = 5  # "not found" answers for a batch that we know, before it counts as gone


class Poller:
    """Keeps what is in flight in view."""

    def __init__(self, visit: Visit, adoption: Adoption) -> None:
        self._visit = visit
        self._adoption = adoption
        self._confirming = anyio.CapacityLimiter(CONFIRMATIONS)
        self._looked: dict[str, float] = {}  # batch id -> when it was last looked up by id
        self._missing: dict[str, int] = {}
        self._listed: frozenset[str] = frozenset()  # batches in flight that the list shows
        self._losses: Counter[str] = Counter()  # how often a shard's input file could not be found
        self._held: dict[str, float] = {}  # batch id -> until when such a verdict on it waits
        self._earlier: frozenset[str] = frozenset()  # batches that flew before this visit began
        self._late: dict[str, float] = {}  # batches that were given up, and when each was last looked at
        self._asked: set[str] = set()  # batches that this process asked to cancel

    async def run(self) -> None:
        visit = self._visit
        self._earlier = frozenset(
            str(s.batch_id) for s in await visit.journal.read(Store.shards, (ShardState.SUBMITTED,))
        )
        while True:
            flying = {str(s.batch_id): s for s in await visit.journal.read(Store.shards, (ShardState.SUBMITTED,))}
            self._forget(flying)
            if visit.cancelling:
                await self._cancel(flying)
            idle = visit.world.clock.monotonic() - visit.changed
            plan = scheduling.poll_plan(len(flying), self._fixed(), idle)
            if flying:
                await self._tick(flying, plan)
            await self._look_back()
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
        self._held = {b: until for b, until in self._held.items() if b in flying}
        visit.leaving = {b: at for b, at in visit.leaving.items() if b in flying}

    # -- one tick

    async def _tick(self, flying: dict[str, Shard], plan: scheduling.PollPlan) -> None:
        unseen = dict(flying)
        async with anyio.create_task_group() as tasks:
            after: str | None = None
            reading = Reading()
            for _ in range(plan.pages):
                page = await self._visit.world.api.list_batches(after, 100)
                if page.server_date is not None:
                    self._visit.date = page.server_date, self._visit.world.clock.monotonic()
                strangers = [*page.nameless]
                for batch in page.data:
                    shard = unseen.pop(batch.id, None)
                    if shard is None:
                        strangers.append(batch)
                    elif batch.terminal or await self._overdue(shard, batch):
                        tasks.start_soon(self._look_up, shard, batch.id)
                    else:
                        self._note(batch)
                self._listed = frozenset(flying.keys() - unseen.keys())
                await self._adoption.consider(strangers)
                if not page.has_more or page.last_id is None or stuck(reading, page):
                    break
                reading, after = turned(reading, page), page.last_id
            by_age = sorted(unseen, key=lambda b: self._looked.get(b, 0.0))
            for batch_id in by_age[: plan.lookups]:
                tasks.start_soon(self._look_up, unseen[batch_id], batch_id)
        await self._adoption.settle_found()

    async def _look_back(self) -> None:
        """A batch that was given up may end after all: as long as its rows wait for an outcome it is looked at now and then."""
        visit = self._visit
        now = visit.world.clock.monotonic()
        for batch_id in await visit.journal.read(spares.given_up):
            if now - self._late.get(batch_id, float("-inf")) >= LATE_S:
                self._late[batch_id] = now
                with contextlib.suppress(ApiError):  # it is not waited for
                    await self._adoption.consider([await visit.world.api.get_batch(batch_id)])
                    await self._adoption.settle_found()

    async def _look_up(self, shard: Shard, batch_id: str) -> None:
        if self._held.get(batch_id, float("-inf")) > self._visit.world.clock.monotonic():
            return
        async with self._confirming:
            self._looked[batch_id] = self._visit.world.clock.monotonic()
            try:
                batch = await self._visit.world.api.get_batch(batch_id)
            except ApiError as error:
                if error.status != 404:
                    raise
                await self._not_found(shard, batch_id)
                return
        self._note(batch)
        await self._judge(shard, batch)

    async def _not_found(self, shard: Shard, batch_id: str) -> None:
        """A batch that we know can hide from one look-up, a young one for a grace; only one that hides for long is gone."""
        visit = self._visit
        self._missing[batch_id] = self._missing.get(batch_id, 0) + 1
        known_s = visit.world.clock.monotonic() - visit.since[batch_id]
        if self._missing[batch_id] < PATIENT_LOOKUPS or known_s < visit.config.adopt_grace_s:
            return
        word = visit.config.accept_gone
        if word is not None:
            reason = "the service no longer knows it"
            await visit.journal.append(e.GivenUp(shard=shard.name, batch_id=batch_id, reason=reason, gone=word))
            visit.bell.ring()
            return
        visit.stuck.add(shard.name)
        misses = PATIENT_LOOKUPS - 1  # they are looked up in turn
        known = any(b in self._listed or self._missing.get(b, 0) < misses for b in visit.since)
        strange = 0 if known else len(visit.since)
        visit.end("paused", verdicts.forgotten(shard, visit.started.settings.base_url, strange), 4)

    def _note(self, batch: BatchInfo) -> None:
        visit = self._visit
        self._missing.pop(batch.id, None)
        if visit.words.get(batch.id) != batch.status:
            visit.words[batch.id] = batch.status
            visit.changed = visit.world.clock.monotonic()
            visit.bell.ring()

    async def _judge(self, shard: Shard, batch: BatchInfo) -> None:
        verdict = verdicts.of_batch(shard, batch)
        if verdict is None and await self._overdue(shard, batch):
            await self._leave(shard, batch.id)
        if verdict is None or (isinstance(verdict.event, e.InputLost) and self._holds(shard, batch.id)):
            return
        visit = self._visit
        await visit.journal.append(verdict.event)
        if isinstance(verdict.event, e.Refused):
            mended = batch.id in self._earlier and (verdict.pause is not None or verdict.halt is not None)
            if not mended:  # by the user, maybe, since what it was refused for: the next create tells
                visit.refused(shard, verdict)
        elif not isinstance(verdict.event, e.InputLost):
            visit.relieved(shard.model)
        visit.bell.ring()

    def _holds(self, shard: Shard, batch_id: str) -> bool:
        """A file that the service can't find is uploaded again at once, then after longer and longer waits, and not for ever."""
        visit = self._visit
        if visit.ended is not None:
            return False  # who comes back sends it again
        if batch_id not in self._held:
            self._losses[shard.name] += 1
            self._held[batch_id] = visit.world.clock.monotonic() + patience.lost_wait_s(self._losses[shard.name])
        if self._losses[shard.name] > LOSSES_PER_SHARD:
            visit.end("paused", LOST_AGAIN.format(shard=shard.name, times=self._losses[shard.name]), 4)
        return self._held[batch_id] > visit.world.clock.monotonic()

    # -- what nobody waits for any more

    async def _overdue(self, shard: Shard, batch: BatchInfo) -> bool:
        """By the service's clock."""
        visit = self._visit
        clock, asked_s = visit.world.clock, None
        if shard.cancel_asked and (visit.cancelling or batch.status == "cancelling"):
            asked = await visit.journal.read(lookbacks.cancel_asked, shard.name)
            asked_s = None if asked is None else clock.wall() - asked
        return patience.overdue(batch, visit.now_there(), visit.config.stuck_after_s, asked_s)

    async def _leave(self, shard: Shard, batch_id: str) -> None:
        """Ask to cancel it, so that it may show what it has; a grace later its rows are bought again, as possibly billed."""
        visit = self._visit
        now = visit.world.clock.monotonic()
        if batch_id not in visit.leaving:
            visit.leaving[batch_id] = now
            with contextlib.suppress(ApiError):  # a service that does not even answer that is left all the same
                await visit.world.api.cancel_batch(batch_id)
        elif now - visit.leaving[batch_id] >= visit.config.adopt_grace_s:
            reason = "it neither ended in time nor let itself be cancelled"
            await visit.journal.append(e.GivenUp(shard=shard.name, batch_id=batch_id, reason=reason, gone="rebuy"))
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
