"""The upload of a file at once, and what any file that becomes one is looked at for, as the service looks at it.

Whatever is wrong further down than the first line fails the batch later, not the upload.
"""

import time
from typing import Any

import msgspec
from aiohttp import web

from streambatch.server.asking import check_choice, expiry_of
from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.incoming import HEAD, Incoming
from streambatch.server.objects import file_object
from streambatch.server.profiles import Profile
from streambatch.server.records import NEVER, File, new_content_name
from streambatch.server.service import Service

MAX_FILE_BYTES = 512 << 20
BATCH_EXPIRY_S = 2_592_000


class _Body(msgspec.Struct):
    model: str


class _Asks(msgspec.Struct):
    body: _Body


async def upload(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    _count(service)
    content = new_content_name()
    taken = Incoming(service.contents / content, "file", MAX_FILE_BYTES)
    try:
        await taken.read(request)
        profile = service.settings.service
        purpose, expires_s = _asked(taken, profile)
        assert taken.filename is not None, "checked"
        check_input(profile, purpose, taken.filename, taken.size, taken.head)
        file = service.store.add_file(new_file(profile, taken.filename, purpose, taken.size, content, expires_s))
    except BaseException:
        taken.path.unlink(missing_ok=True)
        raise
    return answer(request, file_object(file, fresh=expires_s is None))


def _count(service: Service) -> None:
    """Take one of the uploads that a minute may have."""
    wait_s = service.uploads.wait_s()
    if wait_s > 0:
        told = (
            f"Rate limit reached for file uploads: at most {service.settings.uploads_per_minute:,} requests per minute."
        )
        raise RefusedError(429, told, kind="requests", code="rate_limit_exceeded", retry_after_s=wait_s)
    service.uploads.count()


def new_file(profile: Profile, filename: str, purpose: str, size: int, content: str, expires_s: int | None) -> File:
    """A file that begins now, with the expiry that was asked for or its purpose's own."""
    now = int(time.time())
    default = now + BATCH_EXPIRY_S if purpose in profile.batch_purposes else NEVER
    return File(
        seq=None, id=profile.file_id(), filename=filename, purpose=purpose, bytes=size, created_at=now,
        expires_at=default if expires_s is None else now + expires_s, content=content,
    )  # fmt: skip


def _asked(taken: Incoming, profile: Profile) -> tuple[str, int | None]:
    """Purpose and expiry of a form that has all it needs."""
    for name in ("file", "purpose"):
        if (taken.filename if name == "file" else taken.fields.get(name)) is None:
            raise RefusedError(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    check_choice("purpose", taken.fields["purpose"], profile.purposes)
    return taken.fields["purpose"], expiry_of("expires_after", _expiry(taken.fields), profile)


def _expiry(fields: dict[str, str]) -> dict[str, Any] | None:
    """The form's two fields as the object that JSON calls send."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    number = int(seconds[:12]) if seconds is not None and seconds.isascii() and seconds.isdigit() else None
    return {"anchor": anchor, "seconds": number}


def check_input(profile: Profile, purpose: str, name: str, size: int, head: bytes) -> None:
    """Refuse what the service refuses of a batch's input at upload; the rest of a bad file fails its batch."""
    if purpose not in profile.batch_purposes:
        return
    if "." in name and not name.endswith(".jsonl"):
        raise RefusedError(400, "Invalid file format for Batch API. Must be .jsonl", param="file")
    if size > profile.max_bytes:
        raise _too_large(profile, size, head)
    if not _starts_with_json(head):
        raise RefusedError(
            400,
            "Invalid file format. Input file must be in .jsonl format, with a JSON object on each line.",
            param="file",
        )


def _too_large(profile: Profile, size: int, head: bytes) -> RefusedError:
    if not profile.names_size_limit:
        return RefusedError(400, "File is too large.")
    try:
        model = msgspec.json.decode(head.partition(b"\n")[0], type=_Asks).body.model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        model = "requested"
    return RefusedError(
        413, f"File is too large: {size} bytes is larger than the {profile.max_bytes} maximum for the {model} model."
    )


def _starts_with_json(head: bytes) -> bool:
    """Whether the first line is JSON; of a line longer than what we kept, only that it begins as an object."""
    line, newline, _ = head.partition(b"\n")
    if not newline and len(head) >= HEAD:
        return line.lstrip().startswith(b"{")
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
