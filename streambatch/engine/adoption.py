"""Finding batches that the journal does not know, and proving that a doubted create took no effect.

One sweep of the list serves everyone who waits for one. Buys nothing; cancels only what runs a shard for the second time.
"""

from collections.abc import Sequence

import anyio

from streambatch.core import adoption as choice
from streambatch.core import events as e
from streambatch.core import tags, verdicts
from streambatch.core.agreeing import cut_difference
from streambatch.core.lifecycle import Create
from streambatch.core.models import Shard, ShardState
from streambatch.core.wire import BatchInfo
from streambatch.edge import lookbacks, spares
from streambatch.edge.journal import Store
from streambatch.engine import opening
from streambatch.engine.context import Visit
from streambatch.engine.spares import Spares
from streambatch.errors import ApiError, ConfigError, Paused

MARGIN_S = 60.0  # between the service's clocks of a list and of a file
ADOPTABLE = (ShardState.SEALED, ShardState.UPLOADED, ShardState.DOUBTED)
BY_ID = "waiting for batches of this run id to show in the list"
ELSEWHERE = (
    "waiting a moment: this run directory was moved, restored or copied, and a copy of it may have bought batches"
)
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
        self._crowded: set[str] = set()  # shards of which more batches were found than the one they have
        self._asked: set[str] = set()  # batches that this process asked to cancel
        self.spares = Spares(visit)

    # -- before anything is bought

    async def first_sweep(self) -> None:
        """Open the gates. A run that may have batches which this journal does not know is swept first."""
        visit = self._visit
        visit.phase = "sweeping"
        resumed = await visit.journal.read(Store.count, *ShardState)
        moved = await visit.journal.read(spares.trusted) != await visit.journal.read(spares.standing)
        fresh_id = not visit.started.known_id
        known = fresh_id or await visit.journal.read(Store.last, e.Swept) is not None
        if fresh_id and not resumed and not moved:
            visit.may_upload = visit.may_create = True
        else:
            horizon = visit.started.server_date - MARGIN_S if known else None
            await self._sweep(horizon, since=visit.began)
            self._crowded.update(await visit.journal.read(spares.crowded))
            visit.may_upload = True
            if known and not moved:
                visit.tasks.start_soon(self._open_creates)
            else:
                visit.tasks.start_soon(self._first_grace, horizon, ELSEWHERE if known else BY_ID)
        visit.phase = "running"
        visit.bell.ring()

    async def _first_grace(self, horizon: float | None, note: str) -> None:
        """A run known by its id alone is one doubt as a whole: a full grace and one more sweep before the first create. So is one
        whose directory stands elsewhere than before: a copy of it may have worked until a moment ago."""
        visit = self._visit
        end = visit.began + visit.config.adopt_grace_s
        visit.note = note
        await visit.world.clock.sleep(max(0.0, end - visit.world.clock.monotonic()))
        whole = await self._sweep(horizon, since=visit.world.clock.monotonic())
        visit.note = ""
        unproven = self._unproven(whole)
        if unproven is not None and visit.config.accept_gone != "rebuy":
            visit.end("paused", f"{unproven.removesuffix('.')} without your word: --accept-gone rebuy.", 4)
            return
        await self._open_creates(swept=True)

    async def _open_creates(self, *, swept: bool = False) -> None:
        """Creates may begin, once it is known what every batch of a lost remainder holds."""
        visit = self._visit
        if visit.ended is None:
            try:
                await self.spares.read_all()
            except Paused as pause:
                visit.end("paused", str(pause), 4)
                return
        if swept:
            place = await visit.journal.read(spares.standing)
            await visit.journal.append(e.Swept() if place is None else e.Swept(place.host, place.inode))
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
            adopted = await self.of_fresh(shard)
            if adopted is not None:
                return adopted
            if began >= grace_end:
                unproven = self._unproven(whole)
                if unproven is not None:
                    return verdicts.unproven(shard, unproven, visit.config.accept_gone)
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
            if await visit.journal.read(_runs, batch):  # asked last: the answer may have come just now
                continue
            self._check_cut(batch)
            if find not in await visit.journal.read(Store.found, find.shard):
                await visit.journal.append(find)
                if await visit.journal.read(Store.shard, find.shard) is not None:
                    self._crowded.add(find.shard)

    def _check_cut(self, batch: BatchInfo) -> None:
        cut = batch.metadata.get(tags.CUT)
        if cut is not None and cut != self._cut:
            raise ConfigError(
                f"Batch {batch.id} of run {self._visit.started.run_id} was made {cut_difference(cut, self._cut)}; use the settings"
                " that the run was started with, or another --run-id."
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
                adopted = await self.of_fresh(shard)
                if adopted is not None:
                    await visit.journal.append(adopted)
            finally:
                visit.release(name)
        await self._cancel_surplus()
        if visit.ended is None and not visit.cancelling:
            await self.spares.displace()

    async def of_fresh(self, shard: Shard) -> e.Submitted | None:
        """What finds mean for a shard that waits: the event that adopts one, where one can be."""
        finds = await self._visit.journal.read(Store.found, shard.name)
        same = choice.of_content(finds, shard)
        if len(same) < len(finds) and shard.segment is not None:  # a remainder may have the name of one that was lost
            other = next(find for find in finds if find not in same)
            raise ConfigError(
                f"Batch {other.batch_id} runs shard {shard.name} of this run id with other content; the input or the settings"
                " changed since: restore them, or use another --run-id."
            )
        if len(same) > 1:
            self._crowded.add(shard.name)
        picked = choice.choose(same)
        return None if picked.keep is None else _adopted(shard, picked.keep)

    async def before_create(self, shard: Shard) -> e.ShardEvent:
        """Adopt before create: the intent to create a batch for a shard, or what is done instead, because one runs its rows."""
        finds = await self._visit.journal.read(Store.found, shard.name)
        adopted = await self.of_fresh(shard) if finds else None
        if adopted is not None:
            return adopted
        if await self.spares.ran(shard):  # row by row from the pool, then
            return e.Returned(shard=shard.name, max_rows=shard.rows, reason="a batch that was found ran rows of it")
        await self._refuse_foreign()
        return e.Intended(shard=shard.name, create=max(shard.create, choice.choose(finds).create) + 1)

    async def _refuse_foreign(self) -> None:
        """A run that is known by its id and must buy has not made the OUTPUT that stands there. Raises ConfigError."""
        visit = self._visit
        if visit.started.known_id and await visit.journal.read(lookbacks.never_published):
            opening.refuse_to_buy(visit.config)

    # -- more than one

    async def _cancel_surplus(self) -> None:
        """Of several live batches of one shard, one goes on. What the others finished is read before rows are bought again."""
        visit = self._visit
        if visit.cancelling:
            for find in await visit.journal.read(spares.all_live):
                await self._cancel(find)
        for name in sorted(self._crowded):
            shard = await visit.journal.read(Store.shard, name)
            finds = await visit.journal.read(Store.found, name)
            if shard is None or not finds:
                self._crowded.discard(name)
                continue
            word = visit.words.get(str(shard.batch_id))
            for find in choice.surplus(shard.state, word, choice.of_content(finds, shard)):
                await self._cancel(find)

    async def _cancel(self, find: e.Found) -> None:
        """Ask once, the intent first."""
        if find.batch_id in self._asked:
            return
        self._asked.add(find.batch_id)
        if not await self._visit.journal.read(spares.cancelled, find.batch_id):
            await self._visit.journal.append(e.SurplusCancelled(batch_id=find.batch_id, shard=find.shard))
        try:
            await self._visit.world.api.cancel_batch(find.batch_id)
        except ApiError as error:
            if error.status is None or not 400 <= error.status < 500:  # else it has ended, or is gone
                raise


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
        return _runs(store, batch)
    shard = store.shard(find.shard)
    return shard is not None and shard.batch_id is not None and shard.create == find.create


def _runs(store: Store, batch: BatchInfo) -> bool:
    """Whether the journal has a batch as run by a shard; one that was given up, and ended after all, is a find."""
    return store.knows_batch(batch.id) and not (batch.terminal and batch.id in spares.given_up(store))


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
