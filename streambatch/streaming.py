"""stream(): a run whose outcomes are handed out while it goes on, to a reader that may be slow or leave early.

The engine works as in any run; the reader follows its journal, and a brake holds the engine while the reader is behind.
Knows nothing of the service.
"""

import contextlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import chain
from types import TracebackType
from typing import Any, Literal, NoReturn, Unpack, get_args

import anyio
import msgspec

from streambatch.api import RunOptions, Source, config_of, connect, values_of
from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import Shard
from streambatch.core.report import Progress, Summary
from streambatch.edge import lookbacks
from streambatch.edge.files import RunFiles, in_thread, segment_name
from streambatch.edge.jobs import storage_error
from streambatch.edge.journal import Journal, SegmentRow, Store, read_only
from streambatch.edge.rawfiles import pieces_of
from streambatch.edge.readout import Ended, Readout, read
from streambatch.edge.segmentfiles import part_of
from streambatch.edge.service import Service
from streambatch.engine import REAL, Listener
from streambatch.engine import run as run_engine
from streambatch.engine.brake import Brake
from streambatch.engine.context import Bell, Notice
from streambatch.errors import ConfigError, JournalError, Paused, StreambatchError
from streambatch.outcome import Outcome, of_end
from streambatch.syncing import need_asyncio

Order = Literal["completion", "input"]
AHEAD = 8  # shards (or segments) whose outcomes may wait for the reader
BLOCK_ROWS, BLOCK_BYTES = 256, 1 << 20  # read at a time
LOOK_AGAIN_S = 5.0
NOT_HERE = ("output", "emit", "column", "if_exists", "summary_file")


def stream(
    source: Source,
    *,
    prompt: str | None = None,
    order: Order = "completion",
    service: Service | None = None,
    on_event: Listener | None = None,
    **options: Unpack[RunOptions],
) -> "Stream":
    """Run `source` and hand out each row's outcome: `async with stream(rows, ...) as results: async for outcome in results`.

    `order` is "completion" (as batches end) or "input". A reader that is slow slows the run: while the outcomes of a few
    shards wait for it, nothing more is bought or fetched. Leaving early stops submitting and leaves a run that can be gone
    on with: the same call with the same `run_dir` hands out all outcomes again, those that were paid already first.
    `run_dir` is a temporary folder unless it is given, removed once everything was handed out.

    Reading raises what `run` raises, and Paused where the run waits for a word of the user, after all that is here.
    """
    return Stream(lambda: _streamed(source, prompt, order, service, on_event, options))


class Stream(AbstractAsyncContextManager["Results"]):
    """What `stream` returns: entered once, with `async with`."""

    def __init__(self, enter: Callable[[], AbstractAsyncContextManager["Results"]]) -> None:
        self._enter = enter
        self._entered: AbstractAsyncContextManager[Results] | None = None

    async def __aenter__(self) -> "Results":
        if self._entered is not None:
            raise ConfigError("This stream() was entered before; call stream() again for another visit to the run.")
        self._entered = self._enter()
        return await self._entered.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._entered is not None
        return await self._entered.__aexit__(kind, error, trace)

    def __aiter__(self) -> NoReturn:
        raise ConfigError(
            "stream() is entered first: async with stream(...) as results, and in it async for outcome in results."
        )


@asynccontextmanager
async def _streamed(
    source: Source,
    prompt: str | None,
    order: Order,
    service: Service | None,
    on_event: Listener | None,
    options: RunOptions,
) -> AsyncIterator["Results"]:
    need_asyncio("stream() under asyncio, or run_sync")
    if order not in get_args(Order):
        raise ConfigError(f"order: {order!r} is none of {', '.join(get_args(Order))}.")
    config = await _config(source, prompt, service, options)
    results = Results(config, order, on_event)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(results.work)
            try:
                yield results
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # the reader's own failure: the engine's are kept for the reader
        cause = group.exceptions[0]
        raise cause from cause.__cause__
    finally:
        if "run_dir" not in options:
            await in_thread(_tidy, config.run_dir, results.complete)


