"""Finding batches that the journal does not know, and proving that a doubted create took no effect.

One sweep of the list serves everyone who waits for one. Buys nothing and cancels nothing.
"""

from collections.abc import Sequence

import anyio

from streambatch.core import adoption as choice
from streambatch.core import events as e
from streambatch.core import tags
from streambatch.core.lifecycle import Create
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import BatchInfo
from streambatch.edge.journal import Store
from streambatch.engine.context import Visit
from streambatch.errors import ConfigError, Paused

MARGIN_S = 60.0  # between the service's clocks of a list and of a file
ADOPTABLE = (ShardState.SEALED, ShardState.UPLOADED, ShardState.DOUBTED)
UNKNOWABLE = (
    "The service's list shows batches without metadata and without input file, so a batch that hides can't be told from one that"
    " was never created; nothing more is bought."
)
NAMELESS = (
    "The service's list shows a batch of this run without saying its id, so what it runs can't be collected; nothing more is"
    " bought."
)
UNREADABLE = (
    "The service's list does not go on behind its first pages, so a batch further back can't be told from one that was never"
    " created; nothing more is bought."
)
LOST_REMAINDER = (
    "A batch of remainder {name} was found, but the journal that says which rows it carries is lost; buying its rows"
    " again needs another --run-id."
)


