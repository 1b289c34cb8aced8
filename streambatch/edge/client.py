"""BatchApi, the few calls that the engine makes to a provider, and HttpBatchApi, which makes them over HTTP.

Each call is one attempt: whether to try again is decided elsewhere. Knows no shards, journals or budgets.
"""

import math
from typing import Protocol
from urllib.parse import quote, urlencode

import anyio
import msgspec

from streambatch.core.profiles import OPENAI, Dialect
from streambatch.core.wire import (
    BatchInfo,
    BatchPage,
    FileInfo,
    FilePage,
    decode_batch,
    decode_file,
    decode_file_page,
    decode_page,
)
from streambatch.core.wording import one_line
from streambatch.edge.service import Service, host_port
from streambatch.edge.transfer import Form, Sink
from streambatch.errors import ApiError


class BatchApi(Protocol):
    """What a provider can do for us. Every call is one attempt and may raise ApiError."""

    async def upload(self, path: str, name: str) -> FileInfo:
        """Send a file as a batch's input, under `name`. Raises StorageError too, where it can't be read."""
        ...

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        """Buy one batch. An ApiError says in `maybe_done` whether it may exist all the same."""
        ...

    async def get_batch(self, batch_id: str) -> BatchInfo: ...

    async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
        """One page of all batches, newest first, from behind the batch `after`."""
        ...

    async def cancel_batch(self, batch_id: str) -> BatchInfo:
        """Ask for cancellation. A batch that has ended already is returned as it is."""
        ...

    async def download(self, file_id: str, target: str) -> int:
        """Write a file's content to `target`, synced, and tell its bytes. Raises StorageError too; `target` is then partial."""
        ...

    async def file_info(self, file_id: str) -> FileInfo: ...

    async def list_files(self, after: str | None = None, limit: int = 1000) -> FilePage:
        """One page of all input files of batches, newest first, from behind the file `after`."""
        ...

    async def delete_file(self, file_id: str) -> bool:
        """Delete a file; False if it was gone."""
        ...

    async def aclose(self) -> None: ...


class HttpBatchApi:
    """The batch API of a service over HTTP, on asyncio, in its dialect. `stall_s` is how long an upload may stand still, `expire_s`
    how long the service shall keep each file (None: as long as it does).

    Raises ConfigError where the certificates, the key or the proxy of the environment can't be used.
    """

    def __init__(
        self,
        service: Service,
        dialect: Dialect = OPENAI.dialect,
        *,
        stall_s: float = 60.0,
        expire_s: int | None = None,
    ) -> None:
        from streambatch.edge.http import Connection  # loads aiohttp, which only whoever connects needs

        self._root = service.base_url.rstrip("/")
        self._dialect = dialect
        self._stall_s = stall_s
        self._expire_s = expire_s
        self._connection = Connection(service)

    async def aclose(self) -> None:
        await self._connection.aclose()

    # -- batches

    async def create_batch(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> BatchInfo:
        wanted: dict[str, object] = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": self._dialect.window,
            "metadata": metadata,
        }
        if self._expire_s is not None:
            wanted["output_expires_after"] = {"anchor": "created_at", "seconds": self._expire_s}
        body, _ = await self._connection.call(
            "POST", self._url("batches"), "the create of a batch", msgspec.json.encode(wanted)
        )
        return decode_batch(body)

    async def get_batch(self, batch_id: str) -> BatchInfo:
        body, _ = await self._connection.call(
            "GET", self._url("batches", batch_id), f"the look-up of batch {one_line(batch_id)}"
        )
        return decode_batch(body, batch_id)

    async def list_batches(self, after: str | None = None, limit: int = 100) -> BatchPage:
        query = urlencode({"limit": limit} if after is None else {"limit": limit, "after": after})
        body, date = await self._connection.call("GET", f"{self._url('batches')}?{query}", "the list of batches")
        return decode_page(body, date, limit)

    async def cancel_batch(self, batch_id: str) -> BatchInfo:
        url = self._url("batches", batch_id, "cancel")
        try:
            body, _ = await self._connection.call("POST", url, f"the cancellation of batch {one_line(batch_id)}")
        except ApiError as error:
            if error.status not in (400, 409):
                raise
            batch = await self.get_batch(batch_id)
            if not batch.terminal:  # refused for another reason than that it had ended
                raise
            return batch
        return decode_batch(body, batch_id)

    # -- files

    async def file_info(self, file_id: str) -> FileInfo:
        body, _ = await self._connection.call(
            "GET", self._url("files", file_id), f"the look-up of file {one_line(file_id)}"
        )
        return decode_file(body, file_id)

    async def list_files(self, after: str | None = None, limit: int = 1000) -> FilePage:
        asked: dict[str, str | int] = {"purpose": self._dialect.purpose, "limit": limit}
        query = urlencode(asked if after is None else {**asked, "after": after})
        body, _ = await self._connection.call("GET", f"{self._url('files')}?{query}", "the list of files")
        return decode_file_page(body, limit)

    async def delete_file(self, file_id: str) -> bool:
        try:
            await self._connection.call(
                "DELETE", self._url("files", file_id), f"the deletion of file {one_line(file_id)}"
            )
        except ApiError as error:
            if error.status in (404, 410):
                return False
            raise
        return True

    async def upload(self, path: str, name: str) -> FileInfo:
        with anyio.CancelScope() as watchdog:
            return decode_file(await self._connection.authorized(lambda key: self._send(path, name, watchdog, key)))
        raise ApiError(
            f"The service at {host_port(self._root)} took nothing for {self._stall_s:g} s in the upload of {name}.",
            retryable=True,
            maybe_done=True,
        )

    async def _send(self, path: str, name: str, watchdog: anyio.CancelScope, key: str) -> bytes:
        """One upload; the watchdog ends it when the other side takes nothing for too long."""

        def waiting(for_the_service: bool) -> None:
            watchdog.deadline = anyio.current_time() + self._stall_s if for_the_service else math.inf

        form = Form(path, name, self._dialect.purpose, waiting, self._expire_s)
        answer_s = 5 * self._stall_s  # what the kernel still holds at the end must get there too
        try:
            await form.open()
            headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}
            doing = f"the upload of {name}"
            return await self._connection.send(self._url("files"), doing, key, form.body(), headers, answer_s)
        except ApiError as error:
            raise (error if form.failure is None else form.failure) from error
        finally:
            waiting(False)
            form.close()

    async def download(self, file_id: str, target: str) -> int:
        from streambatch.edge.content import fetch

        url = self._url("files", file_id, "content")
        doing = f"the download of file {one_line(file_id)}"
        sink = Sink(target)
        try:
            await sink.open()
            await self._connection.authorized(lambda key: fetch(self._connection, url, doing, sink, key))
            await sink.sync()
            return sink.received
        finally:
            await sink.aclose()

    def _url(self, *parts: str) -> str:
        return "/".join([self._root, *map(_quoted, parts)])


def _quoted(part: str) -> str:
    """One path segment, whatever a service calls its objects; `.` and `..` too stay names."""
    text = quote(part, safe="")
    return text.replace(".", "%2E") if text in (".", "..") else text