async def _config(source: Source, prompt: str | None, service: Service | None, options: RunOptions) -> Config:
    useless = [name for name in NOT_HERE if name in options]
    if useless:
        raise ConfigError(f"stream() hands out outcomes and writes no output of the user's: leave {useless[0]} out.")
    run_dir = os.fspath(options["run_dir"]) if "run_dir" in options else None
    given: dict[str, Any] = {**options, "prompt": prompt, "emit": "results", "keep_spool": True}
    if run_dir is None:
        given["run_dir"] = run_dir = await in_thread(tempfile.mkdtemp, None, "streambatch-")
    else:
        await in_thread(_make, run_dir)
    try:
        values = values_of({**given, "output": os.path.join(run_dir, "output.jsonl")})
        return config_of(source, values, service, f"stream() with run_dir={run_dir!r}")
    except StreambatchError:
        if "run_dir" not in options:
            await in_thread(_tidy, run_dir, False)
        raise


def _tidy(temporary: str, done: bool) -> None:
    """Remove a temporary folder in which all is done, or nothing was begun."""
    if done:
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it holds what was paid
            os.rmdir(temporary)


def _make(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The run directory {folder} can't be made: {error.strerror}.") from error


class Results:
    """The outcomes of one run, each once. `summary` says how the engine's visit ended, once it has."""

    def __init__(self, config: Config, order: Order, listen: Listener | None) -> None:
        self.run_dir = config.run_dir
        self.summary: Summary | None = None
        self._config = config
        self._files = RunFiles(config.run_dir)
        self._counts = e.Merged if order == "input" else e.Settled
        self._kinds = (e.Merged,) if order == "input" else (e.SegmentSealed, e.Settled)
        self._listen = listen
        self._brake = Brake(AHEAD)
        self._bell = Bell()
        self._failure: StreambatchError | None = None
        self._ended = False  # the engine
        self._journal: Journal | None = None  # where the engine keeps it to itself
        self._readable = False  # the journal
        self._known = 0  # the journal's last entry before this visit
        self._at = 0  # the entry that is being handed out
        self._unit: Iterator[Ended] | None = None
        self._counted = False  # whether the brake counts this unit
        self._ready: deque[Outcome] = deque()
        self._broken: Exception | None = None  # what was handed out could not be read on
        self._drained = False

    @property
    def complete(self) -> bool:
        """Whether the run is finished and each outcome was handed out."""
        return self._drained and not self._ready and self.summary is not None and self.summary.state == "finished"

    # -- the engine's side

    async def work(self) -> None:
        """The engine's visit. What goes wrong is told to the reader, in turn."""
        try:
            await in_thread(self._before)
            house = msgspec.structs.replace(REAL, brake=self._brake, opened=self._take_journal)
            self.summary = await run_engine(self._config, connect, self._hear, house=house)
        except StreambatchError as error:
            self._failure = error
        finally:
            self._ended = True
            self._bell.ring()

    def _before(self) -> None:
        """What an earlier visit left. Raises ConfigError where it did not keep all that is handed out here."""
        if not self._files.journal.exists():
            return
        with read_only(str(self._files.journal)) as store:
            if lookbacks.any_swept(store):
                raise ConfigError(
                    f"The run in {self.run_dir} was begun without keep_spool: its first rows are only in its output; use another"
                    " run_dir."
                )
            self._known, _ = lookbacks.next_event(store, 0)
        self._readable = True

    def _take_journal(self, journal: Journal) -> None:
        self._journal = None if journal.shared else journal

    def _hear(self, notice: Notice) -> None:
        if isinstance(notice, self._counts):
            self._brake.add()
        if not isinstance(notice, Progress):
            self._readable = True
            self._bell.ring()
        if self._listen is not None:
            self._listen(notice)

    # -- the reader's side

    def __aiter__(self) -> "Results":
        return self

    async def __anext__(self) -> Outcome:
        """A wait that is cancelled, by a time-out for one, loses nothing: what was read meanwhile comes with the next call."""
        while not self._ready:
            if self._broken is not None:
                raise self._broken
            if self._unit is not None:
                await self._read_on(self._unit)
            elif not await self._find_unit():
                raise self._how_it_ended()
        return self._ready.popleft()

    async def _find_unit(self) -> bool:
        """Wait for the next entry of the journal that ended rows. False where there will be none."""
        while True:
            ticket, last_look = self._bell.ticket(), self._ended
            if self._readable:
                await self._look()
            if self._unit is not None:
                return True
            if last_look:
                self._drained = True
                return False
            await self._bell.wait(ticket, LOOK_AGAIN_S)

    async def _read_on(self, unit: Iterator[Ended]) -> None:
        """A block more of a unit; what a cancelled caller leaves behind, the next one finds."""
        if not await in_thread(self._read_block, unit):
            self._unit = None
            if self._counted:
                self._brake.take()

    def _how_it_ended(self) -> BaseException:
        failure, self._failure = self._failure, None
        if failure is not None:
            return failure
        if self.summary is not None and self.summary.exit_code == Paused.exit_code:
            return Paused(self.summary.message)
        return StopAsyncIteration()

    # -- the run directory

    async def _look(self) -> None:
        """Find the ends of the next entry's rows, if there is one."""
        if self._journal is not None and not self._ended:
            with contextlib.suppress(JournalError):  # the engine closed it meanwhile, and now everybody may read
                await self._journal.read(self._look_into)
                return
        await in_thread(self._open_and_look)

    def _open_and_look(self) -> None:
        with read_only(str(self._files.journal)) as store:
            self._look_into(store)

    def _look_into(self, store: Store) -> None:
        """All of an entry, or nothing of it."""
        at, event = lookbacks.next_event(store, self._at, *self._kinds)
        if event is not None:
            started = store.last(e.Started)
            if started is None:
                raise JournalError(f"The journal in {self.run_dir} does not say how its run began.")
            self._endpoint = started.settings.shaping.endpoint
            self._counted = at > self._known and isinstance(event, self._counts)
            specs = list(self._specs(store, event))
            self._unit = chain.from_iterable(map(read, specs))
        self._at = at

    def _read_block(self, unit: Iterator[Ended]) -> bool:
        """Make the next few rows of a unit ready; False where it is over. A failure is raised after the rows before it."""
        rows = size = 0
        try:
            while rows < BLOCK_ROWS and size < BLOCK_BYTES and (end := next(unit, None)) is not None:
                self._ready.append(of_end(end, self._endpoint))
                rows, size = rows + 1, size + end.size
        except OSError as error:
            self._broken = storage_error(error, self.run_dir)
            self._broken.__cause__ = error
        except Exception as error:  # noqa: BLE001 - raised where the reader has come to it, and from then on
            self._broken = error
        return rows > 0 or self._broken is not None

    def _specs(self, store: Store, event: e.AnyEvent) -> Iterator[Readout]:
        match event:
            case e.SegmentSealed(segment=segment, bad=bad):
                if bad:
                    yield self._readout(store, segment.index, [], bad=True)
            case e.Settled(shard=name):
                shard = store.shard(name)
                parts = [] if shard is None else [shard]
                for index in lookbacks.touched(store, name):
                    yield self._readout(store, index, parts, bad=False)
            case e.Merged(segment=index):
                yield self._readout(store, index, store.parts(index), bad=True)

    def _readout(self, store: Store, index: int, parts: list[Shard], *, bad: bool) -> Readout:
        row, opened = store.segment(index), store.last(e.Opened)
        if row is None or opened is None:
            raise JournalError(f"The journal in {self.run_dir} has no segment {index}.")
        return Readout(
            segment=index,
            pieces=pieces_of(self._files, opened.inputs, row.segment),
            first_ordinal=row.segment.first_ordinal,
            lines=row.segment.lines,
            source_hash=row.source_hash,
            parts=tuple(part_of(self._files, shard) for shard in parts),
            bad=self._bad(row) if bad else None,
        )

    def _bad(self, row: SegmentRow) -> str | None:
        return self._files.path(segment_name(row.segment.index), ".bad") if row.bad or row.skipped else None
