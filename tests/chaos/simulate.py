"""The simulation: the real engine on twins under a virtual clock, thousands of seeded schedules, with the same assertions.

`python -m tests.chaos --simulate N` lives N of them; `--simulate 1 --first K` replays one.
"""

import functools
import gc
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import pytest

from streambatch.config import Config, Mode
from streambatch.core.models import ShardLimits
from streambatch.errors import ApiError, ConfigError, JournalError, Paused, StorageError, StreambatchError
from tests.chaos import table, verify
from tests.chaos.life import Life
from tests.chaos.storm import Storm, climate
from tests.e2e import rig
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import config, simulate, visit

VISITS = 80
WILD = 20  # visits that are disturbed as the climate says; later ones less and less
MOST_OPERATIONS = 40_000
LONGEST_S = 20 * 86_400.0
WINDOW_S, STUCK_S = 900.0, 1800.0
MOST_ROWS = 50
BOUGHT, LOST, ORPHANS = "bought again", "rows lost", "orphan batches"
DIFFERS, JOURNAL, UNFINISHED, BROKEN = "output differs", "journal differs", "never finished", "stopped for no reason"
KILLED, INTERRUPTED, DISK = "engine killed", "engine interrupted (Ctrl-C)", "journal could not be written"
DELETED, RESTORED = "run directory deleted", "old copy of the run directory restored"
WITH_REMAINDERS = "run directory deleted with remainders out"
CANCELLED, BY_US = "run cancelled by the user", "visit left while batches fly"

T = TypeVar("T")


class Violation(AssertionError):  # noqa: N818 - it is no error of ours, but what is looked for
    """A promise was broken; the text begins with which."""


class Killed(BaseException):
    """What runs on in a process that is dead finds that it can do nothing any more."""


