"""Large files up and down: memory, stalls, cuts, redirects, and cancellation on real asyncio."""

import asyncio
import os
import socket
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import BodyPartReader, web

from streambatch.edge.client import HttpBatchApi
from streambatch.edge.files import in_thread
from streambatch.errors import ApiError, StorageError
from tests.client.stage import BATCH, FILE, KEY, client, listening, serving

pytestmark = pytest.mark.anyio
MIB = 1 << 20
CONTENT = bytes(range(256)) * 4096 * 2  # 2 MiB


def file_of(tmp_path: Path, size: int) -> str:
    """A sparse file: big, and made in no time."""
    path = tmp_path / "input.jsonl"
    path.touch()
    os.truncate(path, size)
    return str(path)


async def parts_of(request: web.Request) -> list[tuple[str | None, str | None, bytes]]:
    """(name, file name, content) of each part of a multipart request."""
    parts = []
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        parts.append((part.name, part.filename, bytes(await part.read())))
    return parts


# -- up


async def test_an_upload_as_the_service_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT + "é\u2028".encode())
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.extend(await parts_of(request))
        seen.append((request.path, request.content_length, request.headers.get("Transfer-Encoding")))
        return web.json_response({**FILE, "bytes": len(seen[1][2]), "filename": seen[1][1]})

    async with serving(handler) as url, client(url) as api:
        info = await api.upload(str(path), "run.000000-0.0123.jsonl")
    assert (info.bytes, info.filename) == (len(CONTENT) + 5, "run.000000-0.0123.jsonl")
    assert seen[0] == ("purpose", None, b"batch")
    assert seen[1] == ("file", "run.000000-0.0123.jsonl", path.read_bytes())
    assert seen[2][0] == "/v1/files"
    assert seen[2][1] > len(CONTENT)
    assert seen[2][2] is None


async def test_a_name_can_not_break_out_of_its_header(tmp_path: Path) -> None:
    names: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        names.extend(filename for _, filename, _ in await parts_of(request))
        return web.json_response(FILE)

    async with serving(handler) as url, client(url) as api:
        await api.upload(file_of(tmp_path, 3), 'a"\r\nX-Evil: 1\r\n\r\nb.jsonl')
    assert len(names) == 2
    assert "\r" not in str(names[1])


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads a whole request, keeps nothing, answers with a file."""
    head = await reader.readuntil(b"\r\n\r\n")
    left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while left:
        left -= len(await reader.read(min(left, 65536)))
    body = b'{"id": "file-1", "bytes": 1, "created_at": 1}'
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()


async def test_an_upload_takes_constant_memory(tmp_path: Path) -> None:
    path = file_of(tmp_path, 64 * MIB)
    async with listening(swallow) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        tracemalloc.start()
        try:
            assert (await api.upload(path, "a.jsonl")).id == "file-1"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * MIB


async def test_an_upload_that_stands_still_is_noticed(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads
        await asyncio.sleep(30)

    path = file_of(tmp_path, 64 * MIB)
    async with listening(deaf) as port, client(f"http://127.0.0.1:{port}/v1", stall_s=0.3) as api:
        began, before = time.monotonic(), _open_now()
        with pytest.raises(ApiError, match=r"took nothing for 0\.3 s in the upload of a\.jsonl") as caught:
            await api.upload(path, "a.jsonl")
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.05)
        assert _open_now() <= before + 1, "the other side's end alone is still open"
    assert caught.value.retryable
    assert not _open_here(path)


async def test_a_slow_upload_is_not_a_stalled_one(tmp_path: Path) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kernel = writer.transport.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # hides little
        for _ in range(12):
            await reader.read(MIB)
            await asyncio.sleep(0.1)
        while await reader.read(MIB):
            pass

    path = file_of(tmp_path, 32 * MIB)
    async with listening(slow) as port, client(f"http://127.0.0.1:{port}/v1", stall_s=0.8) as api:
        with anyio.move_on_after(1.6) as scope:  # twice as long as a stall may last
            await api.upload(path, "a.jsonl")
    assert scope.cancelled_caught


async def test_an_upload_without_an_answer_is_noticed(tmp_path: Path) -> None:
    async def silent(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(30)
        return web.json_response(FILE)

    async with serving(silent) as url, client(url, stall_s=0.05) as api:
        with pytest.raises(ApiError, match="did not answer in time"):
            await api.upload(file_of(tmp_path, MIB), "a.jsonl")


async def test_an_early_refusal_is_heard(tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "too big", "code": None}}, status=413)

    async with serving(refuse) as url, client(url) as api:
        with pytest.raises(ApiError) as caught:
            await api.upload(file_of(tmp_path, 1000), "a.jsonl")
    assert caught.value.status == 413


async def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    async with listening(swallow) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        with pytest.raises(StorageError, match=r"none\.jsonl failed: No such file"):
            await api.upload(str(tmp_path / "none.jsonl"), "a.jsonl")


async def test_a_file_that_shrinks_while_it_is_sent(tmp_path: Path) -> None:
    path = file_of(tmp_path, 64 * MIB)

    async def shrinking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        os.truncate(path, MIB)
        while await reader.read(MIB):
            pass

    async with listening(shrinking) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        with pytest.raises(StorageError, match=r"Reading .* failed"):
            await api.upload(path, "a.jsonl")


async def test_an_upload_is_built_anew_for_a_new_key(tmp_path: Path) -> None:
    keys = iter(["old", "new"])
    lengths: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        lengths.append(len(await request.read()))
        return web.json_response(FILE, status=401 if request.headers["Authorization"] == "Bearer old" else 200)

    async with serving(handler) as url, client(url, api_key=lambda: next(keys)) as api:
        await api.upload(file_of(tmp_path, 3 * MIB), "a.jsonl")
    assert len(lengths) == 2
    assert lengths[0] == lengths[1] > 3 * MIB


def _open_now() -> int:
    """How many descriptors this process has, where that can be seen."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _open_here(path: str) -> bool:
    """Whether this process still holds a file open; False where that can't be seen."""
    folder = Path("/proc/self/fd")
    return folder.is_dir() and path in {os.path.realpath(entry) for entry in folder.iterdir()}


