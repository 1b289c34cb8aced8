"""Connection: one HTTP exchange with the service, with who we are, the proxy, the certificates and the time-outs.

With `edge.answers` and `edge.content` the only client use of aiohttp. Knows no batches.
"""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from importlib import metadata as packages
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from streambatch.core.answers import http_date
from streambatch.core.profiles import AUTHORIZATION
from streambatch.edge.answers import map_errors, of_answer
from streambatch.edge.service import Service, current_key, host_port, proxy_for
from streambatch.errors import ApiError, ConfigError

T = TypeVar("T")
CONNECTIONS = 100
CONNECT_S, READ_S, JSON_S = 10.0, 60.0, 120.0
LARGEST_ANSWER = 64 << 20
LARGEST_ERROR = 1 << 16
READ_AHEAD = 1 << 19
JSON_CALL = aiohttp.ClientTimeout(total=JSON_S, sock_connect=CONNECT_S, sock_read=READ_S)


def transfer_timeout(answer_s: float = READ_S) -> aiohttp.ClientTimeout:
    """Large files have no total time: each silence of the other side, and the wait for its answer, has one."""
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s)


class Connection:
    """The way to one service. Raises ConfigError where its certificates, or the proxy of the environment, can't be used."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._trust = _trust(service.ca_bundle)
        self._agent = _user_agent()
        self._key: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def authorized(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """An attempt with the key; one more, with the key read again, if it is refused and has changed."""
        key = self._key if self._key is not None else await self._read_key()
        try:
            return await attempt(key)
        except ApiError as error:
            if error.status != 401 or not callable(self._service.api_key):
                raise
            fresh = await self._read_key()
            if fresh == key:
                raise
        return await attempt(fresh)

    async def call(self, method: str, url: str, doing: str, body: bytes | None = None) -> tuple[bytes, float | None]:
        """A JSON call: the answer's bytes and its date (unix seconds). Raises ApiError."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        return await self.authorized(lambda key: self.exchange(method, url, doing, key, body, headers, JSON_CALL))

    async def send(self, url: str, doing: str, key: str, body: Any, headers: dict[str, str], answer_s: float) -> bytes:
        """Post a large body; its answer may take `answer_s` from the last byte on. Raises ApiError."""
        timeout = transfer_timeout(answer_s)
        with _dropping():
            data, _ = await self.exchange("POST", url, doing, key, body, headers, timeout)
        return data

    async def exchange(
        self,
        method: str,
        url: str,
        doing: str,
        key: str,
        body: Any,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> tuple[bytes, float | None]:
        """One exchange of JSON: the bytes of a successful answer, and its date."""
        wanted = {"Accept": "application/json", "Accept-Encoding": "gzip", **headers}
        async with self.ask(method, url, doing, key, body, wanted, timeout) as response:
            data = await _whole(response, LARGEST_ANSWER)
            if len(data) > LARGEST_ANSWER:
                raise ApiError(f"The answer to {doing} is larger than {LARGEST_ANSWER >> 20} MiB.", maybe_done=True)
            return data, http_date(response.headers.get("Date"))

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        url: str,
        doing: str,
        key: str | None,
        body: Any,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        also: tuple[int, ...] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer, or one with a status of `also`. Without `key` nothing says who we are. Raises ApiError."""
        proxy, via, passport = self._way(url)
        with map_errors(doing, host_port(url), proxy):
            async with self._connected().request(
                method,
                URL(url, encoded=True),
                data=body,
                headers={**headers, **self._identity(key), **passport},
                allow_redirects=False,
                timeout=timeout,
                read_bufsize=READ_AHEAD,
                **via,
            ) as response:
                if not 200 <= response.status < 300 and response.status not in also:
                    body_of_error = await _error_body(response)
                    raise of_answer(doing, response.status, body_of_error, response.headers, self._secrets(key))
                yield response

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- who we are

    async def _read_key(self) -> str:
        self._key = await current_key(self._service)
        return self._key

    def _identity(self, key: str | None) -> dict[str, str]:
        if key is None:
            return {}
        service = self._service
        passed = f"Bearer {key}" if key and service.key_header == AUTHORIZATION else key
        named = {
            service.key_header: passed,
            "OpenAI-Organization": service.organization,
            "OpenAI-Project": service.project,
            **dict(service.header_pairs),
        }
        return {name: text for name, text in named.items() if text}

    def _secrets(self, key: str | None) -> list[str]:
        return [key or "", *(value for _, value in self._service.header_pairs)]

    # -- the way there

    def _way(self, url: str) -> tuple[str | None, dict[str, Any], dict[str, str]]:
        """The proxy's `host:port`, what the transport must know of it, and the header that a proxied clear-text request carries."""
        proxy = proxy_for(url, self._service.trust_env)
        if proxy is None:
            return None, {}, {}
        via: dict[str, Any] = {"proxy": proxy.url}
        passport: dict[str, str] = {}
        if proxy.user is not None:
            pair = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
            passport = {"Proxy-Authorization": f"Basic {pair}"}
        if url.startswith("https:"):  # a tunnel: what the proxy must know is not for the service
            via["proxy_headers"], passport = passport, {}
        return host_port(proxy.url), via, passport

    def _connected(self) -> aiohttp.ClientSession:
        """The session. No header that says who we are is a default of it: a proxy would be told those too."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self._trust),
                headers={"User-Agent": self._agent},
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=_Request,
            )
        return self._session


_WIRES: ContextVar[list[asyncio.BaseTransport]] = ContextVar("wires")  # that carry the large body of this task


class _Request(aiohttp.ClientRequest):
    """A request that tells which connection it went out on."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        wires = _WIRES.get(None)
        if wires is not None and conn.transport is not None:
            wires.append(conn.transport)
        return await super().send(conn)


@contextmanager
def _dropping() -> Iterator[None]:
    """A body that was given up half-way is not sent to its end: who reads nothing would keep the connection for ever."""
    wires: list[asyncio.BaseTransport] = []
    token = _WIRES.set(wires)
    try:
        yield
        wires.clear()
    finally:
        _WIRES.reset(token)
        for wire in wires:
            if isinstance(wire, asyncio.WriteTransport):
                wire.abort()


def _trust(ca_bundle: str | None) -> ssl.SSLContext | bool:
    if ca_bundle is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except ssl.SSLError as error:
        raise ConfigError(f"The file {ca_bundle} holds no certificates that can be read.") from error
    except OSError as error:
        raise ConfigError(f"The certificates in {ca_bundle} can't be read: {error.strerror}.") from error


def _user_agent() -> str:
    try:
        return f"streambatch/{packages.version('streambatch-engine')}"
    except packages.PackageNotFoundError:  # run from a source tree
        return "streambatch"


async def _whole(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, or its beginning once it is longer than `most`."""
    data = bytearray()
    async for block in response.content.iter_any():
        data += block
        if len(data) > most:
            break
    return bytes(data)


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await _whole(response, LARGEST_ERROR)
    except (aiohttp.ClientError, TimeoutError):
        return b""  # the status says enough
