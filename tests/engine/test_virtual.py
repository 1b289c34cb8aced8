"""The real engine under a virtual clock on twins: days pass in moments, every seed replays, and no row is bought twice."""

import json
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from benchmarks import flight, flying
from streambatch.core import events as e
from streambatch.core.models import ShardLimits
from streambatch.core.report import Summary
from streambatch.core.wire import BatchError, BatchInfo
from tests.e2e import rig
from tests.twins.api import MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, Weather, config, simulate, visit, world

ROWS = 60
ROOM = "Limit: 90,000 enqueued tokens."  # other people's batches fill it


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


def interleaved(path: Path, rows: int, models: Sequence[str]) -> Path:
    """Ready-made requests whose models take turns."""
    path.write_bytes(b"".join(rig.request_line(k, model=models[k % len(models)]) for k in range(rows)))
    return path


def test_a_model_whose_queue_is_full_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Three models share an input; for hours one of them is refused, and the other two finish meanwhile."""
    models, per_model, full_s = ("gpt-4o-mini", "gpt-4o", "o4-mini"), 250, 3 * 3600.0
    source = interleaved(tmp_path / "in.jsonl", 3 * per_model, models)
    ended: dict[str, float] = {}
    refused: list[float] = []

    def refuse(batch: BatchInfo) -> BatchError | None:
        if model_of(batch) == 1 and anyio.current_time() < full_s:
            refused.append(anyio.current_time())
            return BatchError("token_limit_exceeded", f"Enqueued token limit reached. {ROOM}", None)
        return None

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=600.0, refuse=refuse)

        def listen(notice: object) -> None:
            if isinstance(notice, e.Settled):
                ended[notice.shard] = anyio.current_time()

        limits = ShardLimits(max_requests=30)
        return await visit(config(tmp_path, source, limits=limits), api, clock, random.Random(1), listen=listen)

    summary = simulate(main, 4)
    assert (summary.done, summary.failed) == (3 * per_model, 0)
    assert ids(tmp_path / "out.jsonl") == ids(source)
    by_model = {k: [at for shard, at in ended.items() if shard.endswith(f"-{k}")] for k in range(3)}
    assert {k: len(ends) for k, ends in by_model.items()} == {0: 25, 1: 25, 2: 25}
    assert max(by_model[0] + by_model[2]) < full_s / 2, "nobody waited for the model that was refused"
    assert full_s < min(by_model[1])
    assert len(refused) < 60, "the service was not asked all the time"


def model_of(batch: BatchInfo) -> int:
    """Which of a segment's shards a batch runs: models come in the order of their first rows."""
    return int(batch.metadata["streambatch"].split("/")[1][-1])


def test_a_thousand_in_flight_among_five_thousand_of_others_take_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per tick one list page per 100 in flight, and one look-up by id for each 20: exactly, to the last batch."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # calls are counted here; 8,000 syncs would take most of the time
    batches, foreign = 1000, 5000
    source = rig.write_requests(tmp_path / "in.jsonl", batches)
    seen = flying.Watch(batches)
    crowded: list[int] = []
    ended: list[Summary] = []

    async def main() -> None:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=lambda batch: 1200.0 if batch.metadata else 1.0)
        upload = tmp_path / "foreign.jsonl"
        upload.write_bytes(rig.request_line(0))
        info = await api.upload(str(upload), "foreign.jsonl")

        async def crowd() -> None:
            await anyio.sleep(300)
            for _ in range(foreign):
                await api.create_batch(info.id, rig.URL, {})
            crowded.append(len(seen.calls))

        asked = config(tmp_path, source, limits=ShardLimits(max_requests=1), max_batches=batches, keep_spool=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd)
            counted = flying.CountedApi(api, seen)
            ended.append(await visit(asked, counted, clock, random.Random(1), ":memory:", listen=seen.hear))

    simulate(main, 5)
    (summary,) = ended
    assert (summary.done, summary.batches, summary.failed) == (batches, batches, 0)
    assert math.isfinite(seen.all_from_s), "all of them were in flight at once"
    looks = list(flight.ticks(seen.calls))
    assert [look.problem for look in looks if look.problem] == []
    (start,) = crowded
    later = list(flight.ticks(seen.calls[start:]))[:-1]
    assert {look.in_flight for look in later} >= {1000, 950}
    for look in later:
        paced = min(look.in_flight, max(2, look.in_flight // 20))
        assert (look.pages, look.lookups, look.ended) == (-(-look.in_flight // 100), paced, 0)
