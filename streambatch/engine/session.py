"""One visit to one run, from the open journal on: what it must agree with, its tasks, and how it ended."""

from collections.abc import Iterator

import anyio
import msgspec

from streambatch.config import Config, Mode
from streambatch.core import events as e
from streambatch.core import lifecycle, tags
from streambatch.core.models import InputFile, ShardState
from streambatch.core.report import Summary
from streambatch.edge import sources
from streambatch.edge.client import BatchApi
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.engine import inspect, opening
from streambatch.engine.adoption import Adoption
from streambatch.engine.collector import Collector
from streambatch.engine.context import Listener, Visit, World
from streambatch.engine.house import Connect, House
from streambatch.engine.maker import Maker
from streambatch.engine.poller import Poller
from streambatch.engine.pool import Pool
from streambatch.engine.publishing import Publisher, errors_name
from streambatch.engine.scheduler import Scheduler
from streambatch.engine.ticker import Ticker
from streambatch.errors import ConfigError, StreambatchError
from streambatch.steps import Order, Steps


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
        self._publisher = Publisher(config.output, files, journal, house.blocking)

    async def run(self) -> Summary:
        started = self._store.last(e.Started)
        if started is None:
            opening.refuse_lost_journal(self._config, self._files)
        inputs = await self._inputs(started)
        if await self._nothing_new(inputs):
            return self._finished("Nothing to do: the run was finished before.")
        if self._store.last(e.Publishing) is not None:
            await self._publish()
            return self._finished("Finished.")
        try:
            async with self._connect(self._config) as api:
                return await self._visit(api, started, inputs)
        except BaseExceptionGroup as group:
            raise _first_cause(group) from group

    # -- before the service is asked

    async def _inputs(self, started: e.Started | None) -> tuple[InputFile, ...]:
        if self._mode is Mode.CANCEL and started is not None:
            return started.inputs
        inputs = await self._house.blocking(sources.discover, self._config.inputs)
        self._settings = await self._house.blocking(opening.settings_of, self._config, inputs)
        if started is not None:
            opening.agree(self._config, started, self._settings, inputs)
            opened = self._store.last(e.Opened)
            known = started.inputs if opened is None else opened.inputs
            await opening.check_inputs(inputs, known, self._journal, self._house.blocking)
        return inputs

    async def _nothing_new(self, inputs: tuple[InputFile, ...]) -> bool:
        """Whether a finished run has no new rows; one that has is opened again."""
        if self._store.last(e.Published) is None:
            return False
        if self._mode is Mode.CANCEL:
            return True
        exhausted, last = self._store.last(e.Exhausted), self._store.last_segment()
        limit, rows = self._config.limit, self._store.totals().get("rows", 0)
        more = exhausted is not None and exhausted.limited
        ends = (0, 0) if last is None else last.segment.end
        grown = any((k > ends[0] and f.size) or (k == ends[0] and f.size > ends[1]) for k, f in enumerate(inputs))
        if (more or grown) and (limit is None or limit > rows):
            await self._publisher.reopen()
            return False
        await self._publisher.check()
        return True

    # -- the visit

    async def _visit(self, api: BatchApi, started: e.Started | None, inputs: tuple[InputFile, ...]) -> Summary:
        config, house = self._config, self._house
        if started is None:
            if self._mode is Mode.CANCEL:
                raise ConfigError(f"The run in {config.run_dir} has not begun; there is nothing to cancel.")
            started = await self._start(api, inputs)
        started = msgspec.structs.replace(started, inputs=inputs)
        await self._journal.append(opening.opened(config, self._files, inputs))
        last = self._store.last(e.Merged)
        ends = (0, 0) if last is None else (last.output_end, last.errors_end)
        await house.blocking(self._files.cut_sinks, *ends)
        await house.blocking(self._files.sweep_temporaries)
        executor = house.executor(config, sum(file.size for file in inputs))
        world = World(api, executor, house.clock, house.blocking)
        try:
            visit = Visit(config, started, self._files, self._journal, world)
            await self._work(visit)
        finally:
            with anyio.CancelScope(shield=True):
                await executor.aclose()
        return await self._ending(visit)

    async def _start(self, api: BatchApi, inputs: tuple[InputFile, ...]) -> e.Started:
        """The first call also shows that the key and the address are right, before anything is made."""
        page = await api.list_batches(None, 1)
        known = self._config.run_id
        started = e.Started(
            run_id=opening.new_run_id() if known is None else known,
            settings=self._settings,
            inputs=inputs,
            server_date=page.server_date if page.server_date is not None else self._house.clock.wall(),
            known_id=known is not None,
        )
        await self._journal.append(started)
        return started

    async def _work(self, visit: Visit) -> None:
        """All tasks, until the collector says that the visit is over."""
        adoption = Adoption(visit, tags.cut_text(visit.started.settings))
        visit.steps = Steps(
            Order(
                visit.started.run_id,
                visit.started.settings.shaping.endpoint,
                tags.cut_text(visit.started.settings),
                self._config.labels,
                self._config.max_attempts,
            ),
            visit.world.api,
            visit.journal,
            visit.files,
            visit.world.executor,
            visit.world.blocking,
            anyio.CapacityLimiter(self._config.max_transfers),
            adoption.search,
            visit.refused,
        )
        ticker = Ticker(visit, self._listen, self._house.look_every_s)
        async with anyio.create_task_group() as tasks:
            visit.tasks = tasks
            await self._resume(visit)
            if self._mode is Mode.CANCEL:
                visit.cancel()
                await adoption.first_sweep()
            else:
                tasks.start_soon(Maker(visit, adoption).run)
                tasks.start_soon(Scheduler(visit, adoption).run)
            tasks.start_soon(Poller(visit, adoption).run)
            tasks.start_soon(ticker.run)
            tasks.start_soon(_hurry, visit.steps)
            await Collector(visit, Pool(visit)).run()
            tasks.cancel_scope.cancel()
        await ticker.last()

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
        return self._summary(ended.state, ended.exit_code, ended.message, self._config.command)

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