# -- down


class Content:
    """A service's file: cuts the connection after `cuts[k]` bytes of answer k; `etag` offers ranges."""

    def __init__(self, *cuts: int, etag: str | None = None, length: bool = True) -> None:
        self.asked: list[str | None] = []
        self._cuts, self._etag, self._length = cuts, etag, length

    async def serve(self, request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted:
            assert request.headers["If-Range"] == self._etag
        response = web.StreamResponse(status=206 if wanted else 200)
        if self._etag is not None:
            response.headers.update({"ETag": self._etag, "Accept-Ranges": "bytes"})
        if wanted:
            response.headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        if self._length:
            response.content_length = len(CONTENT) - start
        await response.prepare(request)
        number = len(self.asked) - 1
        if number < len(self._cuts):
            await response.write(CONTENT[start : start + self._cuts[number]])
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(CONTENT[start:])
        return response


@pytest.mark.parametrize("length", [True, False])
async def test_a_download(tmp_path: Path, length: bool) -> None:
    content = Content(length=length)
    target = tmp_path / "f.part"
    target.write_bytes(b"older and longer" * 200_000)
    async with serving(content.serve) as url, client(url) as api:
        assert await api.download("file-1", str(target)) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 in (0o600, 0o644)


async def test_an_empty_file(tmp_path: Path) -> None:
    async def nothing(request: web.Request) -> web.Response:
        return web.Response(body=b"")

    async with serving(nothing) as url, client(url) as api:
        assert await api.download("file-1", str(tmp_path / "f.part")) == 0
    assert (tmp_path / "f.part").read_bytes() == b""


async def test_a_cut_without_ranges_is_an_error_to_start_over_from(tmp_path: Path) -> None:
    content = Content(MIB)
    async with serving(content.serve) as url, client(url) as api:
        with pytest.raises(ApiError, match="cut short") as caught:
            await api.download("file-1", str(tmp_path / "f.part"))
        assert caught.value.retryable
        assert await api.download("file-1", str(tmp_path / "f.part")) == len(CONTENT)
    assert content.asked == [None, None]
    assert (tmp_path / "f.part").read_bytes() == CONTENT


async def test_a_cut_with_ranges_is_resumed(tmp_path: Path) -> None:
    content = Content(MIB, 3, MIB // 2, etag='"strong"')
    async with serving(content.serve) as url, client(url) as api:
        assert await api.download("file-1", str(tmp_path / "f.part")) == len(CONTENT)
    assert content.asked[0] is None
    assert all(asked is not None for asked in content.asked[1:])
    assert (tmp_path / "f.part").read_bytes() == CONTENT


async def test_a_weak_etag_is_not_enough(tmp_path: Path) -> None:
    content = Content(MIB, etag='W/"weak"')
    async with serving(content.serve) as url, client(url) as api:
        with pytest.raises(ApiError):
            await api.download("file-1", str(tmp_path / "f.part"))
    assert content.asked == [None]


async def test_resuming_without_progress_ends(tmp_path: Path) -> None:
    content = Content(*[MIB, *[0] * 100], etag='"strong"')
    async with serving(content.serve) as url, client(url) as api:
        with pytest.raises(ApiError):
            await api.download("file-1", str(tmp_path / "f.part"))
    assert len(content.asked) == 7


async def test_a_file_that_changed_between_the_parts_is_received_anew(tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range"))
        body = CONTENT if len(asked) == 1 else b"new content"
        response = web.StreamResponse(
            headers={"ETag": f'"{len(asked)}"', "Accept-Ranges": "bytes", "Content-Length": str(len(body))}
        )
        await response.prepare(request)
        await response.write(body[:MIB])
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.close()
        return response

    async with serving(handler) as url, client(url) as api:
        assert await api.download("file-1", str(tmp_path / "f.part")) == 11
    assert (tmp_path / "f.part").read_bytes() == b"new content"
    assert asked[1] is not None


async def test_another_part_than_asked_for_is_not_taken(tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range"))
        first = len(asked) == 1
        headers = {"ETag": '"e"', "Accept-Ranges": "bytes", "Content-Length": str(len(CONTENT))}
        if not first:
            headers["Content-Range"] = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
        response = web.StreamResponse(status=200 if first else 206, headers=headers)
        await response.prepare(request)
        await response.write(CONTENT[:MIB])
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(handler) as url, client(url) as api:
        with pytest.raises(ApiError, match="another part") as caught:
            await api.download("file-1", str(tmp_path / "f.part"))
    assert caught.value.retryable


async def test_a_file_that_is_gone(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "No such File object"}}, status=404)

    async with serving(handler) as url, client(url) as api:
        with pytest.raises(ApiError) as caught:
            await api.download("file-1", str(tmp_path / "f.part"))
    assert (caught.value.status, caught.value.retryable) == (404, False)


async def test_a_target_that_can_not_be_written(tmp_path: Path) -> None:
    async with serving(Content().serve) as url, client(url) as api:
        with pytest.raises(StorageError, match="No such file or directory"):
            await api.download("file-1", str(tmp_path / "none" / "f.part"))


async def test_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    async with serving(Content().serve) as url, client(url) as api:
        with pytest.raises(StorageError, match="No space left"):
            await api.download("file-1", "/dev/full")


async def test_a_download_takes_constant_memory(tmp_path: Path) -> None:
    async def big(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(64 * MIB)})
        await response.prepare(request)
        block = bytes(MIB)
        for _ in range(64):
            await response.write(block)
        return response

    async with serving(big) as url, client(url) as api:
        tracemalloc.start()
        try:
            assert await api.download("file-1", str(tmp_path / "f.part")) == 64 * MIB
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 12 * MIB


# -- redirects of content


async def test_a_redirect_is_followed_without_credentials(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def store(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(body=b"stored")

    async with serving(store) as other:

        async def handler(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": f"{other}/blob?sig=1"})

        async with serving(handler) as url, client(url, organization="org-1", headers={"X-Gateway": "g"}) as api:
            assert await api.download("file-1", str(tmp_path / "f.part")) == 6
    assert (tmp_path / "f.part").read_bytes() == b"stored"
    assert not {"authorization", "openai-organization", "x-gateway"} & set(seen[0])
    assert KEY not in str(seen)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://user:pw@127.0.0.1/x", "ftp://127.0.0.1/x"])
async def test_an_unsafe_redirect_is_not_followed(tmp_path: Path, location: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    async with serving(handler) as url, client(url) as api:
        with pytest.raises(ApiError, match="not safe") as caught:
            await api.download("file-1", str(tmp_path / "f.part"))
    assert not caught.value.retryable


async def test_redirects_end(tmp_path: Path) -> None:
    hops: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        hops.append(request.path)
        return web.Response(status=307, headers={"Location": f"/v1/hop/{len(hops)}"})

    async with serving(handler) as url, client(url) as api:
        with pytest.raises(ApiError, match="from one address to the next"):
            await api.download("file-1", str(tmp_path / "f.part"))
    assert len(hops) == 4


# -- cancellation


@pytest.mark.parametrize("natively", [True, False])
async def test_a_cancelled_file_operation_has_ended_when_its_caller_is_gone(natively: bool) -> None:
    ended: list[str] = []

    def operation() -> None:
        time.sleep(0.2)
        ended.append("operation")

    async def caller() -> None:
        try:
            await in_thread(operation)
        finally:
            ended.append("caller")

    if natively:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()  # impatience changes nothing
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with anyio.move_on_after(0.05):
            await caller()
    assert ended == ["operation", "caller"]


@pytest.mark.parametrize("natively", [True, False])
async def test_a_cancelled_download_leaves_no_later_write(tmp_path: Path, natively: bool) -> None:
    """The one thread is busy when the cancel comes, and the write stands in line behind it."""
    target = tmp_path / "f.part"
    loop = asyncio.get_running_loop()
    busy: list[asyncio.Future[None]] = []
    sent = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(CONTENT))})
        await response.prepare(request)
        busy.append(loop.run_in_executor(None, time.sleep, 0.4))
        await response.write(CONTENT[:-1])
        sent.set()
        await asyncio.sleep(30)
        return response

    with ThreadPoolExecutor(1) as threads:
        loop.set_default_executor(threads)
        async with serving(handler) as url, client(url) as api:
            if natively:
                task = asyncio.create_task(api.download("file-1", str(target)))
                await sent.wait()
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with anyio.move_on_after(0.2):
                    await api.download("file-1", str(target))
            size = target.stat().st_size
            assert busy
            assert busy[0].done()
            await asyncio.sleep(0.3)
            assert target.stat().st_size == size > 0
            assert not _open_here(str(target))


@pytest.mark.parametrize("natively", [True, False])
async def test_a_cancelled_upload_closes_connection_and_file(tmp_path: Path, natively: bool) -> None:
    path = file_of(tmp_path, 256 * MIB)
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                begun.set()
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async with listening(reading) as port, client(f"http://127.0.0.1:{port}/v1") as api:
        if natively:
            task = asyncio.create_task(api.upload(path, "a.jsonl"))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.move_on_after(0.3) as scope:
                await api.upload(path, "a.jsonl")
            assert scope.cancelled_caught
        assert not _open_here(path)
        await asyncio.wait_for(ended.wait(), 10)


CALLS: list[Callable[[HttpBatchApi], Awaitable[object]]] = [
    lambda api: api.create_batch("file-1", "/v1/x", {}),
    lambda api: api.get_batch("batch_1"),
    lambda api: api.list_batches(),
    lambda api: api.cancel_batch("batch_1"),
    lambda api: api.file_info("file-1"),
    lambda api: api.delete_file("file-1"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("natively", [True, False])
async def test_a_cancelled_call_closes_its_connection_and_harms_no_other(call: Any, natively: bool) -> None:
    waiting = asyncio.Event()
    left = asyncio.Event()
    calm = False

    async def handler(request: web.Request) -> web.Response:
        if calm:
            return web.json_response(BATCH)
        waiting.set()
        try:
            await asyncio.sleep(30)
        finally:
            left.set()
        return web.json_response(BATCH)

    async with serving(handler) as url, client(url) as api:
        if natively:
            task = asyncio.ensure_future(call(api))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call, api)
                    await waiting.wait()
                    scope.cancel()
        await asyncio.wait_for(left.wait(), 10)
        calm = True
        assert (await api.get_batch("batch_1")).id == "batch_1"
