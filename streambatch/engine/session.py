"""One visit to one run, from the open journal on: what it must agree with, its tasks, and how it ended."""

import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Iterator
from datetime import datetime

import anyio
import msgspec

from streambatch.config import Config, Mode
from streambatch.core import events as e
from streambatch.core import lifecycle, tags
from streambatch.core.models import ShardState
from streambatch.core.purging import KINDS
from streambatch.core.report import Summary
from streambatch.edge import lookbacks, pointers, remotes
from streambatch.edge.client import BatchApi
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.edge.serial import Serials
from streambatch.edge.workers import Executor
from streambatch.engine import inspect, opening
from streambatch.engine.adoption import Adoption
from streambatch.engine.collector import Collector
from streambatch.engine.context import Listener, Visit, World
from streambatch.engine.disposal import Disposal
from streambatch.engine.errorwatch import ErrorWatch
from streambatch.engine.house import Connect, House
from streambatch.engine.inputs import Inputs
from streambatch.engine.maker import Maker
from streambatch.engine.merging import append_prefix, merged_ends
from streambatch.engine.poller import Poller
from streambatch.engine.pool import Pool
from streambatch.engine.publishing import Publisher, errors_name
from streambatch.engine.scheduler import Scheduler
from streambatch.engine.ticker import Ticker
from streambatch.errors import ConfigError, StreambatchError
from streambatch.steps import Order, Steps

MOST_NAMED = 2500  # files that are counted for a message
WINDOW_S = 86_400.0  # in which a service executes a batch


