"""What the tasks of one visit share: the journal, the ways out to the world, and the signs they leave for each other.

No task talks to another: each looks at the journal, acts, and rings the bell.
"""

from collections.abc import Callable

import anyio
import msgspec

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core import lifecycle, scheduling, verdicts
from streambatch.core.jobs import Piece
from streambatch.core.models import Segment, Shard, ShardState
from streambatch.core.report import Progress
from streambatch.edge import spooling
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import Clock
from streambatch.edge.files import Blocking, RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.edge.rawfiles import pieces_of
from streambatch.edge.serial import Serials
from streambatch.edge.workers import Executor
from streambatch.engine.brake import Brake
from streambatch.engine.spool import DiskWatch, Spool
from streambatch.errors import ConfigError, Paused, StorageError, StreambatchError
from streambatch.steps import Steps

YOUNG_S = 600.0  # how long validation may hold a `--once` visit

Notice = e.AnyEvent | Progress
Listener = Callable[[Notice], None]


class Bell:
    """Wakes whoever waits. Take a `ticket` before looking, so that a ring in between is not missed."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = anyio.Event()

    def ticket(self) -> anyio.Event:
        return self._event

    async def wait(self, ticket: anyio.Event, timeout_s: float) -> None:
        """Until the first ring after the ticket was taken, or the time-out."""
        with anyio.move_on_after(timeout_s):
            await ticket.wait()


class World(msgspec.Struct, frozen=True):
    """The edge, as one visit uses it."""

    api: BatchApi
    executor: Executor
    clock: Clock
    blocking: Blocking
    brake: Brake | None = None
    serials: Serials = msgspec.field(default_factory=Serials)
    free: Callable[[str], int] = spooling.free_bytes


class Visit:
    """One process's work on one run."""

    def __init__(self, config: Config, started: e.Started, files: RunFiles, journal: Journal, world: World) -> None:
        self.config = config
        self.started = started
        self.files = files
        self.journal = journal
        self.world = world
        self.bell = Bell()
        self.cancel_bell = Bell()  # rings once, when the visit begins to cancel
        self.capacity = _capacity(config)
        self.spool = Spool(config.max_spool_bytes, files, world.blocking, journal)
        self.disk = self._watch()
        self.steps: Steps  # set by the engine, which owns the parts that it needs
        self.tasks: anyio.abc.TaskGroup
        self.driving: dict[str, type[lifecycle.Step]] = {}  # claimed shards, and what is being done
        self.stuck: set[str] = set()  # shards that wait for a word of the user
        self.backoff: dict[str, scheduling.Backoff] = {}
        self.refused_alone: dict[str, str] = {}  # shards just refused with nothing of ours in the queue -> why
        self.ended: Ending | None = None
        self.cancelling = False
        self.once = config.once
        self.may_upload = False
        self.may_create = False
        self.maker_idle = False  # it waits for room, or is done
        self.awaits_rows = False  # it waits for what a stream has yet to bring
        self.maker_done = False
        self.phase = "starting"
        self.note = ""
        self.began = world.clock.monotonic()
        self.changed = self.began  # when a batch last moved
        self.date: tuple[float, float] | None = None  # the service's clock, and our monotonic one at that moment
        self.words: dict[str, str] = {}  # batch id -> the last status word seen, for batches in flight
        self.since: dict[str, float] = {}  # batch id -> when it was first polled
        self.leaving: dict[
            str, float
        ] = {}  # batch id -> when we asked to cancel it, because nobody waits for it any more
        if world.brake is not None:
            world.brake.on_release = self.bell.ring

    # -- the loop every shard goes through

    async def drive(self, shard: Shard) -> None:
        """Do what can be done for a claimed shard until it waits for others, or is done."""
        try:
            while (step := lifecycle.next_step(shard)) is not None:
                self.driving[shard.name] = type(step)
                event = await self.steps.perform(step)
                if isinstance(event, e.Downloaded | e.Settled):  # before anybody can remove them
                    await self.spool.fetched(shard, settled=isinstance(event, e.Settled))
                await self.journal.append(event)  # durable before believed
                shard = lifecycle.apply(shard, event)
        except Paused as pause:
            self.stuck.add(shard.name)
            self.end("paused", str(pause), 4)
        finally:
            self.release(shard.name)

    async def claim(self, name: str, *states: ShardState) -> Shard | None:
        """Take a shard that stands in one of these states now; None where another has it. A shard's events are journaled by
        whoever holds its claim, and by the poller while its batch is in flight: what a list said a moment ago is no claim.
        """
        if name in self.driving or name in self.stuck:
            return None
        self.driving[name] = lifecycle.Step
        shard = await self.journal.read(Store.shard, name)
        if shard is None or shard.state not in states:
            del self.driving[name]
            return None
        return shard

    def release(self, name: str) -> None:
        del self.driving[name]
        self.bell.ring()

    def start_driver(self, shard: Shard) -> None:
        """Hand a claimed shard, and the claim, to a driver."""
        step = lifecycle.next_step(shard)
        self.driving[shard.name] = lifecycle.Step if step is None else type(step)
        self.tasks.start_soon(self.drive, shard)

    def drivers(self, *steps: type[lifecycle.Step]) -> int:
        """How many drivers are at one of these steps."""
        return sum(step in steps for step in self.driving.values())

    # -- signs

    @property
    def held(self) -> bool:
        """Whether results that are here wait to be taken: until they are, no more are bought or fetched. A cancel does not wait."""
        return self.world.brake is not None and self.world.brake.held and not self.cancelling

    @property
    def rows_are_late(self) -> bool:
        """Whether rows that a stream has yet to bring are no reason to stay: the visit's time is over."""
        return self.awaits_rows and self.once and not self.config.once

    def end(
        self,
        state: str,
        message: str,
        exit_code: int,
        error: StreambatchError | None = None,
        *,
        of_errors: bool = False,
    ) -> None:
        """No new creates from now on: what is in flight is collected, then the visit ends. The first reason counts."""
        if self.ended is None:
            self.ended = Ending(state, message, exit_code, error, of_errors)
        self.bell.ring()

    def _watch(self) -> DiskWatch:
        world, folder = self.world, str(self.files.folder)
        away = spooling.elsewhere(self.config.output, folder)
        return DiskWatch(self.spool, world.free, folder, away, world.blocking, world.clock.monotonic, self._disk_is_low)

    def _disk_is_low(self, why: str) -> None:
        """Nothing more comes in; what is under way has its room."""
        self.end("stopped", why, 3, StorageError(why))

    def cancel(self) -> None:
        """Cancel what is in flight, salvage what it finished, then end."""
        if not self.cancelling:
            self.cancelling = True
            self.phase = "cancelling"
            self.end("cancelled", "The run was cancelled; rows that had finished are kept.", 4)
            self.cancel_bell.ring()

    def refused(self, shard: Shard, verdict: verdicts.Verdict) -> None:
        """The service would not take a shard: its model waits, or the run ends."""
        if isinstance(verdict.event, e.Refused):  # not a file that is lost, or a shard that is too large
            now, previous = self.world.clock.monotonic(), self.backoff.get(shard.model)
            self.backoff[shard.model] = scheduling.refused(previous, now, verdict.retry_after_s)
            if verdict.event.alone:
                self.refused_alone[shard.name] = verdict.event.reason
        if verdict.pause:
            self.end("paused", verdict.pause, 4)
        if verdict.halt:
            self.end("error", verdict.halt, 2, ConfigError(verdict.halt))
        if verdict.stop is not None:
            self.end("stopped", str(verdict.stop), 3, verdict.stop)

    def relieved(self, model: str) -> None:
        """Something of a model ended, so its queue has room again."""
        if model in self.backoff:
            self.backoff[model] = scheduling.relieved(self.backoff[model])

    def now_there(self) -> float:
        """The service's clock as it last told it, which may be hours from ours."""
        clock = self.world.clock
        return clock.wall() if self.date is None else self.date[0] + clock.monotonic() - self.date[1]

    def young(self, batch_id: str) -> bool:
        """Whether a batch may still fail at validation, or is about to be given up: a `--once` visit stays to see that."""
        if batch_id in self.leaving:
            return True
        since = self.since.get(batch_id)
        if since is None:
            return True
        return self.words.get(batch_id, "validating") == "validating" and self.world.clock.monotonic() - since < YOUNG_S

    # -- names

    def pieces(self, segment: Segment) -> tuple[Piece, ...]:
        """A segment's slices with their files."""
        return pieces_of(self.files, self.started.inputs, segment)


class Ending(msgspec.Struct, frozen=True):
    """Why a visit ends before the run is finished."""

    state: str
    message: str
    exit_code: int
    error: StreambatchError | None = None
    of_errors: bool = False  # because of the share of errors, whose figures are told when all is collected


def _capacity(config: Config) -> scheduling.Capacity:
    ahead = config.sealed_ahead if config.sealed_ahead else config.max_batches + 2 * config.max_transfers
    return scheduling.Capacity(config.max_batches, config.max_transfers, ahead)
