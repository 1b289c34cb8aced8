"""Scenarios that a hostile review found: each would have bought a row twice, hung, or said the wrong thing."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.config import Mode
from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.jobs import SegmentCount
from streambatch.core.models import Segment, Shard, ShardState, Slice, Usage
from streambatch.core.report import Summary
from streambatch.core.wire import BatchError, BatchInfo
from streambatch.edge import files, spares
from streambatch.edge.files import RunFiles
from streambatch.edge.journal import Journal, PoolGroup, SegmentRow, Store, read_only
from streambatch.edge.locking import RunLock
from streambatch.errors import ApiError, ConfigError, JournalError, StorageError
from tests.e2e import rig
from tests.engine.test_virtual import ids
from tests.marks import fixed
from tests.twins.api import Call, MemoryBatchApi
from tests.twins.clock import VirtualClock
from tests.twins.world import DAY_S, config, simulate, visit

pytestmark = fixed
FULL = BatchError("token_limit_exceeded", "Enqueued token limit reached for gpt-4o-mini in organization org-1.")


def log_of(folder: Path) -> list[e.AnyEvent]:
    with read_only(str(folder / "out.jsonl.run" / "journal.sqlite")) as store:
        return list(store.events())


def test_every_doubt_of_a_shard_waits_a_grace_of_its_own(tmp_path: Path) -> None:
    """The first doubted create is adopted and refused; the second one's batch hides in a list that lags."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def lost(call: Call) -> None:
        if call.name == "create_batch" and call.after and call.number <= 2:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    def refuse(batch: BatchInfo) -> BatchError | None:
        return FULL if batch.id.endswith("1") else None

    async def main() -> tuple[Summary, list[BatchInfo]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, list_lag_s=60.0, validation_s=400.0, fault=lost, refuse=refuse)
        return await visit(config(tmp_path, source), api, clock, random.Random(1)), api.batches

    summary, batches = simulate(main, 1)
    assert summary.done == 10
    assert len(batches) == 2
    assert ids(tmp_path / "out.jsonl") == ids(source)


