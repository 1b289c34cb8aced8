"""Small servers that do one thing each, on loopback: HTTP by a handler, and raw sockets for what is no HTTP."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from streambatch.edge.client import HttpBatchApi
from streambatch.edge.service import Service

PEM = str(Path(__file__).with_name("localhost.pem"))  # a private authority's certificate for these tests, and its key
KEY = "test-key-0123456789"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BATCH = {
    "id": "batch_1",
    "object": "batch",
    "status": "validating",
    "created_at": 1_800_000_000,
    "input_file_id": "file-1",
}
FILE = {"id": "file-1", "object": "file", "bytes": 5, "created_at": 1_800_000_000, "filename": "a.jsonl"}


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that gives every request to `handler`; the base URL."""
    app = web.Application(client_max_size=1 << 40)
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def listening(handler: RawHandler) -> AsyncIterator[int]:
    """A server of raw connections; its port. Connections are closed when the handler returns, and at the end."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]  # a handler runs in a task of its own
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the other side left, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@contextlib.asynccontextmanager
async def client(url: str, **settings: object) -> AsyncIterator[HttpBatchApi]:
    """The client under test. `settings` are those of Service, and `stall_s`."""
    stall_s = float(str(settings.pop("stall_s", 60.0)))
    service = Service(base_url=url, **{"api_key": KEY, **settings})  # type: ignore[arg-type]  # each test names real settings
    api = HttpBatchApi(service, stall_s=stall_s)
    try:
        yield api
    finally:
        await api.aclose()


def answering(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    """A handler with one answer for everything."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response(body, status=status, headers=headers)

    return handler


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context
