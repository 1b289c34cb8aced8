"""The simulation: the real engine on twins under a virtual clock, thousands of seeded schedules, with the same assertions."""

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
import pytest

from streambatch.config import Config, Mode
from streambatch.core.wire import BatchError, BatchInfo
from streambatch.errors import StreambatchError
from tests.chaos import verify
from tests.chaos.life import Life
from tests.e2e import rig
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import Weather, config, simulate, visit

VISITS = 600
FULL = BatchError("token_limit_exceeded", "Enqueued token limit reached for m.")
ODD = BatchError("invalid_request_error", "odd")
NO_FILE = BatchError("invalid_request", "Cannot find file f.", None, "file_id")


class Schedule:
    """One seed: a run in some weather, killed, stopped, cancelled and resumed at random virtual moments."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.chance = random.Random(f"simulation {seed}")
        self.lost = seed % 3 == 2  # the run directory goes, too; then nothing makes remainders
        self.rows = self.chance.choice((25, 60, 60, 95))
        self.source = rig.write_requests(folder / "in.jsonl", self.rows)
        self.fired: Counter[str] = Counter()
        self.calm = False
        self.weather = Weather(
            seed,
            lost=self.chance.choice((0, 0.05, 0.2)),
            refused=self.chance.choice((0, 0.05, 0.2)),
            failing=0 if self.lost else self.chance.choice((0, 0.15)),
            expiring=0 if self.lost else self.chance.choice((0, 0.2, 0.5)),
        )

    def live(self) -> Life:
        """Until it is finished. Raises AssertionError."""
        began = time.monotonic()
        visits, orphans = simulate(self._visits, self.seed)
        lost, again = self._rows_lost(), self._bought_again()
        assert (lost, again, orphans) == (0, 0, 0), f"{lost} rows lost, {again} bought again, {orphans} orphans"
        fired = dict(Counter(self.weather.happened) + self.fired)
        return Life(self.seed, fired, self.rows, visits, again, lost, 0, orphans, 0.0, time.monotonic() - began)

    async def _visits(self) -> tuple[int, int]:
        clock = VirtualClock()
        self.api = MemoryBatchApi(
            clock,
            fault=self._fault,
            status_of=self.weather.status_of,
            expire_at=self.weather.expire_at,
            refuse=self._refuse,
            list_lag_s=self._drawn("list lags", (0.0, 30.0, 100.0)),
            window_s=3600.0,
            duration_s=self._duration,
            cancelling_s=self.chance.choice((0.0, 60.0)),
        )
        asked = self._config()
        for number in range(VISITS):
            if await self._visit(asked, clock, number):
                return number + 1, await self._orphans()
            if self.lost and number < 50 and self.chance.random() < 0.3 and Path(asked.run_dir).exists():
                shutil.rmtree(asked.run_dir)
                self.fired["run directory deleted"] += 1
        raise AssertionError(f"not finished after {VISITS} visits")

    def _config(self) -> Config:
        batches, transfers = self.chance.choice((1, 3, 8)), self.chance.choice((1, 4))
        plain = config(self.folder, self.source, max_attempts=50, max_batches=batches, max_transfers=transfers)
        return msgspec.structs.replace(plain, run_id="known") if self.lost else plain

    async def _visit(self, asked: Config, clock: VirtualClock, number: int) -> bool:
        """Whether it finished the run."""
        plain, mode, drawn = asked, Mode.RUN, self.chance.random()
        if drawn < 0.2:
            asked = msgspec.structs.replace(asked, once=True)
        elif drawn < 0.3:
            asked = msgspec.structs.replace(asked, stop_after_s=self.chance.uniform(0, 500))
        elif drawn < 0.4 and not self.lost and number:
            mode = Mode.CANCEL
            self.fired["run cancelled by the user"] += 1
        kill_s = self.chance.expovariate(1 / self.chance.choice((60.0, 600.0, 3000.0)))
        with anyio.move_on_after(kill_s) as life:
            try:
                summary = await visit(asked, self.api, clock, self.chance, mode=mode)
            except StreambatchError as error:
                self.fired[f"stopped by {type(error).__name__}"] += 1
                return False
            return summary.state == "finished" and plain.limit is None
        self.fired["engine killed"] += life.cancelled_caught
        return False

    def _drawn(self, what: str, choices: Sequence[float]) -> float:
        found = self.chance.choice(choices)
        self.fired[what] += found > 0
        return found

    def _duration(self, batch: BatchInfo) -> float:
        return random.Random(f"{self.seed}/{batch.id}").lognormvariate(5.5, 1.0)

    def _refuse(self, batch: BatchInfo) -> BatchError | None:
        drawn = random.Random(f"{self.seed}/{batch.id}/refuse").random()
        chosen = FULL if drawn < 0.1 else NO_FILE if drawn < 0.13 else ODD if drawn < 0.16 and not self.lost else None
        if chosen is not None:
            self.fired[f"batch fails: {chosen.message[:24]}"] += 1
        return chosen

    async def _fault(self, call: Call) -> None:
        if not self.calm:
            await self.weather.fault(call)

    async def _orphans(self) -> int:
        """Batches that no event of the journal speaks of."""
        self.calm = True
        spoken = verify.spoken(f"{self.folder}/out.jsonl.run/journal.sqlite")
        unknown, after = 0, None
        while True:
            page = await self.api.list_batches(after=after, limit=100)
            unknown += sum(not verify.is_spoken_of(batch.id, spoken) for batch in page.data)
            if not page.has_more:
                return unknown
            after = page.last_id

    def _ids(self, path: Path) -> list[str]:
        return [json.loads(line)["custom_id"] for line in rig.read_lines(path)]

    def _rows_lost(self) -> int:
        wanted, got = self._ids(self.source), self._ids(self.folder / "out.jsonl")
        assert got == wanted or set(wanted) - set(got), "rows doubled or out of order"
        return len(set(wanted) - set(got))

    def _bought_again(self) -> int:
        times = {custom_id: n for (custom_id, _), n in self.api.executed.items()}
        happened = dict(self.weather.happened)  # asking the weather counts
        wanted = {custom_id: self.weather.executions_of(custom_id) for custom_id in self._ids(self.source)}
        self.weather.happened = happened
        assert set(times) == set(wanted), "not each row was executed"
        return sum(max(0, times[name] - wanted[name]) for name in wanted)


def live(seed: int) -> Life | str:
    """A schedule's life, or why it failed."""
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # nothing here loses power
        try:
            return Schedule(seed, folder).live()
        except (AssertionError, StreambatchError, OSError) as error:
            return f"schedule {seed}: {type(error).__name__}: {error}"
        except BaseExceptionGroup as group:
            return f"schedule {seed}: {group!r}"
        finally:
            shutil.rmtree(folder)


def kinds(lives: Sequence[Life]) -> list[str]:
    """What fired in them."""
    return sorted({kind for life in lives for kind in life.fired})