class Session:
    """One visit, from the open journal on."""

    def __init__(
        self,
        config: Config,
        connect: Connect,
        listen: Listener,
        mode: Mode,
        house: House,
        files: RunFiles,
        store: Store,
        journal: Journal,
        began: float,
        serials: Serials,
    ) -> None:
        self._config = config
        self._connect = connect
        self._listen = listen
        self._mode = mode
        self._house = house
        self._files = files
        self._store = store
        self._journal = journal
        self._began = began
        self._serials = serials
        self._inputs = Inputs(config, serials, store, journal, house.blocking, listen)
        self._publisher = Publisher(
            config.output, files, journal, house.blocking, overwrite=config.if_exists == "overwrite"
        )

    async def run(self) -> Summary:
        started = self._store.last(e.Started)
        if started is None:
            opening.refuse_lost_journal(self._config, self._files)
            if self._config.if_exists == "skip" and os.path.exists(self._config.output):
                return self._summary("finished", 0, f"{self._config.output} exists; skipped.", None)
            opening.refuse_existing(self._config)  # also where an earlier visit failed before it began
        if started is None or self._mode is not Mode.CANCEL:
            await self._inputs.look(started)
        if self._mode is not Mode.CANCEL:  # its journal is there, and nothing was bought yet
            await self._house.blocking(pointers.point, self._config.output, str(self._files.folder))
        if self._store.last(e.Publishing) is not None:
            await self._inputs.compare()
        if await self._nothing_new():
            return await self._cleared(self._finished("Nothing to do: the run was finished before."))
        if self._store.last(e.Publishing) is not None:
            await self._publish()
            return await self._cleared(self._finished("Finished."))
        try:
            async with self._connect(self._config) as api:
                return await self._visit(api, started)
        except BaseExceptionGroup as group:
            first = _first_cause(group)
            raise first from (group if first.__cause__ is None else first.__cause__)

    # -- before the service is asked

    async def _nothing_new(self) -> bool:
        """Whether a finished run has no new rows; one that has is opened again."""
        if self._store.last(e.Published) is None:
            return False
        if self._mode is Mode.CANCEL:
            return True
        exhausted = self._store.last(e.Exhausted)
        limit, rows = self._config.limit, self._store.totals().get("rows", 0)
        more = exhausted is not None and exhausted.limited
        if (limit is None or limit > rows) and (more or await self._inputs.grown()):
            await self._publisher.reopen()
            return False
        await self._publisher.check()
        return True

    # -- the visit

    async def _visit(self, api: BatchApi, started: e.Started | None) -> Summary:
        config, house = self._config, self._house
        if started is None:
            if self._mode is Mode.CANCEL:
                raise ConfigError(f"The run in {config.run_dir} has not begun; there is nothing to cancel.")
            started = await self._start(api)
        inputs = started.inputs if self._mode is Mode.CANCEL else self._inputs.files
        started = msgspec.structs.replace(started, inputs=inputs)
        opened = opening.opened(config, self._files, inputs)
        await self._journal.append(msgspec.structs.replace(opened, exclusive=not self._store.shared))
        await house.blocking(self._files.cut_sinks, *await merged_ends(self._journal))
        await self._sweep()
        async with self._executor(self._inputs.size_bytes) as executor:
            world = World(api, executor, house.clock, house.blocking, house.brake, self._serials, house.free)
            visit = Visit(config, started, self._files, self._journal, world)
            disposal = Disposal(visit)
            await self._work(visit, disposal)
            await append_prefix(visit)
        return self._tidied(await self._ending(visit), await disposal.last())

    async def _cleared(self, summary: Summary) -> Summary:
        """The summary of a finished run, once files are deleted at the service that a visit which was killed had left there."""
        config, started = self._config, self._store.last(e.Started)
        kinds = KINDS.get(config.remote_files, ())
        if started is None or self._mode is Mode.CANCEL or not remotes.disposable(self._store, kinds, 1):
            return summary
        try:
            async with self._connect(config) as api, self._executor(0) as executor:
                world = World(api, executor, self._house.clock, self._house.blocking)
                left = await Disposal(Visit(config, started, self._files, self._journal, world)).last()
        except (StreambatchError, BaseExceptionGroup) as error:
            cause = _first_cause(error) if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(cause, StreambatchError):
                raise
            left = len(remotes.disposable(self._store, kinds, MOST_NAMED))  # the run is finished all the same
        return self._tidied(summary, left)

    @contextlib.asynccontextmanager
    async def _executor(self, size: int) -> AsyncIterator[Executor]:
        """Workers for so many bytes of input; they leave when the visit does, however it ends."""
        executor = self._house.executor(self._config, size)
        try:
            yield executor
        finally:
            with anyio.CancelScope(shield=True):
                await executor.aclose()

    async def _sweep(self) -> None:
        """Remove what killed processes left in the spool."""
        await self._house.blocking(self._files.sweep_temporaries)
        totals = self._store.totals()
        merged = 0 if self._config.keep_spool else totals.get("segments_merged", 0)
        await self._house.blocking(self._files.sweep_raw, merged, totals.get("segments", 0))

    async def _start(self, api: BatchApi) -> e.Started:
        """The first call also shows that the key and the address are right, before anything is made."""
        page = await api.list_batches(None, 1)
        known = self._config.run_id
        started = e.Started(
            run_id=opening.new_run_id() if known is None else known,
            settings=self._inputs.settings,
            inputs=self._inputs.files,
            server_date=page.server_date if page.server_date is not None else self._house.clock.wall(),
            known_id=known is not None,
        )
        await self._journal.append(started)
        return started

    async def _work(self, visit: Visit, disposal: Disposal) -> None:
        """All tasks, until the collector says that the visit is over."""
        adoption = Adoption(visit, tags.cut_text(visit.started.settings))
        visit.steps = self._steps(visit, adoption)
        ticker = Ticker(visit, self._listen, self._house.look_every_s)
        async with anyio.create_task_group() as tasks:
            visit.tasks = tasks
            await visit.spool.open()
            tasks.start_soon(visit.disk.run, 10 * self._house.look_every_s)
            await self._resume(visit)
            if self._mode is Mode.CANCEL:
                visit.cancel()
                await adoption.first_sweep()
            else:
                tasks.start_soon(Maker(visit, adoption, self._inputs.reading).run)
                tasks.start_soon(Scheduler(visit, adoption).run)
            tasks.start_soon(Poller(visit, adoption).run)
            tasks.start_soon(ticker.run)
            tasks.start_soon(_hurry, visit.steps)
            tasks.start_soon(disposal.run)
            await Collector(visit, Pool(visit, adoption.spares)).run()
            tasks.cancel_scope.cancel()
        await ticker.last()

    def _steps(self, visit: Visit, adoption: Adoption) -> Steps:
        return Steps(
            Order(
                visit.started.run_id,
                visit.started.settings.shaping.endpoint,
                tags.cut_text(visit.started.settings),
                self._config.labels,
                self._config.max_attempts,
                self._config.adopt_grace_s,
                self._config.accept_gone,
            ),
            visit.world.api,
            visit.journal,
            visit.files,
            visit.world.executor,
            visit.world.blocking,
            visit.world.clock,
            anyio.CapacityLimiter(self._config.max_transfers),
            adoption.search,
            visit.refused,
        )

    async def _resume(self, visit: Visit) -> None:
        """An intent without an answer is in doubt; a doubt is searched."""
        for listed in await visit.journal.read(Store.shards, (ShardState.INTENDED, ShardState.DOUBTED)):
            shard = await visit.claim(listed.name, listed.state)
            if shard is None:
                continue
            if shard.state is ShardState.INTENDED:
                event = e.Doubted(
                    shard=shard.name, create=shard.create, reason="the process ended before the answer came"
                )
                await visit.journal.append(event)
                shard = lifecycle.apply(shard, event)
            visit.start_driver(shard)

    # -- how it ended

    async def _ending(self, visit: Visit) -> Summary:
        ended = visit.ended
        if ended is None:
            await self._publish()
            return self._finished("Finished.")
        if ended.error is not None:
            raise ended.error
        message, command = ended.message, self._config.command
        if ended.of_errors:
            message, command = await ErrorWatch(visit).told(message)
        return self._summary(
            ended.state, ended.exit_code, f"{message}{self._when()}" if ended.exit_code == 5 else message, command
        )

    def _tidied(self, summary: Summary, files: int) -> Summary:
        """The summary, with a word on merged files that could not be deleted at the service."""
        if not files:
            return summary
        run = self._config.run_dir if self._config.output == "-" else self._config.output
        them = "1 file of merged rows stays" if files == 1 else f"{files} files of merged rows stay"
        note = f"{them} at the service; streambatch purge {shlex.quote(run)} deletes what it can."
        return msgspec.structs.replace(summary, message=f"{summary.message} {note}")

    def _when(self) -> str:
        """When to come again, in words."""
        since = lookbacks.flown_since(self._store)
        if since is None:
            return ""
        last = datetime.fromtimestamp(since + WINDOW_S).astimezone()
        return f" Come again at any time; the last of them ends by {last:%Y-%m-%d %H:%M} ({last:%Z}) at the latest."

    async def _publish(self) -> None:
        await self._publisher.publish(self._exit_code())

    def _exit_code(self) -> int:
        totals = self._store.totals()
        errors = totals.get("failed", 0) + totals.get("bad", 0)
        return 6 if self._config.max_errors.exceeded(errors, totals.get("rows", 0)) else 0

    def _finished(self, message: str) -> Summary:
        published = self._store.last(e.Published)
        code = self._exit_code() if published is None else published.exit_code
        if code == 6:
            where = errors_name(self._config.output, self._config.run_dir)
            message = f"{message.rstrip('.')}, with more row errors than allowed; they are in {where}."
        return self._summary("finished", code, message, None)

    def _summary(self, state: str, exit_code: int, message: str, command: str | None) -> Summary:
        return inspect.summary(
            self._store,
            output=self._config.output,
            run_dir=self._config.run_dir,
            state=state,
            exit_code=exit_code,
            message=message,
            next_command=command,
            elapsed_s=self._house.clock.monotonic() - self._began,
        )


async def _hurry(steps: Steps) -> None:
    """Stands by until the visit is stopped, then gives creates on their way a last few seconds."""
    try:
        await anyio.sleep_forever()
    finally:
        steps.hurry()


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of ours in a group of failures; else the first of any."""
    leaves = list(_leaves(group))
    return next((x for x in leaves if isinstance(x, StreambatchError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
