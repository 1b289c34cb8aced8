"""A bounded spool: no deadlock, however small the cap, and never more on disk than the cap and one segment."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.configure import check_spool
from streambatch.core import events as e
from streambatch.core import spooling
from streambatch.core.report import Summary
from streambatch.core.spooling import Room
from streambatch.core.wire import BatchInfo
from streambatch.errors import ConfigError
from tests.e2e import rig
from tests.engine.test_virtual import check, duration, ids
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import Weather, config, simulate, visit, world

ROWS = 120
sizes = st.integers(0, 1000)


# -- one decision


@given(st.integers(1, 1000), sizes, sizes, st.none() | sizes, st.integers(0, 3), st.booleans())
def test_what_is_read_fits_or_is_the_oldest(
    cap: int, used: int, promised: int, need: int | None, n: int, b: bool
) -> None:
    room = Room(cap, used, promised)
    if room.may_read(need, unsealed=n, unmerged=b) and (n or b):
        assert used + promised + (need or 0) <= cap
        assert need is not None or not n, "of unknown size, alone"
    assert room.may_read(need, unsealed=0, unmerged=False), "the oldest is always let in"
    assert Room(None, used, promised).may_read(need, unsealed=n, unmerged=b)


@given(st.integers(1, 1000), sizes, sizes, sizes, st.booleans(), st.integers(0, 3))
def test_what_is_fetched_fits_or_is_in_turn(cap: int, used: int, promised: int, need: int, known: bool, n: int) -> None:
    room = Room(cap, used, promised)
    assert room.may_fetch(need, known=known, fetching=n, in_turn=True)
    if room.may_fetch(need, known=known, fetching=n, in_turn=False):
        assert used + promised + need <= cap
        assert known or not n


def test_what_must_stay_free_grows_with_what_is_under_way() -> None:
    assert spooling.needed_free(0, 0) == spooling.RESERVE_BYTES
    assert spooling.needed_free(spooling.RESERVE_BYTES, 5) == spooling.RESERVE_BYTES + 5


def test_a_spool_is_bounded_or_kept() -> None:
    check_spool({"max_spool_bytes": 1})
    with pytest.raises(ConfigError, match="leave one out"):
        check_spool({"max_spool_bytes": 1, "keep_spool": True})


# -- whole runs


class Gauge:
    """Sees how much lies in the spool whenever something was journaled, and the largest segment with all that is made of it."""

    def __init__(self, folder: Path) -> None:
        self.spool = folder / "out.jsonl.run" / "spool"
        self.peak = 0
        self.segments: dict[str, int] = {}
        self.shards = 0

    def hear(self, notice: object) -> None:
        if not isinstance(notice, e.Event):
            return
        total, by_segment = 0, dict[str, int]()
        for entry in os.scandir(self.spool):
            size = entry.stat().st_size
            total += size
            name = entry.name[:6]
            by_segment[name] = by_segment.get(name, 0) + size
        self.peak = max(self.peak, total)
        for name, size in by_segment.items():
            self.segments[name] = max(size, self.segments.get(name, 0))
        self.shards += isinstance(notice, e.SegmentSealed)

    @property
    def bound(self) -> int:
        """One segment: its shards and all that is made of them."""
        return max(self.segments.values())


def slow_first(batch: BatchInfo) -> float:
    return 20_000.0 if "/000000-0/" in batch.metadata["streambatch"] else 300.0


def run(
    folder: Path, cap: int | None, api: Callable[[VirtualClock], MemoryBatchApi], **changes: Any
) -> tuple[Summary, Gauge]:
    source = rig.write_requests(folder / "in.jsonl", ROWS)
    gauge = Gauge(folder)

    async def main() -> Summary:
        clock = VirtualClock()
        asked = config(folder, source, max_spool_bytes=cap, max_batches=64, **changes)
        return await visit(asked, api(clock), clock, random.Random(1), listen=gauge.hear)

    return simulate(main, 3), gauge


@pytest.mark.parametrize("segments", [0.01, 1, 3, 6])
def test_a_slow_first_segment_holds_the_rest_and_nothing_stands_still(tmp_path: Path, segments: float) -> None:
    one = run_free(tmp_path / "free")
    cap = int(segments * one)
    tmp = fresh(tmp_path / "capped")
    summary, gauge = run(tmp, cap, lambda clock: MemoryBatchApi(clock, duration_s=slow_first))
    assert (summary.state, summary.done) == ("finished", ROWS)
    assert ids(tmp / "out.jsonl") == ids(tmp / "in.jsonl")
    assert gauge.peak <= cap + gauge.bound


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


def run_free(folder: Path) -> int:
    """The largest segment's bytes in a run without a cap, which then takes much more than any cap of these tests."""
    summary, gauge = run(fresh(folder), None, lambda clock: MemoryBatchApi(clock, duration_s=slow_first))
    assert summary.done == ROWS
    one = max(gauge.segments.values())
    assert gauge.peak > 9 * one
    return one


def test_an_expired_first_segment_goes_again_while_the_cap_holds_the_others(tmp_path: Path) -> None:
    def expire_at(batch_id: str) -> float | None:
        return 0.4 if first and first[0] == batch_id else None

    first: list[str] = []

    def api(clock: VirtualClock) -> MemoryBatchApi:
        return MemoryBatchApi(clock, duration_s=note_first, expire_at=expire_at, window_s=3600.0)

    def note_first(batch: BatchInfo) -> float:
        if "/000000-0/" in batch.metadata["streambatch"]:
            first.append(batch.id)
        return slow_first(batch)

    cap = 3 * 2500
    summary, gauge = run(tmp_path, cap, api, pool_wait_s=50_000.0)
    assert (summary.state, summary.done, summary.failed) == ("finished", ROWS, 0)
    assert gauge.peak <= cap + gauge.bound
    assert summary.retried


@pytest.mark.parametrize("seed", range(5))
def test_no_weather_and_no_kill_breaks_the_cap_or_buys_twice(tmp_path: Path, seed: int) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)
    weather = Weather(seed, lost=0.05, refused=0.05, failing=0.15, expiring=0.2)
    chance = random.Random(seed)
    gauge = Gauge(tmp_path)
    cap = chance.choice([1, 4000, 9000, 20_000])
    ends: list[str] = []

    async def main() -> None:
        clock = VirtualClock()
        api = world(clock, weather, list_lag_s=30.0, window_s=3600.0, duration_s=lambda batch: duration(batch, seed))
        asked = config(tmp_path, source, max_attempts=9, max_spool_bytes=cap, max_batches=64)
        for _ in range(400):
            with anyio.move_on_after(chance.expovariate(1 / 3000.0)):
                summary = await visit(asked, api, clock, chance, listen=gauge.hear)
                ends.append(summary.state)
                break
        check(tmp_path, api, weather)

    simulate(main, seed)
    assert ends == ["finished"]
    assert gauge.peak <= cap + 2 * gauge.bound
