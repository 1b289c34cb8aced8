"""The real engine under a virtual clock on twins: days pass in moments, every seed replays, and no row is bought twice."""

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from streambatch.core.report import Summary
from streambatch.core.wire import BatchInfo
from tests.e2e import rig
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, Weather, config, simulate, visit, world

ROWS = 60


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in rig.read_lines(path)]


def test_a_run_of_24_hours_takes_less_than_a_second(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", ROWS)

    async def main() -> tuple[Summary, float, Counter[str]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=DAY_S - 600)
        summary = await visit(config(tmp_path, source), api, clock, random.Random(1), ":memory:")
        return summary, anyio.current_time(), api.calls

    began = time.process_time()
    summary, passed, calls = simulate(main, 1)
    assert time.process_time() - began < 5  # the figure is in the benchmarks; this only tells virtual from real
    assert (summary.done, summary.batches) == (ROWS, 6)
    assert DAY_S - 1200 < passed < DAY_S + 600
    assert ids(tmp_path / "out.jsonl") == ids(source)
    assert calls["list_batches"] < DAY_S / 60 + 100


def one_storm(folder: Path, seed: int) -> tuple[list[str], float, dict[str, int], int]:
    """A run in bad weather, killed and resumed at random virtual moments; its trace, to compare replays."""
    source = rig.write_requests(folder / "in.jsonl", ROWS)
    weather = Weather(seed, lost=0.05, refused=0.05, failing=0.15, expiring=0.2)
    chance = random.Random(seed)
    trace: list[str] = []

    async def main() -> tuple[float, int]:
        clock = VirtualClock()
        api = world(clock, weather, list_lag_s=30.0, window_s=3600.0, duration_s=lambda batch: duration(batch, seed))
        for _ in range(400):
            with anyio.move_on_after(chance.expovariate(1 / 600.0)) as life:
                summary = await visit(config(folder, source, max_attempts=9), api, clock, chance)
                trace.append(f"{summary.state} {summary.done} {summary.failed}")
                if summary.state == "finished":
                    break
            if life.cancelled_caught:
                trace.append(f"killed at {anyio.current_time():.3f}")
        check(folder, api, weather)
        return anyio.current_time(), api.calls.total()

    passed, calls = simulate(main, seed)
    return trace, passed, weather.happened, calls


def duration(batch: BatchInfo, seed: int) -> float:
    return random.Random(f"{seed}/{batch.id}").lognormvariate(5.5, 1.0)


def check(folder: Path, api: MemoryBatchApi, weather: Weather) -> None:
    """All rows, in order, each executed exactly until its first success."""
    assert ids(folder / "out.jsonl") == ids(folder / "in.jsonl")
    times = {custom_id: n for (custom_id, _), n in api.executed.items()}
    assert times == {custom_id: weather.executions_of(custom_id) for custom_id in ids(folder / "in.jsonl")}


@pytest.mark.parametrize("seed", range(16))
def test_no_row_is_bought_twice_in_any_weather(tmp_path: Path, seed: int) -> None:
    trace, _, happened, _ = one_storm(tmp_path, seed)
    assert trace[-1] == f"finished {ROWS} 0"
    assert happened.get("failing row", 0) > 0


def test_storms_really_have_every_kind_of_fault(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        trace, _, happened, _ = one_storm(folder, 100 + seed)
        seen.update(happened)
        seen["kills"] += sum(entry.startswith("killed") for entry in trace)
    assert {
        "lost create_batch",
        "lost upload",
        "refused create_batch",
        "expiring batch",
        "failing row",
        "kills",
    } <= set(seen)


def test_a_seed_replays(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    outcomes = []
    for folder in folders:
        folder.mkdir()
        outcomes.append(one_storm(folder, 5))
    assert outcomes[0] == outcomes[1]
    shutil.rmtree(folders[0])


def test_a_straggler_behind_thousands_of_foreign_batches_is_found(tmp_path: Path) -> None:
    """It is looked up by id, at one list page a tick and a few paced look-ups."""
    source = rig.write_requests(tmp_path / "in.jsonl", 20)

    async def main() -> tuple[Summary, Counter[str], float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=lambda batch: 3600.0 if batch.metadata else 1.0)
        upload = tmp_path / "foreign.jsonl"
        upload.write_bytes(rig.request_line(0))
        info = await api.upload(str(upload), "foreign.jsonl")

        async def crowd() -> None:
            await anyio.sleep(300)
            for _ in range(5000):
                await api.create_batch(info.id, rig.URL, {})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd)
            summary = await visit(config(tmp_path, source), api, clock, random.Random(1), ":memory:")
        return summary, api.calls, anyio.current_time()

    summary, calls, passed = simulate(main, 3)
    assert summary.done == 20
    assert passed < 2 * 3600
    ticks = passed / 5
    assert calls["list_batches"] <= ticks
    assert calls["get_batch"] <= 2 * ticks + 2
