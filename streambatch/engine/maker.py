"""The maker: scans the inputs ahead, has workers prepare segments, and seals them in order.

Cutting follows from the input and the journaled settings alone; how far ahead it runs follows from named capacities.
"""

import contextlib

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from streambatch.core import events as e
from streambatch.core import jobs
from streambatch.core.models import Segment, Shard
from streambatch.core.rows import why_stop
from streambatch.edge.files import segment_name
from streambatch.edge.journal import SegmentRow, Store
from streambatch.edge.rawfiles import RawWriter
from streambatch.edge.scanning import Scan, scan
from streambatch.engine import replaying
from streambatch.engine.adoption import Adoption
from streambatch.engine.context import Visit
from streambatch.engine.replaying import Reading
from streambatch.engine.scheduler import may_seal
from streambatch.errors import JournalError, SourceError

READ = "the segment that is being read"


class Slot:
    """A segment on its way through a worker."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.ready = anyio.Event()
        self.prepared: jobs.Prepared | None = None

    @property
    def name(self) -> str:
        return segment_name(self.segment.index)


class Maker:
    """Prepares and seals segments until the inputs end."""

    def __init__(self, visit: Visit, adoption: Adoption, reading: Reading = Reading.GO_ON) -> None:
        self._visit = visit
        self._reading = reading
        self._adoption = adoption
        config = visit.config
        self._ahead = config.prepared_ahead * max(1, config.workers)
        self._slots = anyio.Semaphore(self._ahead)
        self._note = ""
        self._unsealed = 0  # segments that were read, or are being read

    async def run(self) -> None:
        visit = self._visit
        await self._adoption.first_sweep()
        if self._reading is not Reading.OVER:
            await self._make()
        visit.maker_idle = visit.maker_done = True
        visit.bell.ring()

    async def _make(self) -> None:
        visit = self._visit
        last = await visit.journal.read(Store.last_segment)
        send, receive = anyio.create_memory_object_stream[Slot](self._ahead)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._scan, tasks, send, last)
            await self._seal_all(receive)
        await self._exhausted()

    # -- scanning and preparing

    async def _scan(
        self, tasks: anyio.abc.TaskGroup, send: MemoryObjectSendStream[Slot], last: SegmentRow | None
    ) -> None:
        blocking = self._visit.world.blocking
        streams = any(file.stream for file in self._visit.started.inputs)
        async with send:
            with contextlib.closing(await self._begin(last)) as segments:
                while True:
                    await self._slots.acquire()
                    await self._spool_room()
                    self._unsealed += 1
                    self._visit.awaits_rows = streams
                    segment = await segments.ahead(blocking)
                    self._visit.awaits_rows = False
                    self._say("")
                    if segment is None:
                        self._visit.spool.broken(READ)
                        return
                    slot = Slot(segment)
                    self._read(slot)
                    tasks.start_soon(self._prepare, slot)
                    await send.send(slot)

    async def _spool_room(self) -> None:
        """Wait until the spool and the disk take one more segment."""
        visit, spool = self._visit, self._visit.spool
        while True:
            ticket = visit.bell.ticket()
            unmerged = spool.cap is not None and await visit.journal.read(Store.next_to_merge) is not None
            need = spool.segment_bytes
            may = spool.room.may_read(need, unsealed=self._unsealed, unmerged=unmerged)
            if may and await visit.disk.look(0 if need is None else need):
                spool.maker_held = False
                spool.promise(READ, 0 if need is None else need)
                return
            if spool.maker_held != (not self._unsealed):
                spool.maker_held = not self._unsealed
                visit.bell.ring()  # others look again, and so do we
            await visit.bell.wait(ticket, 600.0)

    def _read(self, slot: Slot) -> None:
        """A segment was read: what was promised to come is this one."""
        spool = self._visit.spool
        spool.broken(READ)
        spool.promise(slot.name, slot.segment.bytes if spool.segment_bytes is None else spool.segment_bytes)

    async def _begin(self, last: SegmentRow | None) -> Scan:
        """The scan, from where the last sealed segment ends."""
        visit, world = self._visit, self._visit.world
        inputs = visit.started.inputs
        self._say(replaying.note(inputs, (0, 0) if last is None else last.segment.end, self._reading))
        if self._reading is Reading.COMPARE:
            visit.awaits_rows = True
            await replaying.check_streams(inputs, world.serials, visit.journal, world.blocking)
        return scan(
            inputs,
            visit.started.settings.limits,
            after=None if last is None else last.segment,
            known=await visit.journal.read(Store.found_spans),
            limit=visit.config.limit,
            rows_before=(await visit.journal.read(Store.totals)).get("rows", 0),
            serials=world.serials,
            raw=RawWriter(visit.files.raw, visit.files.path("raw", visit.files.suffix), inputs),
        )

    def _say(self, note: str) -> None:
        """What takes its time before the first segment; another task's note stands."""
        if self._visit.note in ("", self._note):
            self._visit.note = self._note = note

    async def _prepare(self, slot: Slot) -> None:
        visit = self._visit
        name = segment_name(slot.segment.index)
        job = jobs.Prepare(
            pieces=visit.pieces(slot.segment),
            first_ordinal=slot.segment.first_ordinal,
            shaping=visit.started.settings.shaping,
            limits=visit.started.settings.limits,
            prefix=visit.files.stem(name),
            suffix=visit.files.suffix,
            stop_on_bad=visit.config.on_bad_row == "stop",
        )
        made = await visit.world.executor.run(job)
        if not isinstance(made, jobs.Prepared):
            raise JournalError(f"Preparing segment {name} gave a {type(made).__name__}.")
        slot.prepared = made
        slot.ready.set()

    # -- sealing

    async def _seal_all(self, receive: MemoryObjectReceiveStream[Slot]) -> None:
        async with receive:
            async for slot in receive:
                await slot.ready.wait()
                assert slot.prepared is not None
                await self._room()
                await self._seal(slot.segment, slot.prepared)
                self._unsealed -= 1
                self._slots.release()

    async def _room(self) -> None:
        """Wait until few enough shards wait for a submit. The visit may end meanwhile."""
        visit = self._visit
        while True:
            ticket = visit.bell.ticket()
            if visit.ended is None and await may_seal(visit):
                visit.maker_idle = False
                return
            visit.maker_idle = True
            await visit.bell.wait(ticket, 600.0)

    async def _seal(self, segment: Segment, made: jobs.Prepared) -> None:
        visit = self._visit
        await self._check_bad_rows(made)
        shards = tuple(self._shard(segment, file) for file in made.shards)
        endings = (".jsonl", ".ids")
        names = [f"{file.stem}{ending}" for file in made.shards for ending in endings]
        names.append(visit.files.path(segment_name(segment.index), ".bad"))
        await visit.world.blocking(visit.files.sync_raw, segment.index)
        await visit.world.blocking(visit.files.settle_names, names)
        stems = [segment_name(segment.index), *(shard.name for shard in shards)]
        await visit.spool.segment_came(segment_name(segment.index), stems)
        sealed = e.SegmentSealed(
            segment=msgspec.structs.replace(segment, lines=made.lines),
            source_hash=made.source_hash,
            rows=made.rows,
            bad=made.bad,
            skipped=made.skipped,
            first_bad=made.first_bad,
            shards=shards,
        )
        adopted = [await self._adoption.of_fresh(shard) for shard in shards]
        await visit.journal.append(sealed, *(event for event in adopted if event is not None))
        visit.bell.ring()

    def _shard(self, segment: Segment, file: jobs.ShardFile) -> Shard:
        return Shard(
            name=file.stem.rsplit("/", 1)[-1],
            segment=segment.index,
            first_segment=segment.index,
            last_segment=segment.index,
            generation=0,
            model=file.model,
            rows=file.rows,
            bytes=file.bytes,
            tokens=file.tokens,
            hash=file.hash,
        )

    async def _check_bad_rows(self, made: jobs.Prepared) -> None:
        bad = made.first_bad
        if bad is None:
            return
        totals = await self._visit.journal.read(Store.totals)
        before = totals.get("bad", 0)
        leading = before + made.leading_bad if before == totals.get("rows", 0) else 0
        why = why_stop(bad, leading, stop=self._visit.config.on_bad_row == "stop")
        if why is not None:
            raise SourceError(why, path=bad.file, line=bad.line)

    async def _exhausted(self) -> None:
        visit = self._visit
        last = await visit.journal.read(Store.last_segment)
        ordinals = 0 if last is None else last.segment.first_ordinal + last.segment.lines
        rows = (await visit.journal.read(Store.totals)).get("rows", 0)
        limited = visit.config.limit is not None and rows >= visit.config.limit
        await visit.journal.append(e.Exhausted(ordinals=ordinals, limited=limited, inputs=visit.started.inputs))
