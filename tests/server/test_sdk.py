"""The official SDK, sync and async, as a client that knows nothing of us."""

import asyncio
import io
from collections.abc import Awaitable, Iterator
from typing import Any

import openai
import pytest

from streambatch.testing import LocalServer, local_server
from tests.server.kit import CHAT, TERMINAL, chat


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(speed=1e5) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as made:
        yield made


def _finished(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    while batch.status not in TERMINAL:
        batch = client.batches.retrieve(batch.id)
    return batch


def test_a_batch_from_upload_to_content(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", chat(20)), purpose="batch")
    assert client.files.wait_for_processing(file.id).status == "processed"
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    assert batch.status == "validating"
    batch = _finished(client, batch)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed, batch.metadata) == ("completed", 20, {"a": "b"})
    assert batch.output_file_id is not None
    text = client.files.content(batch.output_file_id).text
    assert len(text.splitlines()) == 20  # also by a client that cuts at every kind of line end
    assert client.files.retrieve(batch.output_file_id).bytes == len(text.encode())
    assert client.files.delete(file.id).deleted


def test_plain_bytes_get_the_name_upload(client: openai.OpenAI) -> None:
    assert client.files.create(file=io.BytesIO(chat(1)), purpose="batch").filename == "upload"
    assert client.files.create(
        file=chat(1), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    ).expires_at


def test_lists_page_by_themselves(client: openai.OpenAI) -> None:
    file = client.files.create(file=chat(1), purpose="batch")
    made = [client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == made[::-1]
    assert file.id in [found.id for found in client.files.list(purpose="batch", limit=1)]
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]


def test_cancel(client: openai.OpenAI, server: LocalServer) -> None:
    server.set_faults({"batches": [{"do": "stuck", "state": "in_progress", "times": 1}]})
    file = client.files.create(file=chat(3), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = _finished(client, batch)
    assert batch.status == "cancelled"
    assert client.batches.cancel(batch.id).status == "cancelled"
    server.set_faults(None)


def test_errors_become_the_sdks_own(client: openai.OpenAI, server: LocalServer) -> None:
    with pytest.raises(openai.NotFoundError, match="No batch found with id"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.content("file-x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(input_file_id="file-x", endpoint="/v1/poems", completion_window="24h")  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.param, refused.value.type) == (
        "invalid_value",
        "endpoint",
        "invalid_request_error",
    )
    file = client.files.create(file=chat(1), purpose="batch")
    batch = _finished(client, client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batch.id)
    with (
        openai.OpenAI(base_url=server.url, api_key="sk-wrong", max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key"),
    ):
        wrong.models.list()


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"do": "answer", "status": 429}, openai.RateLimitError),
        ({"do": "answer", "status": 503}, openai.InternalServerError),
        ({"do": "answer", "status": 500}, openai.InternalServerError),
        ({"do": "answer", "status": 400}, openai.BadRequestError),
        ({"do": "answer", "status": 401}, openai.AuthenticationError),
        ({"do": "answer", "status": 403}, openai.PermissionDeniedError),
        ({"do": "answer", "status": 404}, openai.NotFoundError),
        ({"do": "answer", "status": 409}, openai.ConflictError),
        ({"do": "answer", "status": 422}, openai.UnprocessableEntityError),
        ({"do": "answer", "status": 413}, openai.APIStatusError),
        ({"do": "drop"}, openai.APIConnectionError),
        ({"do": "act_and_drop"}, openai.APIConnectionError),
    ],
)
def test_scripted_errors_become_the_sdks_own(
    client: openai.OpenAI, server: LocalServer, rule: dict[str, Any], kind: type[Exception]
) -> None:
    server.set_faults({"http": [{**rule, "on": "list", "times": 1}]})
    with pytest.raises(kind):
        client.batches.list()
    assert client.batches.list().data is not None
    assert server.fault_hits()["http"] == [1]


def test_a_call_that_hangs_times_out(client: openai.OpenAI, server: LocalServer) -> None:
    server.set_faults({"http": [{"do": "hang", "on": "list", "times": 1}]})
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).batches.list()
    server.set_faults(None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("rate_limit_exceeded", "requests"), ("insufficient_quota", "insufficient_quota"),
        ("credit_balance_exhausted", "insufficient_quota"), ("organization_spend_limit_exceeded", "insufficient_quota"),
        ("project_spend_limit_exceeded", "insufficient_quota"), ("organization_usage_limit_exceeded", "insufficient_quota"),
        ("billing_hard_limit_reached", "insufficient_quota"), ("slow_down", "rate_limit_error"),
    ],
)  # fmt: skip
def test_every_429_keeps_its_code_and_type(client: openai.OpenAI, server: LocalServer, code: str, kind: str) -> None:
    server.set_faults({"http": [{"do": "answer", "on": "create", "status": 429, "code": code, "times": 1}]})
    with pytest.raises(openai.RateLimitError) as refused:
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    assert (refused.value.code, refused.value.type, refused.value.param) == (code, kind, None)
    assert "retry-after" not in refused.value.response.headers
    server.set_faults(None)


