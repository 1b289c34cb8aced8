"""The content of a file at the service, received into a Sink: redirects without credentials, cuts resumed where that is offered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import aiohttp

from streambatch.edge.http import Connection, transfer_timeout
from streambatch.edge.transfer import Sink
from streambatch.errors import ApiError

REDIRECTS = 3
RESUMES = 5  # of one download without progress in between
MOVED = (301, 302, 303, 307, 308)
TIMEOUT = transfer_timeout()


async def fetch(connection: Connection, url: str, doing: str, sink: Sink, key: str) -> None:
    """Receive all of it; where the service offers to go on from a cut, do so. Raises ApiError or StorageError."""
    etag: str | None = None
    idle = 0
    while True:
        before = sink.received
        try:
            async with _content(connection, url, doing, key, _range(before, etag)) as response:
                etag = _resumable(response)
                await _receive(response, sink, doing)
            return
        except ApiError as error:
            await sink.flush()
            idle = 0 if sink.received > before else idle + 1
            if etag is None or error.status is not None or idle > RESUMES:
                raise


def _range(start: int, etag: str | None) -> dict[str, str]:
    return {"Range": f"bytes={start}-", "If-Range": etag} if etag is not None and start else {}


@asynccontextmanager
async def _content(
    connection: Connection, url: str, doing: str, key: str, part: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer that carries the content; redirects are followed by hand, without credentials."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", **part}
    credentials: str | None = key
    clear_text = url.startswith("http:")
    for _ in range(REDIRECTS + 1):
        async with connection.ask("GET", url, doing, credentials, None, headers, TIMEOUT, MOVED) as response:
            if response.status not in MOVED:
                yield response
                return
            url = _moved(url, response, doing, clear_text)
            credentials = None
    raise ApiError(
        f"The service sends {doing} from one address to the next, more than {REDIRECTS} times.", status=response.status
    )


def _moved(url: str, response: aiohttp.ClientResponse, doing: str, clear_text: bool) -> str:
    target = urljoin(url, response.headers.get("Location", ""))
    parts = urlsplit(target)
    safe = parts.scheme == "https" or (clear_text and parts.scheme == "http")
    if not safe or not parts.hostname or parts.username is not None:
        raise ApiError(
            f"The service redirects {doing} to an address that is not safe to follow.", status=response.status
        )
    return target


def _resumable(response: aiohttp.ClientResponse) -> str | None:
    """The strong ETag of an answer that the service would give in parts."""
    etag = response.headers.get("ETag", "")
    offered = response.status == 206 or response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
    return etag if offered and etag.startswith('"') and "Content-Encoding" not in response.headers else None


async def _receive(response: aiohttp.ClientResponse, sink: Sink, doing: str) -> None:
    """Add an answer's body to the file. Raises ApiError where it is not as long as announced."""
    if response.status == 206:
        total: int | None = _range_total(response, sink.received, doing)
    else:
        await sink.restart()
        total = None if "Content-Encoding" in response.headers else response.content_length
    async for block in response.content.iter_any():
        await sink.add(block)
    await sink.flush()
    if total is not None and sink.received != total:
        raise ApiError(f"The service gave {sink.received} of {total} bytes in {doing}.", retryable=True)


def _range_total(response: aiohttp.ClientResponse, start: int, doing: str) -> int:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    if unit != "bytes" or span.split("-")[0] != str(start) or not (total.isascii() and total.isdigit()):
        raise ApiError(
            f"The service sent another part than it was asked for in {doing}.", status=response.status, retryable=True
        )
    return int(total)
