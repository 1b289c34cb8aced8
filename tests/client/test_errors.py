"""What goes wrong on the way, as one ApiError each: every status, every kind of lost connection, over real sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from streambatch.edge.answers import of_connection
from streambatch.edge.client import HttpBatchApi
from streambatch.edge.http import Connection
from streambatch.edge.service import Service
from streambatch.errors import ApiError, ConfigError
from tests.client.stage import BATCH, FILE, KEY, PEM, answering, client, listening, server_tls, serving

pytestmark = pytest.mark.anyio


def envelope(message: str, code: str | None = None, kind: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def raised(api: HttpBatchApi, call: Callable[[HttpBatchApi], Awaitable[Any]]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call(api)
    assert str(caught.value).isprintable()
    assert KEY not in str(caught.value)
    return caught.value


def create(api: HttpBatchApi) -> Awaitable[Any]:
    return api.create_batch("file-1", "/v1/chat/completions", {"a": "b"})


def look_up(api: HttpBatchApi) -> Awaitable[Any]:
    return api.get_batch("batch_1")


# -- answers

ANSWERS = [
    # status, body, headers -> code, retryable, maybe done, wait, words
    (400, envelope("Invalid 'x'.", "invalid_value"), {}, "invalid_value", False, False, None, "refused the create of a batch"),
    (401, envelope(f"Incorrect key: {KEY}.", "invalid_api_key"), {}, "invalid_api_key", False, False, None, "check the key, in"),
    (403, envelope("No access."), {}, None, False, False, None, "does not allow"),
    (404, envelope("Nothing here."), {}, None, False, False, None, "does not know"),
    (408, envelope("Too slow."), {}, None, True, True, None, "gave up waiting"),
    (409, envelope("Conflict."), {}, None, True, False, None, "refused the create"),
    (413, {}, {}, None, False, False, None, "too large"),
    (422, envelope("Odd."), {}, None, False, False, None, "(422): Odd."),
    (429, envelope("Slow.", "rate_limit_exceeded"), {"Retry-After": "7"}, "rate_limit_exceeded", True, False, 7.0, "slow down"),
    (429, envelope("Slow.", "slow_down", "x"), {"retry-after-ms": "250"}, "slow_down", True, False, 0.25, "slow down"),
    (429, envelope("Pay.", None, "insufficient_quota"), {}, "insufficient_quota", False, False, None, "billing reasons"),
    (429, envelope("Pay.", "billing_not_active"), {"x-should-retry": "true"}, "billing_not_active", False, False, None, "billing"),
    (500, envelope("Oops.", "server_error"), {}, "server_error", True, True, None, "a batch (500 server_error): Oops."),
    (500, envelope("Oops."), {"x-should-retry": "false"}, None, False, True, None, "failed"),
    (400, envelope("Oops."), {"x-should-retry": "true"}, None, True, False, None, "refused"),
    (502, "<html>Bad gateway</html>", {}, None, True, True, None, "failed in the create of a batch (502)."),
    (503, envelope("Busy.", None, "service_unavailable_error"), {}, "service_unavailable_error", True, True, None, "Busy"),
    (504, {}, {}, None, True, True, None, "failed"),
    (302, {}, {"Location": "https://elsewhere.example/"}, None, False, True, None, "redirect"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "headers", "code", "retryable", "maybe_done", "wait_s", "words"), ANSWERS)
async def test_an_answer_to_a_create(
    status: int,
    body: object,
    headers: dict[str, str],
    code: str | None,
    retryable: bool,
    maybe_done: bool,
    wait_s: float | None,
    words: str,
) -> None:
    async with serving(answering(body, status, headers)) as url, client(url) as api:
        error = await raised(api, create)
    assert (error.status, error.code, error.retryable, error.maybe_done) == (status, code, retryable, maybe_done)
    assert error.retry_after_s == wait_s
    assert words.lower() in str(error).lower()


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"object": "batch"}', b"[1, 2", b"\x1f\x8b\x00"])
async def test_a_create_with_a_malformed_answer_is_in_doubt(data: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=data)

    async with serving(handler) as url, client(url) as api:
        error = await raised(api, create)
    assert error.maybe_done
    assert error.retryable


async def test_an_endless_error_page_is_not_read_to_its_end() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async with serving(handler) as url, client(url) as api:
        error = await asyncio.wait_for(raised(api, look_up), 20)
    assert error.status == 500


# -- connections


async def test_nobody_listens() -> None:
    with socket.socket() as taken:  # bound, not listening: nobody else can come to listen there meanwhile
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with client(f"http://127.0.0.1:{port}/v1") as api:
            error = await raised(api, create)
    assert (error.status, error.retryable, error.maybe_done) == (None, True, False)
    assert f"127.0.0.1:{port}" in str(error)
    assert "connection refused" in str(error)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id":')
    await writer.drain()


async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    await writer.drain()


async def a_refusal_cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{"error":')
    await writer.drain()


@pytest.mark.parametrize("handler", [hang_up, reset, half_an_answer, gibberish])
async def test_a_connection_lost_after_the_request_leaves_doubt(handler: Any) -> None:
    async with listening(handler) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        error = await raised(api, create)
        assert (error.status, error.retryable, error.maybe_done) == (None, True, True)
        assert f"127.0.0.1:{port}" in str(error)


async def test_a_status_counts_though_its_body_was_cut() -> None:
    async with listening(a_refusal_cut_short) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        error = await raised(api, create)
    assert (error.status, error.maybe_done) == (400, False)


def _lookup_failed() -> Exception:
    key: Any = SimpleNamespace(host="api.example.com", port=443, ssl=True)
    return aiohttp.ClientConnectorDNSError(key, socket.gaierror(-2, "Name or service not known"))


@pytest.mark.parametrize(
    ("error", "retryable", "maybe_done", "words"),
    [
        (_lookup_failed(), True, False, "its name is not found (name or service not known)"),
        (aiohttp.ConnectionTimeoutError("x"), True, False, "no connection in time"),
        (aiohttp.SocketTimeoutError("x"), True, True, "did not answer in time in the test"),
        (TimeoutError(), True, True, "did not answer in time"),
        (ConnectionResetError(104, "x"), True, True, "was lost in the test (connection reset by peer)"),
        (aiohttp.InvalidURL("x"), False, False, "no valid one"),
    ],
)
async def test_the_table(error: Exception, retryable: bool, maybe_done: bool, words: str) -> None:
    mapped = of_connection(error, "the test", "api.example.com:443", None)
    assert mapped is not None
    assert (mapped.retryable, mapped.maybe_done) == (retryable, maybe_done)
    assert words in str(mapped)
    assert "api.example.com:443" in str(mapped)


async def test_what_is_no_matter_of_connections_passes() -> None:
    assert of_connection(KeyError("a bug"), "the test", "host:1", None) is None


async def test_a_name_look_up_behind_a_proxy_is_the_proxys() -> None:
    assert "The proxy p.example:3128" in str(
        of_connection(_lookup_failed(), "the test", "api.example.com:443", "p.example:3128")
    )


async def test_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr("streambatch.edge.http.JSON_CALL", aiohttp.ClientTimeout(total=30, sock_read=0.2))
    async with listening(silent) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        error = await raised(api, create)
    assert (error.retryable, error.maybe_done) == (True, True)


# -- the key


async def test_who_we_are_goes_with_every_call() -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response(BATCH)

    async with (
        serving(handler) as url,
        client(url, organization="org-1", project="proj-1", headers={"X-Gateway": "g"}) as api,
    ):
        await api.get_batch("batch_1")
    headers = seen[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (headers["openai-organization"], headers["openai-project"], headers["x-gateway"]) == ("org-1", "proj-1", "g")
    assert headers["user-agent"].startswith("streambatch/")
    assert headers["accept-encoding"] == "gzip"


async def test_a_key_that_changed_is_read_again() -> None:
    keys = iter(["old-key", "new-key", "newest-key"])
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response(BATCH) if seen[-1] == "Bearer new-key" else web.json_response({}, status=401)

    async with serving(handler) as url, client(url, api_key=lambda: next(keys)) as api:
        await create(api)
        await look_up(api)
    assert seen == ["Bearer old-key", "Bearer new-key", "Bearer new-key"]


@pytest.mark.parametrize(
    ("source", "calls"), [("fixed-key", 1), (lambda: "same-key", 1), (iter(f"key-{i}" for i in range(9)).__next__, 2)]
)
async def test_a_refused_key_is_tried_once_more_at_most(source: Any, calls: int) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response(envelope("no"), status=401)

    async with serving(handler) as url, client(url, api_key=source) as api:
        error = await raised(api, look_up)
    assert (error.status, len(seen)) == (401, calls)


async def test_a_netrc_file_is_nobodys_business(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response(BATCH)

    async with serving(handler) as url, client(url) as api:
        await look_up(api)
    assert seen == [f"Bearer {KEY}"]


# -- single calls


async def test_ids_are_quoted() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.json_response({**BATCH, "data": []})

    async with serving(handler) as url, client(url) as api:
        for name in ("a/../b", "..", "é?x=1#y", "batch 1%2F"):
            await api.get_batch(name)
        await api.list_batches(after="a&limit=1", limit=5)
    assert seen[:2] == ["/v1/batches/a%2F..%2Fb", "/v1/batches/%2E%2E"]
    assert seen[2:4] == ["/v1/batches/%C3%A9%3Fx%3D1%23y", "/v1/batches/batch%201%252F"]
    assert seen[4] == "/v1/batches?limit=5&after=a%26limit%3D1"


@pytest.mark.parametrize("status", [400, 409])
async def test_cancelling_what_has_ended_gives_it_as_it_is(status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.json_response(envelope("Cannot cancel a batch with status 'completed'."), status=status)
        return web.json_response({**BATCH, "status": "completed"})

    async with serving(handler) as url, client(url) as api:
        assert (await api.cancel_batch("batch_1")).status == "completed"


async def test_a_cancel_refused_for_another_reason_is_an_error() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(BATCH) if request.method == "GET" else web.json_response(envelope("no"), status=400)

    async with serving(handler) as url, client(url) as api:
        assert (await raised(api, lambda a: a.cancel_batch("batch_1"))).status == 400


async def test_deleting_a_file() -> None:
    async def handler(request: web.Request) -> web.Response:
        known = request.path.endswith("file-1")
        return web.json_response({"id": "file-1", "deleted": True}) if known else web.json_response({}, status=404)

    async with serving(handler) as url, client(url) as api:
        assert await api.delete_file("file-1") is True
        assert await api.delete_file("file-2") is False


async def test_a_page_tells_the_services_time_and_gzip_is_understood() -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.json_response(
            {"data": [BATCH], "has_more": False}, headers={"Date": "Tue, 14 Nov 2023 22:13:20 GMT"}
        )
        response.enable_compression()
        return response

    async with serving(handler) as url, client(url) as api:
        page = await api.list_batches()
    assert (page.server_date, len(page.data)) == (1_700_000_000.0, 1)


async def test_what_a_create_says() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.content_type, await request.json()))
        return web.json_response(BATCH)

    async with serving(handler) as url, client(url) as api:
        await create(api)
    wanted = {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
    }
    assert seen == [("POST", "/v1/batches", "application/json", wanted)]


# -- certificates and proxies


async def test_a_certificate_of_an_unknown_authority() -> None:
    async with serving(answering(BATCH), server_tls()) as url, client(url) as api:
        error = await raised(api, create)
    assert (error.retryable, error.maybe_done) == (False, False)
    assert "--ca-bundle" in str(error)


async def test_a_bundle_makes_it_known() -> None:
    async with serving(answering(BATCH), server_tls()) as url, client(url, ca_bundle=PEM) as api:
        assert (await look_up(api)).id == "batch_1"


async def test_tls_where_there_is_none() -> None:
    async with serving(answering(BATCH)) as url, client(url.replace("http:", "https:")) as api:
        error = await raised(api, create)
    assert (error.retryable, error.maybe_done) == (True, False)


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_bundle_that_is_none(tmp_path: Any, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        HttpBatchApi(Service(ca_bundle=str(path)))


async def test_a_proxy_is_used_off_loopback_and_never_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str | None]] = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers["Host"], request.headers.get("Proxy-Authorization")))
        return web.json_response(BATCH)

    async with serving(proxy) as proxy_url, serving(answering(FILE)) as url:
        monkeypatch.setenv("HTTP_PROXY", proxy_url.replace("//", "//user:word@").removesuffix("/v1"))
        async with client("http://service.test/v1", allow_http=True) as api:
            assert (await look_up(api)).id == "batch_1"
        async with client(url) as api:
            assert (await api.file_info("file-1")).id == "file-1"
    assert seen == [("http://service.test/v1/batches/batch_1", "service.test", "Basic dXNlcjp3b3Jk")]


async def test_a_tunnel_learns_nothing_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(BATCH), server_tls()) as url:
        target = int(url.split(":")[2].removesuffix("/v1"))
        asked: list[bytes] = []

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
            await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))

        async with listening(tunnel) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
            async with client("https://service.test/v1", ca_bundle=PEM) as api:
                assert (await look_up(api)).id == "batch_1"
    assert len(asked) == 1
    assert asked[0].startswith(b"CONNECT service.test:443 ")
    assert b"Basic dXNlcjp3b3Jk" in asked[0]
    assert KEY.encode() not in asked[0]


async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()


@pytest.mark.parametrize(("status", "retryable"), [(502, True), (407, False)])
async def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, status: int, retryable: bool) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    async with listening(refuse) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
        async with client("https://service.test/v1") as api:
            error = await raised(api, create)
    assert (error.retryable, error.maybe_done) == (retryable, False)
    assert f"The proxy 127.0.0.1:{port}" in str(error)
    assert "word" not in str(error)


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{taken.getsockname()[1]}")
        async with client("https://service.test/v1") as api:
            error = await raised(api, create)
    assert (error.retryable, error.maybe_done) == (True, False)
    assert "The proxy 127.0.0.1" in str(error)


async def test_the_connection_can_be_closed_twice_and_used_after() -> None:
    async with serving(answering(BATCH)) as url:
        api = HttpBatchApi(Service(base_url=url, api_key=KEY))
        await look_up(api)
        await api.aclose()
        await api.aclose()
        await look_up(api)
        await api.aclose()
    assert isinstance(Connection(Service()), Connection)