class Process:
    """One visit's process: it can die at a virtual moment, or before or after its N-th write; nothing of it acts after that."""

    def __init__(self, storm: Storm, chance: random.Random, scope: anyio.CancelScope) -> None:
        self.dead = False
        self.broken = False
        self._storm, self._chance, self._scope = storm, chance, scope
        self._writes = 0
        self.dies_at = 0  # the write, from 1; 0: at none
        self.breaks_at = 0

    def die(self) -> None:
        self.dead = True
        self._scope.cancel()

    async def blocking(self, function: Callable[..., T], *args: object) -> T:
        """The file layer of this process."""
        name = getattr(function, "__name__", "")
        if name == "close":
            return function(*args)  # the system does that for the dead
        await anyio.lowlevel.checkpoint()
        self._check()
        self._storm.operations += 1
        if self._storm.operations > MOST_OPERATIONS:
            raise Violation(
                f"{UNFINISHED} after {MOST_OPERATIONS} operations and {anyio.current_time() / 3600:.0f} hours"
            )
        if name == "<lambda>":
            return function(*args)
        self._writes += 1
        if name == "append" and self._writes >= self.breaks_at > 0 and not self.broken:
            self.broken = True
            return self._broken_append(function, *args)
        if self._writes == self.dies_at and self._chance.random() < 0.5:
            self.die()
            self._check()
        done = function(*args)
        if self._writes == self.dies_at:
            self.die()
            self._check()
        return done

    def _broken_append(self, function: Callable[..., T], *args: object) -> T:
        """The disk fails a write of the journal."""
        self._storm.note(DISK)

        def fail(self: object, events: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("streambatch.edge.journal.Store._transaction", fail)
            return function(*args)

    def _check(self) -> None:
        if self.dead:
            raise Killed


@functools.cache
def calm_lines() -> dict[str, bytes]:
    """The output of an undisturbed run, by row."""
    folder = _folder()
    try:
        source = rig.write_requests(folder / "in.jsonl", MOST_ROWS)

        async def main() -> None:
            clock = VirtualClock()
            await visit(config(folder, source), MemoryBatchApi(clock), clock, random.Random(0))

        simulate(main, 0)
        lines = rig.read_lines(folder / "out.jsonl")
        assert len(lines) == MOST_ROWS
        return {json.loads(line)["custom_id"]: line for line in lines}
    finally:
        shutil.rmtree(folder)


class Schedule:
    """One seed: a run in some climate, disturbed and resumed until it is finished."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.name, self.climate = climate(seed)
        self.chance = random.Random(f"simulation {seed}")
        self.source = rig.write_requests(folder / "in.jsonl", self.climate.rows)
        self.output, self.run_dir = folder / "out.jsonl", folder / "out.jsonl.run"
        self.copy = folder / "copy"
        self.storm = Storm(seed, self.climate)
        self.storm.over = self.output.exists

    def live(self) -> Life:
        """Until it is finished. Raises Violation."""
        began = time.monotonic()
        visits = simulate(self._visits, self.seed)
        lost, again, orphans = self._check()
        took = time.monotonic() - began
        fired = dict(self.storm.fired)
        return Life(
            self.seed, fired, self.climate.rows, visits, again, lost, self.storm.billed, len(orphans), 0.0, took
        )

    # -- the run

    async def _visits(self) -> int:
        climate, storm = self.climate, self.storm
        self.clock = VirtualClock()
        self.api = MemoryBatchApi(
            VirtualClock(1_800_000_000.0 + climate.clock_off_s),
            fault=self._fault,
            status_of=storm.status_of,
            expire_at=storm.expire_at,
            cancelled_at=storm.cancelled_at,
            stuck=storm.stuck if climate.stuck else None,
            refuse=storm.refuse,
            wrong=storm.wrong,
            line_of=storm.line_of,
            content=storm.content,
            view=storm.view,
            list_lag_s=climate.lag_s,
            page_rows=climate.page_rows,
            window_s=WINDOW_S,
            duration_s=storm.duration,
            cancelling_s=climate.cancelling_s,
        )
        for kind, there in (("list lags", climate.lag_s), ("clock of the service is off", climate.clock_off_s)):
            if there:
                storm.note(kind)
        for number in range(VISITS):
            if await self._visit(number):
                storm.calm = True
                await anyio.sleep(2 * WINDOW_S)  # what still flies may end
                self.executed, self.batches = dict(self.api.executed), [batch.id for batch in self.api.batches]
                return number + 1
            if anyio.current_time() > LONGEST_S:
                break
            await self._between(number)
        raise Violation(f"{UNFINISHED} after {number + 1} visits and {anyio.current_time() / 3600:.0f} hours")

    def _config(self) -> Config:
        climate = self.climate
        return msgspec.structs.replace(
            config(self.folder, self.source),
            run_id="known" if climate.known else None,
            limits=ShardLimits(max_requests=climate.max_requests),
            max_batches=climate.batches,
            max_attempts=climate.attempts,
            remote_files=climate.remote_files,
            stuck_after_s=STUCK_S,
            poll_interval_s=20.0,  # the adaptive pace looks three times as often, and finds nothing more
        )

    async def _visit(self, number: int) -> bool:
        """Whether it finished the run."""
        chance, climate = self.chance, self.climate
        asked, mode, drawn = self._config(), Mode.RUN, chance.random()
        if drawn < 0.1:
            asked = msgspec.structs.replace(asked, once=True)
        elif drawn < 0.2:
            asked = msgspec.structs.replace(asked, stop_after_s=chance.uniform(0, 500))
        elif drawn < 0.2 + climate.cancelled and (self.run_dir / "journal.sqlite").exists():
            mode = Mode.CANCEL
        end_s = chance.expovariate(1 / climate.kill_s) * max(1, 5 * (number - WILD))
        writing, gentle = chance.random() < climate.killed_writing, chance.random() < 0.2
        state = "interrupted"
        with anyio.CancelScope() as scope:
            self.process = process = Process(self.storm, chance, scope)
            if number < WILD and writing:
                process.dies_at = 1 + int(chance.expovariate(1 / chance.choice((5, 20, 60))))
            elif gentle:
                scope.deadline = anyio.current_time() + end_s
            if number < WILD and chance.random() < climate.disk:
                process.breaks_at = 1 + int(chance.expovariate(1 / 20))
            state = await self._lived(asked, mode, end_s, timed=not (gentle or process.dies_at))
        if process.dead:
            self.storm.note(KILLED)
        elif scope.cancelled_caught:
            self.storm.note(INTERRUPTED)
        elif state == "cancelled":
            self.storm.note(CANCELLED)
        elif state == "in_flight":
            self.storm.note(BY_US)
        return state == "finished"

    async def _lived(self, asked: Config, mode: Mode, end_s: float, *, timed: bool) -> str:
        """How a visit ended, in a word."""
        process = self.process
        try:
            async with anyio.create_task_group() as tasks:
                if timed:
                    tasks.start_soon(self._die_later, process, end_s)
                summary = await visit(asked, self.api, self.clock, self.chance, mode=mode, blocking=process.blocking)
                tasks.cancel_scope.cancel()
        except (BaseExceptionGroup, StreambatchError, Violation, Killed, OSError) as error:
            if process.dead:
                return "killed"
            first = _first(error)
            if isinstance(first, Violation):
                raise first from error
            if not self._excused(first):
                raise Violation(f"{BROKEN}: {type(first).__name__}: {first}") from error
            return "stopped"
        return "killed" if process.dead else str(summary.state)

    def _excused(self, error: BaseException) -> bool:
        """Whether a visit may stop for that."""
        if isinstance(error, ConfigError):
            return "has not begun" in str(error)  # so there is nothing to cancel
        of_disk = self.process.broken and isinstance(error, (JournalError, StorageError))
        return of_disk or isinstance(error, (ApiError, Paused))

    async def _die_later(self, process: Process, after_s: float) -> None:
        await anyio.sleep(after_s)
        process.die()

    async def _fault(self, call: object) -> None:
        """A moment of a call: one of a dead process may still take effect, and nobody hears of it."""
        process = self.process
        with anyio.CancelScope(shield=process.dead):
            await self.storm.fault(call)  # type: ignore[arg-type]
        if process.dead and (call.after or self.chance.random() < 0.5):  # type: ignore[attr-defined]
            raise Killed

    # -- between visits

    async def _between(self, number: int) -> None:
        chance, climate, run_dir = self.chance, self.climate, self.run_dir
        if chance.random() < 0.5:
            await anyio.sleep(chance.expovariate(1 / chance.choice((30.0, 300.0, 3000.0))))
        if number >= WILD or self.storm.over() or os.path.exists(f"{self.output}.errors"):
            return
        there = (run_dir / "journal.sqlite").exists() and self.api.calls["create_batch"]
        if there and chance.random() < climate.deleted:
            self.storm.note(WITH_REMAINDERS if self._remainders() else DELETED)
            shutil.rmtree(run_dir)
        elif self.copy.exists() and chance.random() < climate.restored:
            self.storm.note(RESTORED)
            shutil.rmtree(run_dir, ignore_errors=True)
            os.rename(self.copy, run_dir)
        elif there and climate.restored and not self.copy.exists():
            shutil.copytree(run_dir, self.copy)

    def _remainders(self) -> bool:
        return any(batch.metadata.get("streambatch", "").split("/")[1][:1] == "r" for batch in self.api.batches)

    # -- what must be true at the end

    def _check(self) -> tuple[int, int, list[str]]:
        """Rows lost, results bought again, orphans: none. Raises Violation with all that is wrong."""
        self.storm.calm = True
        wrong: list[str] = []
        ids = [json.loads(line)["custom_id"] for line in rig.read_lines(self.source)]
        bad = [name for name in ids if self.storm.is_bad(name)]
        got, errors = rig.read_lines(self.output), rig.read_lines(f"{self.output}.errors")
        failed = [json.loads(line)["custom_id"] for line in errors]
        lost = set(ids) - {json.loads(line)["custom_id"] for line in got} - set(failed)
        if lost:
            wrong.append(f"{len(lost)} {LOST}")
        if got != [calm_lines()[name] for name in ids if name not in bad] or failed != bad:
            wrong.append(f"{DIFFERS}: {len(got)} lines and {len(failed)} errors of {len(ids)} rows, {len(bad)} bad")
        again = self._bought_again(ids)
        if again:
            wrong.append(f"{sum(again.values())} {BOUGHT}: {dict(list(again.items())[:3])}")
        orphans = self._orphans()
        if orphans:
            wrong.append(f"{ORPHANS}: {orphans[:3]}")
        try:
            rig.check_journal(self._config())
        except AssertionError as error:
            wrong.append(f"{JOURNAL}: {error}")
        if wrong:
            raise Violation("; ".join(wrong))
        return len(lost), sum(again.values()), orphans

    def _bought_again(self, ids: Sequence[str]) -> dict[str, int]:
        times = {custom_id: n for (custom_id, _), n in self.executed.items()}
        wanted = {name: self.storm.executions_of(name) for name in ids}
        again = {name: times.get(name, 0) - wanted[name] for name in ids if times.get(name, 0) > wanted[name]}
        if any(times.get(name, 0) < wanted[name] for name in ids):
            raise Violation(f"{LOST}: not each row was executed")
        return again

    def _orphans(self) -> list[str]:
        """Batches that no event of the journal speaks of."""
        spoken = verify.spoken(str(self.run_dir / "journal.sqlite"))
        return [batch for batch in self.batches if not verify.is_spoken_of(batch, spoken)]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        ours = (x for x in error.exceptions if isinstance(x, (StreambatchError, Violation)))
        error = next(ours, error.exceptions[0])
    return error


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="simulation-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def live(seed: int) -> Life | str:
    """A schedule's life, or why it failed."""
    folder = _folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # nothing here loses power
        schedule = Schedule(seed, folder)
        try:
            return schedule.live()
        except Exception as error:  # noqa: BLE001 - whatever breaks a schedule is told with its seed
            found = _violation(error)
            return f"schedule {seed} ({schedule.name}): {found if isinstance(found, Violation) else repr(found)}"
        finally:
            shutil.rmtree(folder)


def _violation(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = next((x for x in error.exceptions if isinstance(x, Violation)), error.exceptions[0])
    return error


# -- many


def run(seeds: Sequence[int], jobs: int) -> list[Life | str]:
    """All of them, in so many processes. The order in sets of words is the same in all, so that every seed replays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "0")
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), gc.freeze) as pool:
            return list(pool.map(live, seeds, chunksize=4))


def kinds(lives: Sequence[Life]) -> list[str]:
    """What fired in them."""
    return sorted({kind for life in lives for kind in life.fired})


def main(seeds: Sequence[int], jobs: int) -> int:
    """Live them and print the table; the exit code: 0 when all held."""
    began = time.monotonic()
    found = run(seeds, jobs)
    lives = [one for one in found if isinstance(one, Life)]
    print(table.table(lives, kinds(lives)))
    for seed, one in zip(seeds, found, strict=True):
        if isinstance(one, str):
            print(f"{one}\n  again: python -m tests.chaos --simulate 1 --first {seed}", file=sys.stderr)
    failed = len(found) - len(lives)
    print(f"\n{len(lives)} schedules held, {failed} failed, in {time.monotonic() - began:.0f} s.")
    return 1 if failed else 0