def test_a_find_that_nobody_adopts_is_journaled_once(tmp_path: Path) -> None:
    """The doubted create's batch failed; it stays in view of every tick for a day."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def lost(call: Call) -> None:
        if call.name == "create_batch" and call.after and call.number == 1:
            raise ApiError("The connection was cut.", retryable=True, maybe_done=True)

    def refuse(batch: BatchInfo) -> BatchError | None:
        return FULL if batch.id.endswith("1") else None

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, list_lag_s=10.0, duration_s=3600.0, fault=lost, refuse=refuse)
        return await visit(config(tmp_path, source), api, clock, random.Random(1))

    assert simulate(main, 1).done == 10
    assert len([x for x in log_of(tmp_path) if isinstance(x, e.Found)]) <= 2  # as it was, and as it ended


def test_a_pause_does_not_spin_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A left row waits in the pool of a paused visit past its time, while batches fly for half an hour."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)
    looks: Counter[str] = Counter()
    look = Store.next_to_merge

    def counted(store: Store) -> SegmentRow | None:
        looks["at the next segment"] += 1
        return look(store)

    async def unpaid(call: Call) -> None:
        if call.name == "create_batch" and call.number == 3:
            await anyio.sleep(200.0)
            raise ApiError("Pay first.", status=429, code="insufficient_quota")

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(
            clock,
            duration_s=lambda batch: 60.0 if batch.id.endswith("1") else 3600.0,
            fault=unpaid,
            status_of=lambda row: 500 if row.executed == 0 and row.custom_id.endswith("-5") else 200,
        )
        return await visit(config(tmp_path, source), api, clock, random.Random(1))

    monkeypatch.setattr(Store, "next_to_merge", counted)
    summary = simulate(main, 1)
    assert (summary.exit_code, summary.left) == (4, 1)
    assert looks["at the next segment"] < 1000


def test_a_cancel_counts_for_the_batch_that_it_was_asked_for() -> None:
    """A batch that was refused after a cancel gives way to another one, which nobody cancelled."""
    shard = Shard("000000-0", 0, 0, 0, 0, "m", 1, 10, 1, "h", ShardState.SUBMITTED, "file-1", 1, "batch-1")
    events = (
        e.CancelAsked(shard.name, "batch-1"),
        e.Refused(shard.name, "token_limit_exceeded: the queue is full"),
        e.Intended(shard.name, 2),
        e.Submitted(shard.name, "batch-2", "file-1", 2),
    )
    asked = []
    for event in events:
        shard = lifecycle.apply(shard, event)
        asked.append(shard.cancel_asked)
    assert asked[0]
    assert not asked[-1]


def test_a_cancel_goes_on_past_a_batch_that_the_service_does_not_know(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def forgotten(call: Call) -> None:
        if call.name in ("cancel_batch", "get_batch") and call.subject.endswith("1"):
            raise ApiError("No batch found (404).", status=404)

    async def main() -> tuple[Summary, list[str]]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=3600.0, fault=forgotten)
        asked = config(tmp_path, source)
        await visit(msgspec.structs.replace(asked, once=True), api, clock, random.Random(1))
        summary = await visit(asked, api, clock, random.Random(1), mode=Mode.CANCEL)
        return summary, [batch.status for batch in api.batches]

    summary, statuses = simulate(main, 1)
    assert summary.state == "cancelled"
    assert statuses[1:] == ["cancelled", "cancelled"]


def test_a_billing_refusal_of_an_upload_pauses_too(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def unpaid(call: Call) -> None:
        if call.name == "upload" and call.number == 3 and not call.after:
            await anyio.sleep(10.0)
            raise ApiError("Pay first.", status=429, code="billing_hard_limit_reached")

    async def main() -> tuple[Summary, Summary]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=3600.0, fault=unpaid)
        asked = config(tmp_path, source)
        paused = await visit(asked, api, clock, random.Random(1))
        return paused, await visit(asked, api, clock, random.Random(1))

    paused, after = simulate(main, 1)
    assert (paused.exit_code, paused.done, paused.in_flight) == (4, 20, 0)
    assert "billing" in paused.message
    assert after.done == 30


@pytest.mark.parametrize("changes", [{"once": True}, {"stop_after_s": 900.0}], ids=["once", "stop-after"])
def test_a_paused_visit_still_leaves_in_time(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Who asked not to wait for the service is not made to wait by a pause."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def unpaid(call: Call) -> None:
        if call.name == "create_batch" and call.number == 3 and not call.after:
            raise ApiError("Pay first.", status=429, code="insufficient_quota")

    async def main() -> tuple[Summary, float]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=DAY_S / 2, fault=unpaid)
        summary = await visit(config(tmp_path, source, **changes), api, clock, random.Random(1))
        return summary, anyio.current_time()

    summary, passed = simulate(main, 1)
    assert (summary.exit_code, summary.in_flight) == (4, 2)
    assert passed < 2000


def test_what_no_visit_can_mend_ends_this_one_at_once(tmp_path: Path) -> None:
    """A refusal of the whole run is said now, not after the batches in flight; they are collected by who comes back."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def wrong(call: Call) -> None:
        if call.name == "create_batch" and call.number == 3 and not call.after:
            raise ApiError("The model is not supported.", status=400, code="model_not_found")

    async def main() -> float:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, duration_s=DAY_S / 2, fault=wrong)
        with pytest.raises(ConfigError, match="not supported"):
            await visit(config(tmp_path, source), api, clock, random.Random(1))
        return anyio.current_time()

    assert simulate(main, 1) < 600


def long_run(shards: int) -> Store:
    """The journal of a run whose shards are settled and merged, but for the last few."""
    store = Store(":memory:")
    for k in range(shards):
        segment = Segment(k, (Slice(0, k * 10, k * 10 + 10, k, 0),), k, 1, 10)
        shard = Shard(f"{k:06d}-0", k, k, k, 0, "m", 1, 10, 1, "h")
        name, batch, file = shard.name, f"batch-{k}", f"file-{k}"
        log: list[e.Event] = [e.SegmentSealed(segment, "s", 1, 0, 0, None, (shard,)), e.Uploaded(name, file, float(k))]
        log += [e.Intended(name, 1), e.Submitted(name, batch, file, 1)]
        if k < shards - 5:
            log += [e.BatchFinished(name, batch, "completed", "o", None, 1, 0, 1), e.Admitted(name)]
            log += [e.Downloaded(name, True, False), settled(name, k)]
            rest = Shard(f"r{k:06d}", None, k, k, 1, "m", 1, 10, 1, "h")
            log.append(e.RemainderSealed(rest, (e.PoolTake(name, 1, 0, 1),), ((k, 1),)))
        log.append(e.Found(f"other-{k}", f"x{k:06d}-0", 1, None, "", f"{k}+1", "in_progress", 1.0))
        store.append(log)
    return store


