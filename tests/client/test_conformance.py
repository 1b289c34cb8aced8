"""What every BatchApi does, shown by the same tests for the HTTP client against the local server and for the twin in memory."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from streambatch.core.wire import BatchInfo, Refusal, refusal_of_batch
from streambatch.edge.client import BatchApi
from streambatch.edge.clock import SystemClock
from streambatch.errors import ApiError
from streambatch.testing import local_server
from tests.client.stage import client
from tests.twins.api import MemoryBatchApi

pytestmark = pytest.mark.anyio
ENDPOINT = "/v1/chat/completions"
METADATA = {"streambatch": "run/000000-0/1", "label": "é\u2028"}
QUICK, STEADY, CALM, SLOW = 200.0, 20.0, 2.0, 0.05  # speeds: done in a moment, ..., not while a test looks


@contextlib.asynccontextmanager
async def http(speed: float) -> AsyncIterator[BatchApi]:
    with local_server(seed=7, speed=speed) as server:
        async with client(server.url, api_key=server.api_key) as api:
            yield api


@contextlib.asynccontextmanager
async def memory(speed: float) -> AsyncIterator[BatchApi]:
    api = MemoryBatchApi(
        SystemClock(), validation_s=3 / speed, duration_s=5 / speed, finalizing_s=1 / speed, cancelling_s=2 / speed
    )
    yield api
    await api.aclose()


Kind = Callable[[float], contextlib.AbstractAsyncContextManager[BatchApi]]


@pytest.fixture(params=[pytest.param(http, id="http"), pytest.param(memory, id="memory")])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def request_line(custom_id: str | None, url: str = ENDPOINT) -> bytes:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"say {custom_id}"}]}
    return msgspec.json.encode({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + b"\n"


def input_file(tmp_path: Path, lines: Sequence[bytes]) -> str:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"".join(lines))
    return str(path)


async def created(api: BatchApi, tmp_path: Path, rows: int = 3) -> BatchInfo:
    file = await api.upload(
        input_file(tmp_path, [request_line(f"row-{i}") for i in range(rows)]), "run.000000-0.00.jsonl"
    )
    return await api.create_batch(file.id, ENDPOINT, METADATA)


async def beyond(api: BatchApi, batch_id: str, *words: str) -> BatchInfo:
    """The batch, once its status is none of these."""
    for _ in range(1000):
        batch = await api.get_batch(batch_id)
        if batch.status not in words:
            return batch
        await anyio.sleep(0.02)
    raise AssertionError(f"{batch_id} is still {batch.status}")


async def ended(api: BatchApi, batch_id: str) -> BatchInfo:
    batch = await beyond(api, batch_id, "validating", "in_progress", "finalizing", "cancelling")
    assert batch.terminal
    return batch


async def content(api: BatchApi, file_id: str | None, tmp_path: Path) -> list[Any]:
    assert file_id is not None
    target = tmp_path / "result.part"
    size = await api.download(file_id, str(target))
    data = target.read_bytes()
    assert size == len(data) == (await api.file_info(file_id)).bytes
    return [msgspec.json.decode(line) for line in data.split(b"\n") if line]


# -- files


async def test_a_file_comes_back_as_it_was_sent(kind: Kind, tmp_path: Path) -> None:
    path = input_file(tmp_path, [request_line(f"row-{i}-é\u2028\u0085") for i in range(2000)])
    async with kind(QUICK) as api:
        sent = await api.upload(path, "run.000000-0.00.jsonl")
        assert (sent.bytes, sent.filename) == (Path(path).stat().st_size, "run.000000-0.00.jsonl")
        seen = await api.file_info(sent.id)  # which may say more: when it expires
        assert msgspec.structs.replace(seen, expires_at=sent.expires_at) == sent
        target = tmp_path / "back"
        target.write_bytes(b"what was here before" * 100_000)
        assert await api.download(sent.id, str(target)) == sent.bytes
    assert target.read_bytes() == Path(path).read_bytes()


async def test_each_upload_is_a_file_of_its_own(kind: Kind, tmp_path: Path) -> None:
    path = input_file(tmp_path, [request_line("row")])
    async with kind(QUICK) as api:
        first, second = await api.upload(path, "same.jsonl"), await api.upload(path, "same.jsonl")
    assert first.id != second.id


async def test_a_deleted_file_is_gone(kind: Kind, tmp_path: Path) -> None:
    async with kind(QUICK) as api:
        file = await api.upload(input_file(tmp_path, [request_line("row")]), "a.jsonl")
        assert await api.delete_file(file.id) is True
        assert await api.delete_file(file.id) is False
        with pytest.raises(ApiError, match="404"):
            await api.file_info(file.id)


async def test_a_list_of_input_files_in_pages(kind: Kind, tmp_path: Path) -> None:
    path = input_file(tmp_path, [request_line("row")])
    async with kind(QUICK) as api:
        assert (await api.list_files()).data == ()
        sent = [await api.upload(path, f"run.00000{k}-0.00.jsonl") for k in range(5)]
        batch = await ended(api, (await api.create_batch(sent[0].id, ENDPOINT, METADATA)).id)
        pages = [await api.list_files(None, 2)]
        while pages[-1].has_more:
            pages.append(await api.list_files(pages[-1].last_id, 2))
        await api.delete_file(sent[2].id)
        left = await api.list_files()
    assert batch.output_file_id is not None  # no input, so it is not listed
    assert [len(page.data) for page in pages] == [2, 2, 1]
    told = [(file.id, file.filename) for page in pages for file in page.data]
    assert told == [(file.id, file.filename) for file in reversed(sent)]
    assert [file.id for file in left.data] == [sent[k].id for k in (4, 3, 1, 0)]


@pytest.mark.parametrize(
    "call",
    [
        lambda api, path: api.file_info("file-none"),
        lambda api, path: api.download("file-none", str(path / "none")),
        lambda api, path: api.get_batch("batch_none"),
        lambda api, path: api.cancel_batch("batch_none"),
    ],
)
async def test_what_is_unknown(kind: Kind, tmp_path: Path, call: Callable[[BatchApi, Path], Awaitable[object]]) -> None:
    async with kind(QUICK) as api:
        with pytest.raises(ApiError) as caught:
            await call(api, tmp_path)
    assert (caught.value.status, caught.value.retryable) == (404, False)


# -- batches


async def test_a_new_batch(kind: Kind, tmp_path: Path) -> None:
    async with kind(SLOW) as api:
        batch = await created(api, tmp_path)
        looked_up = await api.get_batch(batch.id)
        page = await api.list_batches()
    assert batch.metadata == looked_up.metadata == METADATA
    assert (batch.status, batch.endpoint, batch.input_file_id) == ("validating", ENDPOINT, looked_up.input_file_id)
    assert (batch.output_file_id, batch.error_file_id, batch.errors, batch.total) == (None, None, (), 0)
    assert batch.expires_at == batch.created_at + 86_400
    assert [b.id for b in page.data] == [batch.id]
    assert page.data[0].metadata == METADATA
    assert page.data[0].created_at == batch.created_at
    assert page.server_date is not None
    assert abs(page.server_date - batch.created_at) < 60


async def test_a_batch_runs_to_its_end(kind: Kind, tmp_path: Path) -> None:
    async with kind(QUICK) as api:
        batch = await ended(api, (await created(api, tmp_path, rows=50)).id)
        lines = await content(api, batch.output_file_id, tmp_path)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 50, 50, 0)
    assert batch.error_file_id is None
    assert sorted(line["custom_id"] for line in lines) == sorted(f"row-{i}" for i in range(50))
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in lines)
    answers = {line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert len(answers) == 50  # an answer depends on its row, so that a wrong join shows


async def test_one_file_can_run_twice(kind: Kind, tmp_path: Path) -> None:
    async with kind(QUICK) as api:
        first = await created(api, tmp_path)
        second = await api.create_batch(str(first.input_file_id), ENDPOINT, METADATA)
        ends = [await ended(api, b.id) for b in (first, second)]
    assert first.id != second.id
    assert [b.status for b in ends] == ["completed", "completed"]


async def test_pages_newest_first(kind: Kind, tmp_path: Path) -> None:
    async with kind(SLOW) as api:
        made = [(await created(api, tmp_path)).id for _ in range(5)]
        seen: list[str] = []
        after: str | None = None
        for _ in range(3):
            page = await api.list_batches(after, 2)
            seen += [b.id for b in page.data]
            assert page.has_more is (len(seen) < 5)
            after = page.last_id
    assert seen == made[::-1]
    assert after == made[0]


async def test_the_end_of_the_list(kind: Kind, tmp_path: Path) -> None:
    async with kind(SLOW) as api:
        assert (await api.list_batches()).data == ()
        batch = await created(api, tmp_path)
        page = await api.list_batches(batch.id)
    assert (page.data, page.has_more) == ((), False)


async def test_a_cancelled_batch_accounts_for_every_row(kind: Kind, tmp_path: Path) -> None:
    rows = 3000
    async with kind(STEADY) as api:
        batch = await created(api, tmp_path, rows)
        await beyond(api, batch.id, "validating")
        told = [(await api.cancel_batch(batch.id)).status for _ in range(2)]
        assert set(told) <= {"cancelling", "cancelled"}
        final = await ended(api, batch.id)
        good = await content(api, final.output_file_id, tmp_path) if final.output_file_id else []
        bad = await content(api, final.error_file_id, tmp_path)
    assert final.status == "cancelled"
    assert len(bad) > 0  # it was cancelled long before its end
    assert sorted(line["custom_id"] for line in good + bad) == sorted(f"row-{i}" for i in range(rows))
    assert {line["error"]["code"] for line in bad} == {"batch_cancelled"}


async def test_a_batch_cancelled_at_once_has_run_nothing(kind: Kind, tmp_path: Path) -> None:
    async with kind(CALM) as api:
        batch = await created(api, tmp_path)
        assert (await api.cancel_batch(batch.id)).status in ("cancelling", "cancelled")
        final = await ended(api, batch.id)
    assert (final.status, final.completed, final.output_file_id) == ("cancelled", 0, None)


async def test_cancelling_what_has_ended_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    async with kind(QUICK) as api:
        batch = await ended(api, (await created(api, tmp_path)).id)
        assert await api.cancel_batch(batch.id) == batch


# -- refusals


@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (b"{not json}\n", Refusal.ROWS),
        (request_line("row-0"), Refusal.ROWS),  # a duplicate
        (request_line(None), Refusal.ROWS),
        (request_line("row-x", url="/v1/embeddings"), Refusal.RUN),
    ],
)
async def test_a_bad_line_fails_the_batch(kind: Kind, tmp_path: Path, bad: bytes, refusal: Refusal) -> None:
    lines = [request_line("row-0"), request_line("row-1"), bad, request_line("row-2")]
    async with kind(QUICK) as api:
        file = await api.upload(input_file(tmp_path, lines), "a.jsonl")
        batch = await ended(api, (await api.create_batch(file.id, ENDPOINT, METADATA)).id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors[0].line == 3
    assert refusal_of_batch(batch.errors) is refusal


async def test_a_file_that_is_not_there_fails_the_batch_later(kind: Kind) -> None:
    async with kind(QUICK) as api:
        batch = await api.create_batch("file-none", ENDPOINT, METADATA)
        batch = await ended(api, batch.id)
    assert batch.status == "failed"
    assert refusal_of_batch(batch.errors) is Refusal.FILE_GONE


# -- many at once


async def test_calls_do_not_mix(kind: Kind, tmp_path: Path) -> None:
    async with kind(QUICK) as api:
        made: dict[str, str] = {}

        async def one(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            path = input_file(folder, [request_line(f"{number}-{i}") for i in range(5)])
            file = await api.upload(path, f"{number}.jsonl")
            batch = await api.create_batch(file.id, ENDPOINT, {"number": str(number)})
            end = await ended(api, batch.id)
            ids = {line["custom_id"] for line in await content(api, end.output_file_id, folder)}
            assert ids == {f"{number}-{i}" for i in range(5)}
            made[batch.id] = end.metadata["number"]

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(one, number)
        page = await api.list_batches()
    assert {b.id: b.metadata["number"] for b in page.data} == made
    assert len(made) == 12
