"""The collector: admits finished batches, merges complete segments in turn, seals remainders, and knows when a visit is over."""

from streambatch.core import events as e
from streambatch.core import jobs, lifecycle, spooling
from streambatch.core.models import Shard, ShardState
from streambatch.edge import spares
from streambatch.edge import spooling as waiting
from streambatch.edge.files import segment_name
from streambatch.edge.journal import SegmentRow, Store
from streambatch.engine.context import Visit
from streambatch.engine.merging import merge_job, merged_ends
from streambatch.engine.pool import Pool
from streambatch.engine.scheduler import may_seal, queues
from streambatch.errors import JournalError

LONGEST_WAIT_S = 60.0  # without a ring: only time itself can have changed anything
COLLECTING = (ShardState.ADMITTED, ShardState.DOWNLOADED)
COLLECTED = (ShardState.FINISHED, *COLLECTING)
MOVING = (*lifecycle.IN_FLIGHT, *COLLECTED)
EXPIRING = "results wait at the service, which soon deletes them: raise --max-spool-bytes"


class Collector:
    """The only writer of the sinks."""

    def __init__(self, visit: Visit, pool: Pool) -> None:
        self._visit = visit
        self._pool = pool

    async def run(self) -> None:
        """Return when the visit is over: everything merged, or nothing left to do in it."""
        visit = self._visit
        await self._clean_last()
        while True:
            ticket = visit.bell.ticket()
            await self._admit()
            moved = await self._merge_next()
            patience_s = LONGEST_WAIT_S
            if visit.ended is None:
                moved |= await self._pool.seal_due()
                patience_s = min(patience_s, self._pool.next_due_s())
            if not moved:
                if await self._over():
                    return
                await visit.bell.wait(ticket, patience_s)

    # -- admission

    async def _admit(self) -> None:
        """Let finished batches in, oldest segment first: few at a time, however many finish at once."""
        visit = self._visit
        collecting = visit.drivers(lifecycle.Download, lifecycle.Settle)
        room = 0 if visit.held or not await visit.disk.look() else visit.capacity.collects(collecting)
        limit = room + collecting + len(visit.stuck)
        first = await visit.journal.read(Store.shards, COLLECTING, limit)  # they were let in before
        rest = await visit.journal.read(Store.shards, (ShardState.FINISHED,), limit)
        row = await visit.journal.read(Store.next_to_merge) if rest else None
        visit.spool.results_held = False
        for shard in (*first, *rest):
            if room and self._has_room(shard, row) and await self._admit_one(shard.name):
                room -= 1
        await self._warn_in_time()

    def _has_room(self, shard: Shard, row: SegmentRow | None) -> bool:
        """Whether the spool takes the results of a shard; nothing overtakes one that it does not take."""
        spool = self._visit.spool
        if shard.state is not ShardState.FINISHED or shard.name in self._visit.stuck:
            return True
        in_turn = row is not None and shard.first_segment <= row.segment.index
        if not spool.results_held and not spool.may_fetch(shard, in_turn=in_turn):
            spool.results_held = True
        return not spool.results_held

    async def _warn_in_time(self) -> None:
        """Results that wait at the service for room here are told of before the service deletes them."""
        visit = self._visit
        if not visit.spool.results_held or visit.note not in ("", EXPIRING):
            return
        since = await visit.journal.read(waiting.finished_since)
        visit.note = EXPIRING if spooling.expiring(since, visit.world.clock.wall()) else ""

    async def _admit_one(self, name: str) -> bool:
        shard = await self._visit.claim(name, *COLLECTING, ShardState.FINISHED)
        if shard is None:
            return False
        if shard.state is ShardState.FINISHED:
            event = e.Admitted(shard=shard.name)
            self._visit.spool.fetching(shard)
            await self._visit.journal.append(event)
            shard = lifecycle.apply(shard, event)
        self._visit.start_driver(shard)
        return True

    # -- merging

    async def _merge_next(self) -> bool:
        """Merge the oldest unmerged segment if every row of it has an outcome."""
        row = await self._visit.journal.read(Store.next_to_merge)
        if row is None or row.open_rows or not await self._visit.disk.look():
            return False
        await self._merge(row)
        return True

    async def _merge(self, row: SegmentRow) -> None:
        visit = self._visit
        job = await merge_job(visit, row)
        made = await visit.world.executor.run(job)
        if not isinstance(made, jobs.MergedFiles):
            raise JournalError(f"Merging segment {row.segment.index} gave a {type(made).__name__}.")
        ends = await merged_ends(visit.journal)
        output_end, errors_end = await visit.world.blocking(visit.files.append_sinks, job.out, job.err, *ends)
        merged = e.Merged(
            segment=row.segment.index,
            output_end=output_end,
            errors_end=errors_end,
            done=made.done,
            errors=made.errors,
            skipped=made.skipped,
            reasons=made.reasons,
        )
        await visit.journal.append(merged)
        visit.disk.merged_bytes = output_end + errors_end
        await self._clean(row.segment.index)

    async def _clean_last(self) -> None:
        """What was merged last may not have left the spool when an earlier visit ended."""
        last = await self._visit.journal.read(Store.last, e.Merged)
        if last is not None:
            await self._clean(last.segment)

    async def _clean(self, merged: int) -> None:
        """Merged segments leave the spool, and shards whose every segment is merged."""
        visit = self._visit
        if visit.config.keep_spool:
            return
        shards = await visit.journal.read(Store.swept, merged + 1)
        names = [segment_name(merged), *(shard.name for shard in shards)]
        size = await visit.spool.size_of(names)
        await visit.world.blocking(visit.files.remove, names)
        if size:
            visit.spool.gone(size)
            visit.bell.ring()
        if shards:
            await visit.journal.read(Store.mark_swept, [shard.name for shard in shards])

    # -- the end

    @property
    def _waiting_there(self) -> tuple[ShardState, ...]:
        """States whose shards a visit that ends leaves alone: the spool has no room for their results."""
        return (ShardState.FINISHED,) if self._visit.spool.results_held else ()

    async def _over(self) -> bool:
        visit = self._visit
        if visit.driving:
            return False
        if visit.ended is not None:
            return visit.disk.full or visit.ended.error is not None or await self._drained()
        if visit.maker_done and await visit.journal.read(Store.next_to_merge) is None:
            return True
        return visit.once and await self._nothing_now(await visit.journal.read(Store.states))

    async def _drained(self) -> bool:
        """After a pause or a cancel: whether what was in flight is here; who won't wait for the service needs only the rest."""
        visit = self._visit
        leaving = visit.once and not visit.cancelling
        wanted = tuple(state for state in (COLLECTED if leaving else MOVING) if state not in self._waiting_there)
        moving = await visit.journal.read(Store.shards, wanted, len(visit.stuck) + 1)
        if any(shard.name not in visit.stuck for shard in moving):
            return False
        return not (leaving and await self._any_young())

    async def _any_young(self) -> bool:
        submitted = await self._visit.journal.read(Store.shards, (ShardState.SUBMITTED,))
        return any(s.name not in self._visit.stuck and self._visit.young(str(s.batch_id)) for s in submitted)

    async def _nothing_now(self, states: dict[str, int]) -> bool:
        """With `--once`: whether all that is left is to wait for the service."""
        visit = self._visit
        idle = visit.maker_idle or visit.rows_are_late or visit.spool.maker_held
        if not (visit.may_create and idle) or await self._any_young():
            return False
        if any(states.get(s.value, 0) for s in COLLECTED if s not in self._waiting_there):
            return False
        if not (visit.maker_done or visit.rows_are_late or visit.spool.maker_held) and await may_seal(visit):
            return False
        known = await queues(visit)
        if visit.driving or visit.capacity.submits(known) or visit.capacity.uploads(known):
            return False
        row = await visit.journal.read(Store.next_to_merge)
        if visit.maker_done if row is None else not row.open_rows:
            return False  # the last rows came while we asked
        flying = sum(queue.in_flight for queue in known) + len(await visit.journal.read(spares.live))
        visit.end("in_flight", f"{flying} {'batch is' if flying == 1 else 'batches are'} in flight.", 5)
        return True
