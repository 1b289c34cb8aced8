"""Spares: found batches that no shard runs. What they hold is read before anything is bought that they may have run.

Buys nothing. Where what a spare holds can't be told, the run pauses: its rows may have been paid.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import anyio

from streambatch.core import events as e
from streambatch.core import lifecycle, patience
from streambatch.core.models import Shard
from streambatch.core.wire import BatchInfo
from streambatch.edge import scratch, spares
from streambatch.edge.files import hash_file
from streambatch.edge.journal import Store
from streambatch.edge.sidecars import read_ids
from streambatch.engine.context import Visit
from streambatch.errors import ApiError, Paused

LOOK = "spares"  # what is claimed while they are looked at, so that a visit does not end meanwhile
PACE_S, SLOWEST_S = 5.0, 60.0  # between looks at those that have not ended: more and more seldom
LOOKS = 5  # at one that the service does not know, before it counts as gone
FETCHES = 3  # of an input file whose content is not what its batch was made of: a download may be spoilt on its way
PARTS = INPUT, OUTPUT, ERROR = ".input.part", ".output.part", ".error.part"  # names that the next visit sweeps away
UNREADABLE = (
    "Batch {batch} of this run was found, but the journal that says which rows of remainder {shard} it carries is lost, and {why}:"
    " its rows would be bought again. Nothing is bought without your word: --accept-gone rebuy."
)


class Spares:
    """Reads the spares of one visit."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._table = str(visit.files.spool / "spares.sqlite")
        self._again = float("-inf")  # when to look again
        self._looking = False
        self._pace_s = PACE_S
        self._leaving: dict[str, float] = {}  # batch id -> when we asked to cancel it
        self._displaced = 0  # spares up to this number were held against what is in flight
        self._missing: Counter[str] = Counter()
        self._lock = anyio.Lock()

    # -- before the first create

    async def read_all(self) -> None:
        """Wait until it is known what every batch of a lost remainder holds. Raises Paused."""
        clock = self._visit.world.clock
        while not await self._read():
            if self._visit.once:
                raise Paused(
                    "A batch of a lost remainder is in flight, and what it holds shows when it ends; come again later."
                )
            await clock.sleep(self._next_pace_s())

    async def ran(self, shard: Shard) -> bool:
        """Whether a spare has lines of a shard that is about to be created."""
        visit = self._visit
        highest = await visit.journal.read(spares.highest)
        above = await visit.journal.read(spares.seen, shard.name) if highest else 0
        if highest <= above:
            return False
        stem = visit.files.stem(shard.name)
        return await visit.world.blocking(self._has_any, highest, stem, above)

    def _has_any(self, highest: int, stem: str, above: int) -> bool:
        return scratch.has_any(self._table, highest, f"{stem}.jsonl", read_ids(stem)[1], above)

    # -- before rows of the pool are bought

    async def ready(self) -> bool:
        """Whether all spares are read and have ended; starts a look at those that are not, or have not."""
        visit = self._visit
        if not await visit.journal.read(spares.unread) and not await visit.journal.read(spares.live):
            return True
        if not self._looking and self.next_look_s() <= 0:
            self._looking = True
            visit.driving[LOOK] = lifecycle.Step
            visit.tasks.start_soon(self._look)
        return False

    def next_look_s(self) -> float:
        """Seconds until the next look at what has not ended."""
        return self._again - self._visit.world.clock.monotonic()

    async def table(self) -> tuple[str, int]:
        """The scratch table, and the highest number in it."""
        return self._table, await self._visit.journal.read(spares.highest)

    async def _look(self) -> None:
        visit = self._visit
        try:
            await self._read()
            for find in await visit.journal.read(spares.live):
                await self._see(find)
        except Paused as pause:
            visit.end("paused", str(pause), 4)
        finally:
            self._again = visit.world.clock.monotonic() + self._next_pace_s()
            self._looking = False
            visit.release(LOOK)

    async def _see(self, find: e.Found) -> None:
        """Note that it has ended, if it has."""
        batch = await self._batch(find)
        if batch is not None and batch.terminal:
            ended = e.SpareEnded(batch.id, batch.status, batch.output_file_id, batch.error_file_id)
            await self._visit.journal.append(ended)
        elif batch is not None and await self._left(batch):
            await self._visit.journal.append(e.SpareEnded(batch.id, spares.GIVEN_UP, None, None))

    async def _left(self, batch: BatchInfo) -> bool:
        """Whether nobody waits any more for one that has not ended: it is asked to cancel first, and given a grace."""
        visit = self._visit
        now = visit.world.clock.monotonic()
        if batch.id in self._leaving:
            return now - self._leaving[batch.id] >= visit.config.adopt_grace_s
        if patience.overdue(batch, visit.now_there(), visit.config.stuck_after_s, None):
            self._leaving[batch.id] = now
            with contextlib.suppress(ApiError):  # a service that does not even answer that is left all the same
                await visit.world.api.cancel_batch(batch.id)
        return False

    def _next_pace_s(self) -> float:
        pace_s = self._pace_s
        self._pace_s = min(SLOWEST_S, 1.1 * pace_s)
        return pace_s

    async def _batch(self, find: e.Found) -> BatchInfo | None:
        """It, as it is now; None while the service does not know it, which one look does not prove. Raises Paused."""
        try:
            return await self._visit.world.api.get_batch(find.batch_id)
        except ApiError as error:
            if error.status != 404:
                raise
            self._missing[find.batch_id] += 1
            if self._missing[find.batch_id] >= LOOKS:
                raise _unreadable(find, "the service does not know it any more") from error
            return None

    # -- before more is executed that was executed already

    async def displace(self) -> None:
        """Read what ended beside a batch that runs the same rows, and cancel that one: what it has not executed yet is here."""
        visit = self._visit
        if await visit.journal.read(spares.unread) or await visit.journal.read(spares.live):
            await self.ready()
        for number, shard in await visit.journal.read(spares.rivals, self._displaced):
            stem = visit.files.stem(shard.name)
            if not shard.cancel_asked and await visit.world.blocking(self._has_all, number, stem):
                await visit.journal.append(e.CancelAsked(shard=shard.name, batch_id=str(shard.batch_id)))
                with contextlib.suppress(ApiError):  # one that has ended meanwhile is read anyway
                    await visit.world.api.cancel_batch(str(shard.batch_id))
        self._displaced = await visit.journal.read(spares.highest_ended)

    def _has_all(self, number: int, stem: str) -> bool:
        return scratch.has_all(self._table, number, f"{stem}.jsonl", read_ids(stem)[1])

    # -- what they hold

    async def _read(self) -> bool:
        """Read what is not read yet. False where one has to end before it can be."""
        async with self._lock:  # numbers are given one by one
            known = [await self._read_one(find) for find in await self._visit.journal.read(spares.unread)]
        return all(known)

    async def _read_one(self, find: e.Found) -> bool:
        """Put what it holds into the table; False where it has to end first."""
        visit = self._visit
        missing = 0
        try:
            keys = await self._keys(find)
        except Paused:
            if visit.config.accept_gone != "rebuy":
                raise
            keys, missing = (), await self._counted(find)
        if keys is None:
            return False
        number = 1 + await visit.journal.read(spares.highest)
        rows = await visit.world.blocking(scratch.add, self._table, number, keys)
        await visit.world.blocking(scratch.forget, [visit.files.path("spare", ending) for ending in PARTS])
        await visit.journal.append(e.SpareRead(find.batch_id, number, rows, missing))
        return True

    async def _counted(self, find: e.Found) -> int:
        """How many rows may have been billed in a batch of which nobody can say which they are; 0 where nobody can say that."""
        try:
            batch = await self._visit.world.api.get_batch(find.batch_id)
        except ApiError:
            return 0
        return max(batch.total, batch.completed + batch.failed)

    async def _keys(self, find: e.Found) -> Iterable[bytes] | None:
        path = await self._lines(find)
        if path is not None:
            return map(scratch.line_key, scratch.lines_of(path))
        paths = await self._results(find)
        return None if paths is None else map(scratch.id_key, chain.from_iterable(map(scratch.ids_of, paths)))

    async def _lines(self, find: e.Found) -> str | None:
        """A file with its request lines: the shard's own, else the one at the service, if it is what the tag says."""
        visit = self._visit
        shard = await visit.journal.read(Store.shard, find.shard)
        if shard is not None and find.hash in ("", shard.hash):
            return visit.files.path(shard.name, ".jsonl")
        target = visit.files.path("spare", INPUT)
        for _ in range(FETCHES if find.file_id is not None else 0):
            if not await self._fetched(str(find.file_id), target):
                return None
            if await visit.world.blocking(hash_file, target) == find.hash:
                return target
        return None

    async def _fetched(self, file_id: str, target: str) -> bool:
        """Fetch a file of a batch; False where the service does not give it."""
        try:
            await self._visit.world.api.download(file_id, target)
        except ApiError as error:
            if error.status is None or not 400 <= error.status < 500 or error.retryable:
                raise
            return False
        return True

    async def _results(self, find: e.Found) -> list[str] | None:
        """Its result files, where its input file is gone; None while it has not ended."""
        batch = await self._batch(find)
        if batch is not None and not batch.terminal and await self._left(batch):
            raise _unreadable(
                find, "its input file is gone at the service, and it neither ends nor lets itself be cancelled"
            )
        if batch is None or not batch.terminal:
            return None
        shaping = self._visit.started.settings.shaping
        if shaping.ready_made or shaping.id_field is not None:
            raise _unreadable(find, "its input file is gone at the service, and ids of this input may come twice")
        files = {
            ending: file_id
            for ending, file_id in ((OUTPUT, batch.output_file_id), (ERROR, batch.error_file_id))
            if file_id
        }
        if batch.completed + batch.failed and not files:
            raise _unreadable(find, "the service has neither its input file nor its results any more")
        paths = {file_id: self._visit.files.path("spare", ending) for ending, file_id in files.items()}
        for file_id, path in paths.items():
            if not await self._fetched(file_id, path):
                raise _unreadable(find, "the service has neither its input file nor all of its results any more")
        return list(paths.values())


def _unreadable(find: e.Found, why: str) -> Paused:
    return Paused(UNREADABLE.format(batch=find.batch_id, shard=find.shard, why=why))
