"""The scheduler: starts uploads ahead of the submits, and submits while batches may fly.

How many of which model is decided in `core.scheduling`; within a model the oldest segment goes first, nothing overtakes.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core import lifecycle, scheduling, verdicts
from streambatch.core.models import Shard, ShardState
from streambatch.edge import lookbacks
from streambatch.edge.journal import Store
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit
from streambatch.engine.errorwatch import ErrorWatch

RENEW_EVERY_S = 1800.0  # at most, a shard


class Scheduler:
    """Decides by counts from the journal, at every ring of the bell."""

    def __init__(self, visit: Visit, adoption: Adoption) -> None:
        self._visit = visit
        self._adoption = adoption
        self._errors = ErrorWatch(visit)
        self._renewed: dict[str, float] = {}  # shards whose file was uploaded again, and when

    async def run(self) -> None:
        visit = self._visit
        while True:
            ticket = visit.bell.ticket()
            await self._pause_for_refusals()
            await self._uploads()
            if await self._submits():
                await self._uploads()
            await visit.bell.wait(ticket, self._patience())

    def _patience(self) -> float:
        """Until the first refused model may try again, at most."""
        now = self._visit.world.clock.monotonic()
        return max(0.05, min([600.0, *(b.until - now for b in self._visit.backoff.values() if b.until > now)]))

    async def _pause_for_refusals(self) -> None:
        """A shard that found no room for a day, alone and as small as it gets, will find none without the user."""
        visit = self._visit
        for name, reason in list(visit.refused_alone.items()):
            del visit.refused_alone[name]
            shard, since = (
                await visit.journal.read(Store.shard, name),
                await visit.journal.read(lookbacks.refused_since, name),
            )
            if shard is not None and since is not None and visit.world.clock.wall() - since >= verdicts.REFUSED_DAY_S:
                visit.end("paused", verdicts.never_fits(shard, reason), 4)

    async def _uploads(self) -> None:
        visit = self._visit
        if not visit.may_upload or visit.ended is not None:
            return
        uploads = visit.capacity.uploads(await queues(visit))
        if not uploads or await self._errors.stops():
            return
        for model, room in uploads.items():
            for name in await self._oldest(ShardState.SEALED, model, room):
                claimed = await visit.claim(name, ShardState.SEALED) if room else None
                if claimed is not None:
                    visit.start_driver(claimed)
                    room -= 1

    async def _submits(self) -> int:
        """Create what may be created; how many."""
        visit = self._visit
        if not visit.may_create or visit.held or visit.ended is not None:
            return 0
        known = await queues(visit)
        in_flight = {queue.model: queue.in_flight for queue in known}
        submitted = 0
        for model, room in visit.capacity.submits(known, await self._errors.unjudged()).items():
            made = await self._submit(model, room, in_flight[model])
            backoff = scheduling.submitted(
                visit.backoff.get(model), in_flight[model] + made, visit.world.clock.monotonic()
            )
            if backoff is not None:
                visit.backoff[model] = backoff
            submitted += made
        return submitted

    async def _submit(self, model: str, room: int, in_flight: int) -> int:
        """Submit up to so many shards of a model, beside those in flight, until it is refused; how many."""
        visit = self._visit
        backoff, made = visit.backoff.get(model), 0
        for name in await self._oldest(ShardState.UPLOADED, model, room):
            if made == room or visit.backoff.get(model) is not backoff or await self._errors.stops():
                break  # asked before each: outcomes come in all the time
            claimed = await visit.claim(name, ShardState.UPLOADED)
            if claimed is not None:
                await self._intend(claimed, alone=not in_flight + made)
                made += 1
        return made

    async def _oldest(self, state: ShardState, model: str, room: int) -> list[str]:
        """Enough names to find so many that nobody holds."""
        visit = self._visit
        return await visit.journal.read(Store.oldest, state, model, room + len(visit.driving) + len(visit.stuck))

    async def _intend(self, shard: Shard, *, alone: bool) -> None:
        """Adopt before create; intent before effect: the create number is journaled, and never used again."""
        visit = self._visit
        event = await self._adoption.before_create(shard)
        if isinstance(event, e.Intended) and self._renews(shard):
            event = e.InputLost(shard=shard.name, reason="the file would expire before it is used")
        if isinstance(event, e.Intended):
            event = msgspec.structs.replace(event, alone=alone)
        await visit.journal.append(event)
        if isinstance(event, e.Intended):
            visit.start_driver(lifecycle.apply(shard, event))
        else:
            visit.release(shard.name)

    def _renews(self, shard: Shard) -> bool:
        """Whether a file must be uploaded again because it would expire soon; seldom, so that clocks that differ do no harm."""
        clock = self._visit.world.clock
        if shard.renew_at is None or clock.wall() < shard.renew_at:
            return False
        now = clock.monotonic()
        if now - self._renewed.get(shard.name, float("-inf")) < RENEW_EVERY_S:
            return False
        self._renewed[shard.name] = now
        return True


async def queues(visit: Visit) -> list[scheduling.Queue]:
    """What waits and what flies, by model, with what the service is believed to take; a refusal just heard is counted out."""
    uploading = [name for name, step in visit.driving.items() if step is lifecycle.Upload]
    return [_believed(visit, queue) for queue in await visit.journal.read(Store.queues, uploading)]


def _believed(visit: Visit, queue: scheduling.Queue) -> scheduling.Queue:
    backoff = visit.backoff.get(queue.model)
    if backoff is None:
        return queue
    visit.backoff[queue.model] = backoff = scheduling.counted(backoff, queue.held)
    allowed = scheduling.allowed(backoff, queue.in_flight, visit.world.clock.monotonic())
    return msgspec.structs.replace(queue, allowed=allowed)


async def may_seal(visit: Visit) -> bool:
    """Whether a fresh segment may be sealed now."""
    known = await queues(visit)
    several = any(queue.allowed is not None for queue in known) and await visit.journal.read(Store.several_models)
    return visit.capacity.may_seal(known, several=several)
