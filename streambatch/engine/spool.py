"""The spool of one visit: a running sum of what lies there and what was let in, and a watch on the disk below it.

Measured once at the start, then where files come and go. Who may come in is `core.spooling`'s to say.
"""

from collections.abc import Callable, Iterable

import anyio

from streambatch.core import spooling
from streambatch.core.models import Shard, ShardState
from streambatch.core.spooling import Room
from streambatch.edge import spooling as measure
from streambatch.edge.files import ENDINGS, Blocking, RunFiles
from streambatch.edge.journal import Journal, Store

COLLECTING = (ShardState.ADMITTED, ShardState.DOWNLOADED)


class Spool:
    """Bytes by who brings them. Without a cap only sizes are learned, and nothing is held."""

    def __init__(self, cap: int | None, files: RunFiles, blocking: Blocking, journal: Journal) -> None:
        self.cap = cap
        self.maker_held = False  # no fresh segment is read, for want of room
        self.results_held = False  # finished batches wait at the service, for want of room
        self.pool_held = False  # left rows wait, for want of room
        self.ratio: float | None = None  # results to requests, the largest seen
        self.segment_bytes: int | None = None  # the largest seen
        self._files = files
        self._blocking = blocking
        self._journal = journal
        self._used = 0
        self._promised: dict[str, int] = {}
        self._counted: dict[str, int] = {}  # results of shards that are being fetched or settled

    @property
    def room(self) -> Room:
        return Room(self.cap, self._used, sum(self._promised.values()))

    @property
    def holds(self) -> bool:
        return self.maker_held or self.results_held or self.pool_held

    async def open(self) -> None:
        """Measure what earlier visits left."""
        if self.cap is None:
            return
        self._used = await self._blocking(measure.all_bytes, self._files)
        last = await self._journal.read(Store.last_segment)
        if last is not None:
            self.segment_bytes = 3 * last.segment.bytes // 2
        for shard in await self._journal.read(Store.shards, COLLECTING):
            self._counted[shard.name] = await self._measure([shard.name], measure.RESULTS)
            self._promised[shard.name] = spooling.results_bytes(shard.bytes, self.ratio)

    # -- what comes

    def promise(self, name: str, need: int) -> None:
        """Something of this size was let in, and is on its way."""
        self._promised[name] = need

    def broken(self, name: str) -> None:
        """It does not come after all."""
        self._promised.pop(name, None)

    async def came(self, name: str, files: Iterable[str]) -> int:
        """Requests that were promised under a name lie in the spool, under these names; their bytes."""
        size = await self._measure(files, measure.REQUESTS)
        self._used += size
        self.broken(name)
        return size

    async def segment_came(self, name: str, files: Iterable[str]) -> None:
        """`came` for a segment, whose size is kept in mind."""
        size = await self.came(name, files)
        self.segment_bytes = size if self.segment_bytes is None else max(size, self.segment_bytes)

    def may_fetch(self, shard: Shard, *, in_turn: bool) -> bool:
        need = spooling.results_bytes(shard.bytes, self.ratio)
        return self.room.may_fetch(need, known=self.ratio is not None, fetching=len(self._counted), in_turn=in_turn)

    def fetching(self, shard: Shard) -> None:
        """Results of a shard are let in."""
        self._counted.setdefault(shard.name, 0)
        self._promised[shard.name] = spooling.results_bytes(shard.bytes, self.ratio)

    async def fetched(self, shard: Shard, *, settled: bool) -> None:
        """Results of a shard were written, or, `settled`, all that is made of them."""
        size = await self._measure([shard.name], measure.RESULTS)
        self._used += size - self._counted.get(shard.name, 0)
        self._counted[shard.name] = size
        expected = spooling.results_bytes(shard.bytes, self.ratio)
        self._promised[shard.name] = max(0, expected - size)
        if settled:
            self.broken(shard.name)
            del self._counted[shard.name]
            ratio = size / max(1, shard.bytes)
            self.ratio = ratio if self.ratio is None else max(ratio, self.ratio)

    # -- what goes

    async def size_of(self, names: Iterable[str]) -> int:
        return 0 if self.cap is None else await self._measure(names)

    def gone(self, size: int) -> None:
        """So many bytes were removed."""
        self._used -= size

    async def _measure(self, names: Iterable[str], endings: tuple[str, ...] = ENDINGS) -> int:
        return await self._blocking(measure.bytes_of, self._files, tuple(names), endings)


class DiskWatch:
    """Looks at the free space, seldom or when something large is about to come; `low` is told once, and stays."""

    LOOK_S = 1.0  # at most once

    def __init__(
        self,
        spool: Spool,
        free: Callable[[str], int],
        folder: str,
        elsewhere: str | None,
        blocking: Blocking,
        now: Callable[[], float],
        low: Callable[[str], None],
    ) -> None:
        self._spool = spool
        self._free = free
        self._folder = folder
        self._elsewhere = elsewhere  # where the outputs go, if that is another file system
        self._blocking = blocking
        self._now = now
        self._low = low
        self._looked = float("-inf")
        self.full = False
        self.merged_bytes = 0  # what publishing copies, if it must copy

    async def look(self, coming: int = 0) -> bool:
        """Whether there is room on the disk to go on."""
        if not self.full and self._now() - self._looked >= self.LOOK_S:
            self._looked = self._now()
            await self._look_at(self._folder, self.need(coming))
            if self._elsewhere is not None:
                await self._look_at(self._elsewhere, spooling.needed_free(self.merged_bytes, 0))
        return not self.full

    async def _look_at(self, folder: str, need: int) -> None:
        free = await self._blocking(self._free, folder)
        if free < need and not self.full:
            self.full = True
            self._low(spooling.too_full(folder, free, need))

    def need(self, coming: int) -> int:
        spool = self._spool
        segment = 0 if spool.segment_bytes is None else spool.segment_bytes
        merging = spooling.results_bytes(segment, spool.ratio)
        return spooling.needed_free(spool.room.promised + coming, merging)

    async def run(self, every_s: float) -> None:
        """Look again and again."""
        while True:
            if not await self.look():
                return
            await anyio.sleep(every_s)
