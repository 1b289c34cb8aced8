"""The calls under /v1/files but the upload. Downloads move in blocks; ids are looked up, never joined to a path."""

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from streambatch.server import rules
from streambatch.server.door import RULES, SERVICE, RefusedError, answer, hang_up, stall
from streambatch.server.objects import file_object, page
from streambatch.server.query import after_of, limit_of
from streambatch.server.records import File

READ = 1 << 18


def _found(request: web.Request) -> File:
    file_id = request.match_info["id"]
    file = request.app[SERVICE].store.file(file_id)
    if file is None:
        raise RefusedError(404, f"No such File object: {file_id}", param="id")
    return file


async def listing(request: web.Request) -> web.StreamResponse:
    store, query = request.app[SERVICE].store, request.query
    limit = limit_of(query, 10_000, 10_000)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RefusedError(
            400, f"Invalid value: '{order}'. Supported values are: 'asc', 'desc'.", param="order", code="invalid_value"
        )
    found = store.files(query.get("purpose"), limit + 1, after_of(query, store.file), order == "desc")
    return answer(request, page([file_object(file) for file in found[:limit]], len(found) > limit))


async def retrieve(request: web.Request) -> web.StreamResponse:
    return answer(request, file_object(_found(request)))


async def delete(request: web.Request) -> web.StreamResponse:
    service, file = request.app[SERVICE], _found(request)
    service.store.delete_file(file.key)
    service.forget_content(file.content)
    return answer(request, {"id": file.id, "object": "file", "deleted": True})


async def content(request: web.Request) -> web.StreamResponse:
    """A file's bytes: with a length, in constant memory; marked as delivered once all of them left."""
    service, file = request.app[SERVICE], _found(request)
    met = RULES.get()
    size = min([file.bytes, *(rule.at for rule in met if isinstance(rule, rules.Short))])
    start, stop = _span(request, file, size) if service.settings.ranges else (0, size)
    response = web.StreamResponse(status=200 if (start, stop) == (0, size) else 206)
    response.content_type = "application/octet-stream"
    response.content_length = stop - start
    response.headers["Content-Disposition"] = f'attachment; filename="{file.id}.jsonl"'
    if service.settings.ranges:
        response.headers.update({"Accept-Ranges": "bytes", "ETag": _etag(file)})
        if response.status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    await response.prepare(request)
    cut = [rule.at for rule in met if isinstance(rule, rules.Cut)]
    paces = [rule.bytes_per_s for rule in met if isinstance(rule, rules.Slow)]
    path, pace, end = service.contents / file.content, min(paces, default=0), min([stop, *(start + at for at in cut)])
    for rule in [rule for rule in met if isinstance(rule, rules.Hang)]:
        middle = min(end, start + rule.at)
        await _send(response, path, start, middle, pace)
        await stall(rule.seconds)
        start = middle
    await _send(response, path, start, end, pace)
    if end < stop:
        hang_up(request)
    await response.write_eof()
    if stop == file.bytes:
        await asyncio.to_thread(service.store.mark_delivered, file.key)
    return response


async def _send(response: web.StreamResponse, path: Path, start: int, stop: int, bytes_per_s: int) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(stop - start, READ if not bytes_per_s else max(1, bytes_per_s // 10)))
            await response.write(block)
            start += len(block)
            if bytes_per_s:
                await asyncio.sleep(len(block) / bytes_per_s)


def _etag(file: File) -> str:
    return f'"{file.id}-{file.bytes}"'


def _span(request: web.Request, file: File, size: int) -> tuple[int, int]:
    """The part that a Range header asks for; all of it where there is none, or the file is another than the client thinks."""
    try:
        asked: Any = request.http_range if request.headers.get("If-Range", _etag(file)) == _etag(file) else slice(None)
    except ValueError:  # a form that HTTP tells us to ignore
        asked = slice(None)
    if asked.start is None and asked.stop is None:
        return 0, size
    start, stop, _ = asked.indices(size)
    if start >= stop:
        raise RefusedError(416, "The requested range can't be served.", code="range_not_satisfiable")
    return start, stop
