"""The provider in memory: what its hooks do, and that it can be as unkind as the real one. On trio, in virtual time."""

from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
import trio.testing

from streambatch.core.wire import BatchError, BatchInfo, Refusal, refusal_of_batch
from streambatch.errors import ApiError
from tests.twins.api import Call, MemoryBatchApi, Row
from tests.twins.clock import VirtualClock

pytestmark = pytest.mark.anyio
ENDPOINT = "/v1/chat/completions"


@pytest.fixture
def anyio_backend() -> object:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "input.jsonl"
    lines = [
        msgspec.json.encode({"custom_id": str(i), "method": "POST", "url": ENDPOINT, "body": {"n": i}})
        for i in range(10)
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


async def run_one(api: MemoryBatchApi, source: str) -> BatchInfo:
    file = await api.upload(source, "a.jsonl")
    return await api.create_batch(file.id, ENDPOINT, {})


async def ids_of(api: MemoryBatchApi, file_id: str | None, tmp_path: Path) -> list[str]:
    if file_id is None:
        return []
    target = tmp_path / "got"
    await api.download(file_id, str(target))
    return sorted(msgspec.json.decode(line)["custom_id"] for line in target.read_bytes().split(b"\n") if line)


async def test_the_states_follow_the_clock(source: str) -> None:
    api = MemoryBatchApi(VirtualClock(), validation_s=3, duration_s=60, finalizing_s=1)
    batch = await run_one(api, source)
    seen = [batch.status]
    for wait_s in (2.9, 0.2, 59.8, 0.2, 0.9):
        await anyio.sleep(wait_s)
        seen.append((await api.get_batch(batch.id)).status)
    assert seen == ["validating", "validating", "in_progress", "in_progress", "finalizing", "completed"]
    assert api.most_in_flight == 1


async def test_a_day_passes_in_no_time(source: str) -> None:
    api = MemoryBatchApi(VirtualClock(), duration_s=80_000.0)
    batch = await run_one(api, source)
    await anyio.sleep(86_400.0)
    assert (await api.get_batch(batch.id)).status == "completed"
    assert sum(api.executed.values()) == 10
    assert api.rows_executed_again == 0


async def test_what_runs_longer_than_its_window_expires(source: str, tmp_path: Path) -> None:
    api = MemoryBatchApi(VirtualClock(), validation_s=0, duration_s=200.0, window_s=100.0)
    batch = await run_one(api, source)
    await anyio.sleep(100.0)
    batch = await api.get_batch(batch.id)
    assert batch.status == "expired"
    assert len(await ids_of(api, batch.output_file_id, tmp_path)) == 5
    assert len(await ids_of(api, batch.error_file_id, tmp_path)) == 5
    assert sum(api.executed.values()) == 5


async def test_expiry_at_a_part_of_the_rows(source: str) -> None:
    api = MemoryBatchApi(VirtualClock(), expire_at=lambda batch_id: 0.3 if batch_id.endswith("1") else None)
    first, second = await run_one(api, source), await run_one(api, source)
    await anyio.sleep(86_400.0)
    assert [(await api.get_batch(b.id)).status for b in (first, second)] == ["expired", "completed"]
    assert sum(api.executed.values()) == 13
    assert api.rows_executed_again == 3


async def test_rows_can_fail_and_get_lost(source: str, tmp_path: Path) -> None:
    statuses = {"1": 500, "2": None, "3": 0}
    api = MemoryBatchApi(VirtualClock(), status_of=lambda row: statuses.get(row.custom_id, 200))
    batch = await run_one(api, source)
    await anyio.sleep(100)
    batch = await api.get_batch(batch.id)
    assert await ids_of(api, batch.output_file_id, tmp_path) == ["0", "4", "5", "6", "7", "8", "9"]
    assert await ids_of(api, batch.error_file_id, tmp_path) == ["1", "3"]
    assert sum(api.executed.values()) == 10  # lost rows were executed, and paid


async def test_a_row_knows_how_often_it_ran(source: str) -> None:
    seen: list[Row] = []

    def status_of(row: Row) -> int:
        seen.append(row)
        return 500 if row.executed == 0 else 200

    api = MemoryBatchApi(VirtualClock(), status_of=status_of)
    for _ in range(2):
        batch = await run_one(api, source)
        await anyio.sleep(100)
        batch = await api.get_batch(batch.id)
    assert (batch.completed, batch.failed) == (10, 0)
    assert [row.executed for row in seen] == [0] * 10 + [1] * 10


async def test_a_refusal_at_validation(source: str) -> None:
    full = BatchError("token_limit_exceeded", "Enqueued token limit reached. Limit: 7 enqueued tokens.")
    api = MemoryBatchApi(VirtualClock(), refuse=lambda batch: full)
    batch = await run_one(api, source)
    assert batch.status == "validating"
    await anyio.sleep(5)
    batch = await api.get_batch(batch.id)
    assert batch.status == "failed"
    assert refusal_of_batch(batch.errors) is Refusal.QUEUE_FULL
    assert sum(api.executed.values()) == 0


async def test_the_list_lags_but_a_look_up_does_not(source: str) -> None:
    api = MemoryBatchApi(VirtualClock(), list_lag_s=30.0)
    batch = await run_one(api, source)
    assert (await api.list_batches()).data == ()
    assert (await api.get_batch(batch.id)).id == batch.id
    await anyio.sleep(30)
    assert [b.id for b in (await api.list_batches()).data] == [batch.id]


@pytest.mark.parametrize(("after", "created"), [(False, 0), (True, 1)])
async def test_a_fault_before_or_after_the_effect(source: str, after: bool, created: int) -> None:
    async def fault(call: Call) -> None:
        if call.name == "create_batch" and call.after is after:
            raise ApiError("as scripted", retryable=True, maybe_done=True)

    api = MemoryBatchApi(VirtualClock(), fault=fault)
    with pytest.raises(ApiError, match="as scripted"):
        await run_one(api, source)
    assert len(api.batches) == created


async def test_a_cancelled_caller_may_have_bought(source: str) -> None:
    api = MemoryBatchApi(VirtualClock(), latency_s=10.0)
    file = await api.upload(source, "a.jsonl")
    for patience_s, batches in ((4.0, 0), (7.0, 1)):
        with anyio.move_on_after(patience_s):
            await api.create_batch(file.id, ENDPOINT, {})
        assert len(api.batches) == batches


async def test_a_file_can_go_early(source: str) -> None:
    api = MemoryBatchApi(VirtualClock())
    file = await api.upload(source, "a.jsonl")
    api.lose_file(file.id)
    batch = await api.create_batch(file.id, ENDPOINT, {})
    await anyio.sleep(5)
    assert refusal_of_batch((await api.get_batch(batch.id)).errors) is Refusal.FILE_GONE


CALLS: list[Callable[[MemoryBatchApi], object]] = [
    lambda api: api.list_batches(),
    lambda api: api.create_batch("file-none", ENDPOINT, {}),
    lambda api: api.delete_file("file-none"),
]


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_yields(call: Callable[[MemoryBatchApi], object]) -> None:
    turns: list[str] = []
    api = MemoryBatchApi(VirtualClock())

    async def calling() -> None:
        await call(api)  # type: ignore[misc]  # each is a coroutine
        turns.append("call")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(calling)
        await anyio.lowlevel.checkpoint()
        turns.append("other")
    assert turns == ["other", "call"]
