"""The calls under /v1/uploads: a file that arrives in parts, each streamed to disk, and is put together when told so.

Nothing is held in memory but a block; an upload that is not completed within the hour is forgotten with its parts.
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from streambatch.server.asking import check_choice, expiry_of, json_object, need, wrong_type
from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.incoming import BLOCK, HEAD, Incoming
from streambatch.server.objects import part_object, upload_object
from streambatch.server.records import Part, Upload, new_content_name, new_part_id, new_upload_id
from streambatch.server.service import Service
from streambatch.server.uploads import check_input, new_file

MAX_UPLOAD_BYTES = 8 << 30
MAX_PART_BYTES = 64 << 20
LIFE_S = 3_600


async def create(request: web.Request) -> web.StreamResponse:
    service, asked = request.app[SERVICE], json_object(await request.read())
    profile = service.settings.service
    filename, purpose, _ = need(asked, "filename"), need(asked, "purpose"), need(asked, "mime_type")
    check_choice("purpose", purpose, profile.purposes)
    size = need(asked, "bytes", int)
    if not 1 <= size <= MAX_UPLOAD_BYTES:
        message = f"Invalid 'bytes': expected an integer from 1 to {MAX_UPLOAD_BYTES}, but got {size} instead."
        raise RefusedError(400, message, param="bytes", code="invalid_value")
    expires_s = expiry_of("expires_after", asked.get("expires_after"), profile)
    now = int(time.time())
    for old in service.store.dead_uploads():
        forget_parts(service, old)
    upload = Upload(
        seq=None, id=new_upload_id(), filename=filename, purpose=purpose, bytes=size, created_at=now,
        expires_at=now + LIFE_S, file_expires_s=expires_s,
    )  # fmt: skip
    return answer(request, upload_object(service.store.add_upload(upload), None), compact=True)


async def add(request: web.Request) -> web.StreamResponse:
    service, upload = request.app[SERVICE], _pending(request)
    content = new_content_name()
    taken = Incoming(service.contents / content, "data", MAX_PART_BYTES)
    try:
        await taken.read(request)
        if taken.filename is None:
            raise RefusedError(
                400, "Missing required parameter: 'data'.", param="data", code="missing_required_parameter"
            )
        part = Part(
            seq=None, id=new_part_id(), upload_id=upload.id, bytes=taken.size, created_at=int(time.time()), content=content
        )  # fmt: skip
        if not service.store.add_part(part):
            raise _over(request.app[SERVICE].store.upload(upload.id))
    except BaseException:
        taken.path.unlink(missing_ok=True)
        raise
    return answer(request, part_object(part), compact=True)


async def complete(request: web.Request) -> web.StreamResponse:
    service, upload = request.app[SERVICE], _pending(request)
    asked = json_object(await request.read())
    parts = _ordered(asked, {part.id: part for part in service.store.parts(upload.id)})
    size = sum(part.bytes for part in parts)
    if size != upload.bytes:
        message = f"The parts have {size} bytes together, but the upload was created with {upload.bytes} bytes."
        raise RefusedError(400, message, param="part_ids", code="invalid_value")
    content = new_content_name()
    target = service.contents / content
    try:
        head, md5 = await asyncio.to_thread(_join, [service.contents / part.content for part in parts], target)
        if asked.get("md5") not in (None, md5):
            raise RefusedError(400, "The md5 checksum of the parts does not match.", param="md5", code="invalid_value")
        profile = service.settings.service
        check_input(profile, upload.purpose, upload.filename, size, head)
        new = new_file(profile, upload.filename, upload.purpose, size, content, upload.file_expires_s)
        file = service.store.complete_upload(upload, new)
        if file is None:
            raise _over(service.store.upload(upload.id))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    forget_parts(service, upload.id)
    return answer(request, upload_object(_found(request), file), compact=True)


async def cancel(request: web.Request) -> web.StreamResponse:
    service, upload = request.app[SERVICE], _pending(request)
    if not service.store.cancel_upload(upload):
        raise _over(service.store.upload(upload.id))
    forget_parts(service, upload.id)
    return answer(request, upload_object(_found(request), None), compact=True)


def forget_parts(service: Service, upload_id: str) -> None:
    """Remove the bytes of an upload's parts."""
    for part in service.store.parts(upload_id):
        (service.contents / part.content).unlink(missing_ok=True)
    service.store.drop_parts(upload_id)


def _found(request: web.Request) -> Upload:
    upload_id = request.match_info["id"]
    upload = request.app[SERVICE].store.upload(upload_id)
    if upload is None:
        raise RefusedError(404, f"No such Upload object: {upload_id}", param="id")
    return upload


def _pending(request: web.Request) -> Upload:
    upload = _found(request)
    if upload.shown_status(time.time()) != "pending":
        raise _over(upload)
    return upload


def _over(upload: Upload | None) -> RefusedError:
    status = "gone" if upload is None else upload.shown_status(time.time())
    return RefusedError(400, f"The upload is {status}; nothing can be done with it any more.", code="invalid_upload")


def _ordered(asked: dict[str, Any], known: dict[str, Part]) -> list[Part]:
    """The parts in the order of the request, each once."""
    ids = need(asked, "part_ids", list)
    for n, part_id in enumerate(ids):
        if not isinstance(part_id, str):
            raise wrong_type(f"part_ids[{n}]", "a string", part_id)
        if part_id not in known:
            raise RefusedError(400, f"No such Part object: {part_id}", param=f"part_ids[{n}]", code="invalid_value")
    if len(set(ids)) < len(ids):
        raise RefusedError(400, "A part can be used only once.", param="part_ids", code="invalid_value")
    return [known[part_id] for part_id in ids]


def _join(parts: list[Path], target: Path) -> tuple[bytes, str]:
    """Write the parts one behind the other; the beginning of the whole, and its md5."""
    head, md5 = b"", hashlib.md5(usedforsecurity=False)
    with target.open("wb") as out:
        for path in parts:
            with path.open("rb") as part:
                while block := part.read(BLOCK):
                    head += block[: HEAD - len(head)]
                    md5.update(block)
                    out.write(block)
    return head, md5.hexdigest()