def test_overload_is_told_by_code_and_type(client: openai.OpenAI, server: LocalServer) -> None:
    rule = {"do": "answer", "on": "list", "status": 503, "code": "server_is_overloaded", "times": 1}
    server.set_faults({"http": [rule]})
    with pytest.raises(openai.InternalServerError) as refused:
        client.batches.list()
    assert (refused.value.code, refused.value.type) == ("server_is_overloaded", "service_unavailable_error")


def test_raw_responses_have_the_headers(client: openai.OpenAI) -> None:
    raw = client.files.with_raw_response.create(file=("in.jsonl", chat(1)), purpose="batch")
    file = raw.parse()
    for each in (raw, client.batches.with_raw_response.list(), client.files.with_raw_response.retrieve(file.id)):
        assert each.headers["x-request-id"] == each.request_id
        assert each.headers["openai-version"] == "2020-10-01"
        assert each.headers["openai-organization"]
        assert int(each.headers["openai-processing-ms"]) >= 1
        assert each.retries_taken == 0
        assert not [name for name in each.headers if name.startswith("x-ratelimit")]
    assert file._request_id == raw.request_id
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.retrieve("file-x")
    assert str(refused.value.request_id).startswith("req_")


def test_waiting_for_a_file(client: openai.OpenAI, server: LocalServer) -> None:
    """The SDK looks until the file is at an end; the first look here fails and is tried again."""
    file = client.files.create(file=("in.jsonl", chat(1)), purpose="batch")
    server.set_faults({"http": [{"do": "answer", "on": "file", "status": 503, "times": 1}]})
    ready = client.with_options(max_retries=1).files.wait_for_processing(
        file.id, poll_interval=0.01, max_wait_seconds=10
    )
    assert (ready.id, ready.status, server.fault_hits()["http"]) == (file.id, "processed", [1])
    server.set_faults(None)


def test_the_sdk_retries_what_it_may(server: LocalServer) -> None:
    server.set_faults({"http": [{"do": "answer", "on": "create", "status": 429, "retry_after_s": 0.01, "times": 2}]})
    with openai.OpenAI(base_url=server.url, api_key=server.api_key, max_retries=2) as client:
        file = client.files.create(file=chat(1), purpose="batch")
        assert client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
    server.set_faults(None)


async def _async_batch(server: LocalServer) -> tuple[str, int, list[str]]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as client:
        file = await client.files.create(file=("in.jsonl", chat(10)), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        while batch.status not in TERMINAL:
            batch = await client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None
        lines = 0
        async with client.files.with_streaming_response.content(batch.output_file_id) as content:
            async for _ in content.iter_lines():
                lines += 1
        return batch.status, lines, [found.id async for found in client.batches.list(limit=1)][:1]


def test_the_async_client(server: LocalServer) -> None:
    status, lines, newest = asyncio.run(_async_batch(server))
    assert (status, lines, len(newest)) == ("completed", 10, 1)


async def _async_lists(server: LocalServer) -> tuple[list[str], list[str], list[str], list[str]]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as client:
        files = [(await client.files.create(file=("in.jsonl", chat(1)), purpose="batch")).id for _ in range(3)]
        batches = []
        for file_id in files:
            made = await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
            batches.append(made.id)
        listed_files = [file.id async for file in client.files.list(limit=2, purpose="batch")]
        listed_batches = [batch.id async for batch in client.batches.list(limit=2)]
        return files[::-1], listed_files, batches[::-1], listed_batches


def test_the_async_clients_lists_page_by_themselves(server: LocalServer) -> None:
    files, listed_files, batches, listed_batches = asyncio.run(_async_lists(server))
    assert (listed_files[:3], listed_batches[:3]) == (files, batches)
    assert len(set(listed_batches)) == len(listed_batches)


async def _async_rest(server: LocalServer) -> list[str]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.api_key, max_retries=0, timeout=20) as client:
        file = await client.files.create(file=("in.jsonl", chat(1)), purpose="batch")
        ready = await client.files.wait_for_processing(file.id, poll_interval=0.01)
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        seen: list[str] = [ready.status, (await client.batches.cancel(batch.id)).status]
        calls: list[Awaitable[Any]] = [
            client.batches.retrieve("batch_x"),
            client.files.retrieve("file-x"),
            client.batches.create(input_file_id=file.id, endpoint="/v1/poems", completion_window="24h"),  # type: ignore[arg-type]
            client.with_options(api_key="sk-wrong").models.list(),
        ]
        for call in calls:
            try:
                await call
            except openai.APIStatusError as error:
                seen.append(type(error).__name__)
        return seen


def test_the_async_client_waits_cancels_and_is_refused(server: LocalServer) -> None:
    server.set_faults({"batches": [{"do": "stuck", "state": "in_progress", "times": 1}]})
    seen = asyncio.run(_async_rest(server))
    server.set_faults(None)
    assert seen[:1] + seen[2:] == [
        "processed", "NotFoundError", "NotFoundError", "BadRequestError", "AuthenticationError",
    ]  # fmt: skip
    assert seen[1] in ("cancelling", "cancelled")
