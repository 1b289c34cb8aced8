"""The HTTP side whole: its routes, and the server as a context on a running event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from streambatch.errors import ConfigError
from streambatch.server import batches, control, files, parts, uploads
from streambatch.server.door import LABELS, SERVICE, Handler, envelopes, guard, misbehave, stamp
from streambatch.server.script import Script
from streambatch.server.service import Own, Service
from streambatch.server.settings import Settings

# label of fault scripts (empty: never misbehaves), method, path, handler
ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("upload", "POST", "/v1/files", uploads.upload),
    ("files", "GET", "/v1/files", files.listing),
    ("file", "GET", "/v1/files/{id}", files.retrieve),
    ("delete", "DELETE", "/v1/files/{id}", files.delete),
    ("content", "GET", "/v1/files/{id}/content", files.content),
    ("upload_create", "POST", "/v1/uploads", parts.create),
    ("part", "POST", "/v1/uploads/{id}/parts", parts.add),
    ("upload_complete", "POST", "/v1/uploads/{id}/complete", parts.complete),
    ("upload_cancel", "POST", "/v1/uploads/{id}/cancel", parts.cancel),
    ("create", "POST", "/v1/batches", batches.create),
    ("list", "GET", "/v1/batches", batches.listing),
    ("retrieve", "GET", "/v1/batches/{id}", batches.retrieve),
    ("cancel", "POST", "/v1/batches/{id}/cancel", batches.cancel),
    ("models", "GET", "/v1/models", control.models),
    ("model", "GET", "/v1/models/{id}", control.model),
    ("", "GET", "/control/ledger", control.ledger),
    ("", "GET", "/control/faults", control.get_faults),
    ("", "POST", "/control/faults", control.set_faults),
    ("", "DELETE", "/control/faults", control.clear_faults),
)
READ_BUFFER = 1 << 18
SHUTDOWN_S = 1.0
MAX_JSON_BYTES = 8 << 20


def make_app(service: Service) -> web.Application:
    """The HTTP side of a service."""
    app = web.Application(middlewares=[envelopes, guard, misbehave], client_max_size=MAX_JSON_BYTES)
    app[SERVICE] = service
    app[LABELS] = {handler: label for label, _, _, handler in ROUTES if label}
    app.on_response_prepare.append(stamp)
    for _, method, path, handler in ROUTES:
        app.router.add_route(method, path, handler)
    return app


@contextlib.asynccontextmanager
async def running(settings: Settings, script: Script | None = None, answer: Own | None = None) -> AsyncIterator[str]:
    """The server on the running loop; yields its base URL, which ends in /v1. Raises `ConfigError` where it can't run."""
    service = Service(settings, Script() if script is None else script, answer)
    runner = web.AppRunner(make_app(service), access_log=None, shutdown_timeout=SHUTDOWN_S, read_bufsize=READ_BUFFER)
    try:
        service.recover()
        await runner.setup()
        url = await _listen(runner, settings)
        service.runner.start()
        service.webhooks.start()
        yield url
    finally:
        await runner.cleanup()
        await asyncio.to_thread(service.stop)


async def _listen(runner: web.AppRunner, settings: Settings) -> str:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        raise ConfigError(
            f"The server can't listen on {settings.host} port {settings.port}: {error.strerror}."
        ) from error
    port = runner.addresses[0][1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}/v1"