class Adoption:
    """Sweeps the list for this run's batches. Times are monotonic seconds of this process."""

    def __init__(self, visit: Visit, cut: str) -> None:
        self._visit = visit
        self._cut = cut
        self._lock = anyio.Lock()
        self._swept_from = float("-inf")  # when the last whole sweep began
        self._horizon: float | None = float("inf")  # how far back it read (None: to the end)
        self._whole = True  # whether it could be read that far
        self._unknowable = False
        self._nameless = False

    # -- before anything is bought

    async def first_sweep(self) -> None:
        """Open the gates. A run that may have batches which this journal does not know is swept first."""
        visit = self._visit
        visit.phase = "sweeping"
        resumed = await visit.journal.read(Store.count, *ShardState)
        fresh_id = not visit.started.known_id
        if fresh_id and not resumed:
            visit.may_upload = visit.may_create = True
        elif await visit.journal.read(Store.last, e.Swept) is not None or fresh_id:
            await self._sweep(visit.started.server_date - MARGIN_S, since=visit.began)
            visit.may_upload = visit.may_create = True
        else:
            await self._sweep(None, since=visit.began)
            visit.may_upload = True
            visit.tasks.start_soon(self._first_grace)
        visit.phase = "running"
        visit.bell.ring()

    async def _first_grace(self) -> None:
        """A run known by its id alone is one doubt as a whole: a full grace and one more sweep before the first create."""
        visit = self._visit
        end = visit.began + visit.config.adopt_grace_s
        visit.note = "waiting for batches of this run id to show in the list"
        await visit.world.clock.sleep(max(0.0, end - visit.world.clock.monotonic()))
        whole = await self._sweep(None, since=visit.world.clock.monotonic())
        visit.note = ""
        unproven = self._unproven(whole)
        if unproven is not None:
            visit.end("paused", unproven, 4)
            return
        await visit.journal.append(e.Swept())
        visit.may_create = True
        visit.bell.ring()

    # -- one doubt

    async def search(self, shard: Shard) -> e.ShardEvent:
        """The batch of a doubted create, or its proven absence: a full grace, then one more whole sweep."""
        visit = self._visit
        clock = visit.world.clock
        oldest = await visit.journal.read(Store.oldest_file, shard.name)
        horizon = visit.started.server_date if oldest is None else oldest
        grace_end = clock.monotonic() + visit.config.adopt_grace_s
        while True:
            began = clock.monotonic()
            whole = await self._sweep(horizon - MARGIN_S, since=began)
            picked = choice.choose(await visit.journal.read(Store.found, shard.name))
            if picked.keep is not None:
                return _adopted(shard, picked.keep)
            if began >= grace_end:
                unproven = self._unproven(whole)
                if unproven is not None:
                    raise Paused(unproven)
                return e.Absent(shard=shard.name, create=shard.create)
            await clock.sleep(max(0.05, min(grace_end - clock.monotonic(), visit.config.adopt_grace_s / 8)))

    def _unproven(self, whole: bool) -> str | None:
        """Why absence from the list proves nothing; None where it does."""
        if self._unknowable or self._nameless:
            return UNKNOWABLE if self._unknowable else NAMELESS
        return None if whole else UNREADABLE

    # -- sweeping

    async def _sweep(self, horizon: float | None, *, since: float) -> bool:
        """Read the list back to `horizon` (the service's clock; None: to its end), in a sweep begun after `since`. Whether it
        could be read that far."""
        async with self._lock:
            if self._swept_from >= since and _reaches(self._horizon, horizon):
                return self._whole
            began = self._visit.world.clock.monotonic()
            whole = await self._read_list(horizon)
            self._swept_from, self._horizon, self._whole = began, horizon, whole
        await self.settle_found()
        return whole

    async def _read_list(self, horizon: float | None) -> bool:
        """Every page back to the horizon; False where the service turns no more pages before."""
        after: str | None = None
        reading = choice.Reading()
        while True:
            page = await self._visit.world.api.list_batches(after, 100)
            await self.consider([*page.data, *page.nameless])
            if not page.has_more or (horizon is not None and page.data and page.data[-1].created_at < horizon):
                return True
            if choice.stuck(reading, page):
                return False
            reading, after = choice.turned(reading, page), page.last_id

    async def consider(self, batches: Sequence[BatchInfo]) -> None:
        """Journal the listed batches that are this run's and unknown. Raises ConfigError for one that can't belong here."""
        visit = self._visit
        self._unknowable |= any(map(choice.unknowable, batches))
        if not batches:
            return
        for batch, find in await visit.journal.read(_finds, batches, visit.started.run_id):
            if not batch.id:
                self._nameless = True
                continue
            if visit.driving.get(find.shard) is Create:
                continue  # it is on its way: the answer says it
            if await visit.journal.read(Store.knows_batch, batch.id):  # asked last: the answer may have come just now
                continue
            self._check_cut(batch)
            if find not in await visit.journal.read(Store.found, find.shard):
                await visit.journal.append(find)

    def _check_cut(self, batch: BatchInfo) -> None:
        cut = batch.metadata.get(tags.CUT)
        if cut is not None and cut != self._cut:
            raise ConfigError(
                f"Batch {batch.id} of run {self._visit.started.run_id} was made with other settings ({cut}, now {self._cut});"
                " use the settings it was started with, or another --run-id."
            )

    # -- adopting

    async def settle_found(self) -> None:
        """Give every find whose shard is here and waits to that shard."""
        visit = self._visit
        for name in await visit.journal.read(Store.findable, ADOPTABLE):
            shard = await visit.claim(name, *ADOPTABLE)
            if shard is None:
                continue
            try:
                for event in await self.of_fresh(shard):
                    await visit.journal.append(event)
            finally:
                visit.release(name)
        lost = await visit.journal.read(Store.lost_remainder)
        if lost is not None:
            visit.end("paused", LOST_REMAINDER.format(name=lost), 4)

    async def of_fresh(self, shard: Shard) -> list[e.ShardEvent]:
        """What finds mean for a shard that waits: the events that adopt one, or none."""
        finds = await self._visit.journal.read(Store.found, shard.name)
        other = next((f for f in finds if f.hash and f.hash != shard.hash), None)
        if other is not None:
            raise ConfigError(
                f"Batch {other.batch_id} runs shard {shard.name} of this run id with other content; the input or the settings"
                " changed since: restore them, or use another --run-id."
            )
        picked = choice.choose(finds)
        return [] if picked.keep is None else [_adopted(shard, picked.keep)]


def _finds(store: Store, batches: Sequence[BatchInfo], run: str) -> list[tuple[BatchInfo, e.Found]]:
    """Those of a page that are this run's and not in the journal yet: one question for all, for most are other people's."""
    finds = []
    for batch in batches:
        owner = store.file_owner(batch.input_file_id) if batch.input_file_id else None
        find = choice.found(batch, run, owner)
        if find is not None and not _known(store, batch, find):
            finds.append((batch, find))
    return finds


def _known(store: Store, batch: BatchInfo, find: e.Found) -> bool:
    """Whether the journal has a listed batch; one whose id is not said is known by the create that its tag names."""
    if batch.id:
        return store.knows_batch(batch.id)
    shard = store.shard(find.shard)
    return shard is not None and shard.batch_id is not None and shard.create == find.create


def _adopted(shard: Shard, find: e.Found) -> e.Submitted:
    return e.Submitted(
        shard=shard.name,
        batch_id=find.batch_id,
        file_id=find.file_id,
        create=max(find.create, shard.create),
        found=True,
    )


def _reaches(swept: float | None, wanted: float | None) -> bool:
    """Whether a sweep back to `swept` read at least as far as `wanted`."""
    return swept is None or (wanted is not None and swept <= wanted)
