"""A gateway before the local server: it may speak TLS, and may have a say in every call before it is passed on."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web
from yarl import URL

from streambatch.testing import LocalServer
from tests.client.stage import serving

Say = Callable[[web.Request], web.Response | None]
OWN = ("Host", "Transfer-Encoding", "Authorization")


def nothing_to_say(request: web.Request) -> None:
    """Every call passes."""


@contextlib.asynccontextmanager
async def gateway(
    server: LocalServer, tls: ssl.SSLContext | None = None, say: Say = nothing_to_say
) -> AsyncIterator[str]:
    """Its base URL. What `say` answers is the answer; all else goes on to the server, with the server's own key."""
    origin = server.url.removesuffix("/v1")
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            said = say(request)
            if said is not None:
                await request.read()
                return said
            headers = {name: text for name, text in request.headers.items() if name not in OWN}
            headers["Authorization"] = f"Bearer {server.api_key}"
            body = request.content if request.can_read_body else None
            url = URL(origin + request.raw_path, encoded=True)
            async with session.request(request.method, url, data=body, headers=headers) as answer:
                kept = {n: t for n, t in answer.headers.items() if n not in ("Transfer-Encoding", "Content-Length")}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        async with serving(forward, tls) as url:
            yield url
