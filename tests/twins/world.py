"""The whole engine in a world of twins: virtual time, inline files and workers, a provider in memory, one seed for all chance."""

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import trio
import trio.testing
from trio._core import _run as trio_run

from streambatch.config import Config, Mode
from streambatch.core.models import ShardLimits
from streambatch.core.report import Summary
from streambatch.edge import files
from streambatch.edge.client import BatchApi
from streambatch.edge.files import Blocking
from streambatch.edge.retrying import RetryingApi
from streambatch.edge.service import Service
from streambatch.edge.workers import InlineExecutor
from streambatch.engine import House
from streambatch.engine import run as run_engine
from streambatch.errors import ApiError
from tests.twins.api import Call, MemoryBatchApi, Row
from tests.twins.clock import VirtualClock

DAY_S = 86_400.0


def simulate(main: Callable[[], Any], seed: int) -> Any:
    """Run an async function under trio with a clock that jumps, and with every choice of the scheduler drawn from `seed`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        trio_run._r.seed(seed)
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def config(tmp: Path, source: Path, **changes: Any) -> Config:
    """A run as users have it: default poll, grace and waits, small shards."""
    plain = Config(
        inputs=(str(source),),
        output=str(tmp / "out.jsonl"),
        run_dir=str(tmp / "out.jsonl.run"),
        service=Service(base_url="http://127.0.0.1:1/v1", api_key="sk-twin-0123456789"),
        command="the same command",
        limits=ShardLimits(max_requests=10),
        max_batches=8,
    )
    return msgspec.structs.replace(plain, **changes)


async def visit(
    config: Config,
    api: BatchApi,
    clock: VirtualClock,
    chance: random.Random,
    journal: str | None = None,
    mode: Mode = Mode.RUN,
    listen: Callable[[Any], None] | None = None,
    blocking: Blocking = files.inline,
    free: Callable[[str], int] = lambda folder: 1 << 40,
) -> Summary:
    """One visit of the real engine to `api`, behind the real retries."""

    @contextlib.asynccontextmanager
    async def connect(config: Config) -> AsyncIterator[BatchApi]:
        yield RetryingApi(api, config.retry, clock, chance.random)

    house = House(
        clock,
        blocking,
        lambda config, size: InlineExecutor(),
        lambda run: str(run.journal) if journal is None else journal,
        look_every_s=600.0,
        patient=lambda: files.inline,
        free=free,
    )
    return await run_engine(config, connect, listen, mode=mode, house=house)


class Weather:
    """Faults drawn from one seed. Each `*_rate` is a probability per call or row; nothing happens at 0."""

    def __init__(
        self, seed: int, *, lost: float = 0.0, refused: float = 0.0, failing: float = 0.0, expiring: float = 0.0
    ) -> None:
        self._seed = seed
        self._chance = random.Random(seed)
        self._lost, self._refused, self._failing, self._expiring = lost, refused, failing, expiring
        self.happened: dict[str, int] = {}

    def _draw(self, what: str, rate: float, *key: object) -> bool:
        drawn = random.Random(f"{self._seed}/{what}/{key}").random() if key else self._chance.random()
        if drawn < rate:
            self.happened[what] = self.happened.get(what, 0) + 1
            return True
        return False

    async def fault(self, call: Call) -> None:
        """Answers lost after the effect, and refusals before it."""
        await anyio.sleep(self._chance.uniform(0.0, 2.0))
        if call.after and self._draw(f"lost {call.name}", self._lost):
            raise ApiError("The connection was cut.", retryable=True, maybe_done=call.name == "create_batch")
        if not call.after and self._draw(f"refused {call.name}", self._refused):
            raise ApiError(
                "The service is overloaded (503).", status=503, retryable=True, maybe_done=call.name == "create_batch"
            )

    def status_of(self, row: Row) -> int:
        """A row fails at most twice, whatever the rate, so that three attempts are enough."""
        failing = row.executed < 2 and self._draw("failing row", self._failing, row.custom_id, row.executed)
        return 500 if failing else 200

    def executions_of(self, custom_id: str) -> int:
        """How often a row must run until it succeeds."""
        return next(n for n in range(3) if self.status_of(Row(custom_id, b"", n)) == 200) + 1

    def expire_at(self, batch_id: str) -> float | None:
        return 0.6 if self._draw("expiring batch", self._expiring, batch_id) else None


def world(clock: VirtualClock, weather: Weather, **more: Any) -> MemoryBatchApi:
    """A provider under this weather."""
    return MemoryBatchApi(clock, fault=weather.fault, status_of=weather.status_of, expire_at=weather.expire_at, **more)