def settled(name: str, segment: int) -> e.Settled:
    return e.Settled(name, 0, 0, ((1, 1),), (SegmentCount(segment, 0, 0, 1),), Usage(), 0, 0, 0)


def cost(store: Store, ask: Callable[[Store], object]) -> int:
    """How much SQLite does for a question, in tens of its instructions."""
    steps = Counter[str]()

    def count() -> int:
        steps["all"] += 1
        return 0

    store._db.set_progress_handler(count, 10)
    ask(store)
    store._db.set_progress_handler(None, 0)
    return steps["all"]


FLYING = (ShardState.INTENDED, ShardState.DOUBTED, ShardState.SUBMITTED)
HOT: dict[str, Callable[[Store], object]] = {
    "states": Store.states,
    "pool": Store.pool,
    "pool entries": lambda store: store.pool_entries(PoolGroup("m", 1, 0, 1, 0), 1000),
    "busy": lambda store: store.busy("m", 0),
    "count": lambda store: store.count(*FLYING),
    "shards": lambda store: store.shards(FLYING, 10),
    "oldest file": lambda store: store.oldest_file("000009-0"),
    "span": Store.span,
    "findable": lambda store: store.findable(FLYING),
    "unread spares": spares.unread,
    "given up": spares.given_up,
    "next to merge": Store.next_to_merge,
    "swept": lambda store: store.swept(100),
}


def test_what_is_asked_at_every_turn_costs_the_same_in_a_long_run() -> None:
    short, long = long_run(60), long_run(1200)
    for store in (short, long):
        for (name,) in store._db.execute("SELECT name FROM shards WHERE name LIKE 'r%'").fetchall():
            store._db.execute("UPDATE shards SET state='settled' WHERE name=?", (name,))
    dear = {name: (cost(short, ask), cost(long, ask)) for name, ask in HOT.items()}
    assert {name: pair for name, pair in dear.items() if pair[1] > 2 * pair[0] + 20} == {}


def test_a_request_to_cancel_that_a_killed_engine_left_is_forgotten(tmp_path: Path) -> None:
    """Who types the same command again wants to go on."""
    source = rig.write_requests(tmp_path / "in.jsonl", 30)

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        asked = config(tmp_path, source)
        await visit(msgspec.structs.replace(asked, once=True), api, clock, random.Random(1))
        (tmp_path / "out.jsonl.run" / "cancel").touch()
        return await visit(asked, api, clock, random.Random(1))

    assert simulate(main, 1).state == "finished"


def test_rows_added_to_a_finished_run_are_taken_up_to_a_limit(tmp_path: Path) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def main() -> list[int]:
        clock = VirtualClock()
        api = MemoryBatchApi(clock)
        asked = config(tmp_path, source)
        done = []
        for rows, limit in ((10, None), (30, 20), (30, 15), (30, None)):
            rig.write_requests(source, rows)
            summary = await visit(msgspec.structs.replace(asked, limit=limit), api, clock, random.Random(1))
            done.append(summary.done)
        return done

    assert simulate(main, 1) == [10, 20, 20, 30]
    assert ids(tmp_path / "out.jsonl") == ids(source)


def test_a_young_batch_may_hide_for_a_grace(tmp_path: Path) -> None:
    """Neither the list nor a look-up shows it at first; that is no reason to pause."""
    source = rig.write_requests(tmp_path / "in.jsonl", 10)

    async def late(call: Call) -> None:
        if call.name == "get_batch" and not call.after and anyio.current_time() < 70.0:
            raise ApiError("No batch found (404).", status=404)

    async def main() -> Summary:
        clock = VirtualClock()
        api = MemoryBatchApi(clock, list_lag_s=90.0, duration_s=600.0, fault=late)
        return await visit(config(tmp_path, source), api, clock, random.Random(1))

    assert simulate(main, 1).state == "finished"


def test_a_lock_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError, match="lock"):
        RunLock(RunFiles(str(tmp_path))).acquire()


def test_a_disk_that_fails_under_housekeeping_is_the_journals_error(tmp_path: Path) -> None:
    """And what is appended next does not stumble over a transaction that was left open."""

    async def main() -> None:
        store = long_run(1)
        journal = Journal(store, files.inline, lambda event: None)
        store._db.execute("PRAGMA query_only=1")
        with pytest.raises(JournalError, match="readonly"):
            await journal.read(Store.mark_swept, ["000000-0"])
        store._db.execute("PRAGMA query_only=0")
        await journal.append(e.Swept())

    simulate(main, 1)
